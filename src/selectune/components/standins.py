"""Towers that only an optional package can build, replaced while an architecture is mapped without weights.

timm's towers need torchvision. A map of the architecture needs neither: every other component is as it is, and the tower is one small
component, `vision.stand_in`, which the map's reader can see. Nothing but `arch:TYPE` ever meets a stand-in.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIMM_TYPES = ("fast_vlm", "gemma3n", "perception_lm")
"""Types whose vision tower is timm's."""


@contextmanager
def stand_ins() -> Iterator[None]:
    """Inside, transformers builds a stand-in where it would ask for timm; does nothing where timm is installed."""
    if importlib.util.find_spec("timm") is not None:
        yield
        return
    from transformers import AutoModel, Gemma3nVisionConfig, TimmWrapperConfig

    mapping = AutoModel._model_mapping
    before = dict(mapping._extra_content)
    for config in (TimmWrapperConfig, Gemma3nVisionConfig):
        AutoModel.register(config, _stand_in(config), exist_ok=True)
    try:
        yield
    finally:
        mapping._extra_content = before


def _stand_in(config: type[Any]) -> type[PreTrainedModel]:
    from torch import nn
    from transformers import PreTrainedModel

    class StandIn(PreTrainedModel):
        config_class = config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.stand_in = nn.Linear(1, 1, bias=False)
            self.post_init()  # type: ignore[no-untyped-call]  # transformers has no types here

    return StandIn
