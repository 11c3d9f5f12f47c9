"""The vision tower of the embedded model: EfficientNet-Lite0 as a `PreTrainedModel` that gives one feature vector per image token.

Architecture: Tan and Le (2019), "EfficientNet"; the Lite variant drops squeeze-and-excitation and uses ReLU6. Batch norms are folded into
the convolutions when the weights are read (`fold`), so the tower has no running statistics that training could disturb.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from selectune.embedded import configuration
from selectune.embedded.configuration import HEAD, EfficientNetLiteConfig

# (repeats, kernel, stride, expansion, channels out): EfficientNet-B0's table, with Lite's fixed stem of 32 and head of 1280.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
STEM = 32
# Batch norm's epsilon in the published weights.
EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: with an even input and stride 2 the extra pixel goes right and below."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch's signature)
        """[batch, in, height, width] to [batch, out, ceil(height / stride), ceil(width / stride)]."""
        pads: list[int] = []
        for size, kernel, stride in zip(reversed(input.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        out: Tensor = self._conv_forward(functional.pad(input, pads) if any(pads) else input, self.weight, self.bias)
        return out


class Block(nn.Module):
    """Mobile inverted bottleneck: expand 1x1, depthwise, project 1x1; with a shortcut where shapes agree."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = SameConv(inside, wide, 1) if expansion != 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self.project = SameConv(wide, outside, 1)
        self.shortcut = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inside, h, w] to [batch, outside, h / stride, w / stride]."""
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        out: Tensor = x + y if self.shortcut else y
        return out


class EfficientNetLiteModel(PreTrainedModel):
    """Pictures [batch, 3, 224, 224] to standardised features [batch, grid * grid, hidden_size]."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "tower"
    main_input_name = "pixel_values"
    feature_mean: Tensor
    feature_scale: Tensor
    # It has no attention, so that any implementation suits it; without this transformers refuses to choose one for the whole model.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv(3, STEM, 3, stride=2)
        blocks, inside = [], STEM
        self.taps: dict[int, str] = {}
        for repeats, kernel, stride, expansion, outside in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(inside, outside, kernel, stride if repeat == 0 else 1, expansion))
                inside = outside
            if outside in (40, 112):
                self.taps[len(blocks) - 1] = "fine" if outside == 40 else "middle"
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(inside, HEAD, 1)
        # Standardising per channel takes the first loss from 17 to 10: raw activations are far larger than the word embeddings.
        self.register_buffer("feature_mean", torch.zeros(config.hidden_size))
        self.register_buffer("feature_scale", torch.ones(config.hidden_size))
        this: Any = self  # transformers leaves post_init untyped
        this.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution."""
        return self.stem

    def features(self, pixel_values: Tensor) -> Tensor:
        """Raw features [batch, grid * grid, hidden_size]: per token the last map, then 2x2 middle cells, then 4x4 fine cells."""
        config = self.config
        x = functional.relu6(self.stem(pixel_values.to(self.stem.weight.dtype)))
        taps: dict[str, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                taps[self.taps[index]] = x
        parts = [_cells(functional.relu6(self.head(x)), config.grid, 1)]
        parts += [_cells(taps["middle"], config.grid, config.middle_cells), _cells(taps["fine"], config.grid, config.fine_cells)]
        return torch.cat(parts, dim=-1)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Standardised features, as `last_hidden_state` and as the only hidden state (`vision_feature_layer=-1`)."""
        hidden = (self.features(pixel_values) - self.feature_mean) * self.feature_scale
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden.mean(dim=1), hidden_states=(hidden,))


def _cells(x: Tensor, grid: int, cells: int) -> Tensor:
    """[batch, channels, h, w] pooled to grid x grid tokens of cells x cells values a channel: [batch, grid * grid, channels * cells**2]."""
    pooled = functional.adaptive_avg_pool2d(x, grid * cells)
    return functional.pixel_unshuffle(pooled, cells).flatten(2).transpose(1, 2)


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict, its batch norms folded into the convolutions, under this tower's names (classifier dropped)."""
    folded: dict[str, Tensor] = {}

    def take(conv: str, norm: str, name: str) -> None:
        scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + EPSILON).sqrt()
        folded[f"{name}.weight"] = (state[f"{conv}.weight"].double() * scale[:, None, None, None]).float()
        folded[f"{name}.bias"] = (state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale).float()

    take("_conv_stem", "_bn0", "stem")
    for index in range(sum(stage[0] for stage in STAGES)):
        old, new = f"_blocks.{index}", f"blocks.{index}"
        if f"{old}._expand_conv.weight" in state:
            take(f"{old}._expand_conv", f"{old}._bn0", f"{new}.expand")
        take(f"{old}._depthwise_conv", f"{old}._bn1", f"{new}.depthwise")
        take(f"{old}._project_conv", f"{old}._bn2", f"{new}.project")
    take("_conv_head", "_bn1", "head")
    return folded


def register() -> None:
    """Makes transformers' auto classes know the tower."""
    # Not above: this module may be imported first of all, and whoever imports the auto classes has the tower registered (`selectune`).
    from transformers import AutoModel

    configuration.register()
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
