"""Tensors in memory and on disk become each other, box by box, as transformers' own conversion says."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from selectune.components.conversion import Conversion
from selectune.components.disk import layout, revert, tensors_of
from selectune.errors import ModelError
from small import small

VIEWS = ("llava", "phi3", "mixtral", "qwen3_moe", "deepseek_v3", "gpt2", "ernie4_5_vl_moe", "gpt_oss", "dbrx", "qwen2_5_vl", "gemma3")
MIXED = "kimi_k25"


def conversions(model_type: str) -> list[tuple[Conversion, dict[str, Tensor], Mapping[str, Tensor]]]:
    """Each group's conversion, its tensors in memory, and what transformers makes of them on disk."""
    net = small(model_type)
    live = {name: tensor.detach() for name, tensor in tensors_of(net).items()}
    found = []
    for group in layout(net).groups:
        memory = {name: live[name] for name in group.memory}
        found.append((Conversion(net, memory, group.disk), memory, revert(net, memory, group.disk)))
    return found


@pytest.mark.parametrize("model_type", [*VIEWS, MIXED])
def test_both_ways_are_those_of_transformers(model_type: str) -> None:
    for conversion, memory, disk in conversions(model_type):
        _check(conversion, memory, disk)


def _check(conversion: Conversion, memory: Mapping[str, Tensor], disk: Mapping[str, Tensor]) -> None:
    assert _forms(conversion.disk) == _forms(disk)
    made = dict(conversion.to_disk(memory))
    assert made.keys() == disk.keys()
    assert all(made[name].equal(disk[name]) for name in disk)
    again = conversion.to_memory(lambda name, like: disk[name].to(like.dtype))
    assert again.keys() == memory.keys()
    assert all(again[name].equal(memory[name]) for name in memory)


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, object]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@pytest.mark.parametrize("model_type", VIEWS)
def test_where_elements_lie_needs_no_memory_beside(model_type: str) -> None:
    for conversion, _, disk in conversions(model_type):
        assert conversion.places is not None
        assert conversion.beside == (0 if conversion.renamed else max(one.nbytes for one in disk.values()))


def test_rows_that_are_sorted_anew_are_counted() -> None:
    mixed = [conversion for conversion, _, _ in conversions(MIXED) if conversion.places is None]
    assert {name.rpartition(".")[2] for one in mixed for name in one.disk} == {"weight", "bias"}
    assert all("wqkv" in name for one in mixed for name in one.disk)
    assert all(one.beside > 3 * sum(tensor.nbytes for tensor in one.memory.values()) for one in mixed)


def test_an_expert_is_a_view_of_the_packed_ones() -> None:
    """Half of a matrix for each: the gate in the upper rows, `up` in the lower ones."""
    (found,) = [one for one, _, _ in conversions("qwen3_moe") if "model.layers.0.mlp.experts.gate_up_proj" in one.memory]
    assert found.places is not None
    (place,) = found.places["model.layers.0.mlp.experts.2.up_proj.weight"]
    packed = found.memory["model.layers.0.mlp.experts.gate_up_proj"]
    rows, width = packed.shape[1] // 2, packed.shape[2]
    assert (place.shape, place.stride, place.offset) == ((rows, width), (width, 1), 2 * 2 * rows * width + rows * width)
    assert not found.renamed


def test_numbers_that_lie_nowhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = next(one for one, _, _ in conversions(MIXED) if one.places is None)
    conversion.disk = {name: one[::2] for name, one in conversion.disk.items()}
    monkeypatch.setattr("selectune.components.conversion.revert", lambda *given: {name: one[::2] for name, one in revert(*given).items()})
    with pytest.raises(ModelError, match=r"numbers of .* lie nowhere in .*wqkv.*Save the model again"):
        conversion.to_memory(lambda _, like: torch.zeros(like.shape))


def test_a_tensor_that_is_only_seen_in_another_shape_is_a_renamed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel of a convolution over patches that do not overlap is a matrix."""
    monkeypatch.setattr("selectune.components.conversion.revert", lambda _, values, __: {"matrix": values["kernel"].reshape(4, 6)})
    kernel = torch.arange(24.0).reshape(4, 2, 3)
    conversion = Conversion(small("llama", "meta"), {"kernel": kernel}, ["matrix"])
    assert conversion.renamed
    assert dict(conversion.to_disk({"kernel": kernel}))["matrix"].equal(kernel.reshape(4, 6))
    assert conversion.to_memory(lambda _, __: kernel.reshape(4, 6))["kernel"].equal(kernel)
