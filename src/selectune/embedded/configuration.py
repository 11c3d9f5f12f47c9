"""The configuration of the embedded model's vision tower, apart from it so that transformers can know it before any model class."""

from __future__ import annotations

from transformers.configuration_utils import PreTrainedConfig

# Channels of the last map; the Lite variants keep it at 1280.
HEAD = 1280


class EfficientNetLiteConfig(PreTrainedConfig):
    """Which maps become an image token: `grid` x `grid` tokens, each made of the last map and of finer cells of two earlier ones."""

    model_type = "selectune_efficientnet_lite"
    image_size: int = 224
    grid: int = 4
    """Tokens along one side: 4 gives 16 tokens."""
    middle_cells: int = 2
    """Cells along a token's side taken from the stride-16 map (112 channels)."""
    fine_cells: int = 4
    """Cells along a token's side taken from the stride-8 map (40 channels)."""

    @property
    def hidden_size(self) -> int:
        """Channels of one image token: 1280 + 112 x middle_cells**2 + 40 x fine_cells**2."""
        return HEAD + 112 * self.middle_cells**2 + 40 * self.fine_cells**2


def register() -> None:
    """Makes transformers' `AutoConfig` know the tower's configuration."""
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
