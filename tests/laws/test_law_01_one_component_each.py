"""Law 1: every parameter element has exactly one component, checked element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch

from selectune.components import map_model, views

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = [
    "llama",
    "tied",
    "qwen2",
    "phi3",
    "qwen3_moe",
    "gpt_oss",
    "bloom",
    "gpt_neox",
    "gpt2",
    "gpt_bigcode",
    "codegen",
    "falcon_groups",
    "dbrx",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_element_has_exactly_one_component(name: str, tiny: Callable[[str], PreTrainedModel]) -> None:
    net = tiny(name)
    hits = {parameter: torch.zeros_like(value) for parameter, value in net.named_parameters()}
    for component in map_model(net, name).components:
        parts = views(hits[component.parameter], component.slice)
        assert sum(part.numel() for part in parts) == component.elements
        for part in parts:
            part += 1
    assert all((count == 1).all() for count in hits.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_component_of_a_supported_family_has_a_name_of_its_own_kind(name: str, tiny: Callable[[str], PreTrainedModel]) -> None:
    words = {component.name.split(".")[0] for component in map_model(tiny(name), name).components}
    assert words <= {"language", "vision", "projector", "head"}
