"""One tensor, several roles: which region of a fused tensor is q, k or v, gate or up, or one expert of many.

A layout is used only where the class that splits the tensor is known (`families.yaml`, or what transformers' expert modules say of
themselves) and the shapes agree with the config. Otherwise the tensor stays one component under its fused name, `attn.qkv` or
`mlp.gate_up`, and asking for a part of it raises NotYet: never more is selected than was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selectune.components.families import families
from selectune.components.slices import Region
from selectune.network import class_name

if TYPE_CHECKING:
    from torch import nn

FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""The last word of a fused component's name, and the roles that it holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """What a layout is worked out from: the tensor's shape, its owner, the module that splits it, and the config of its tower."""

    shape: tuple[int, ...]
    leaf: str
    owner: nn.Module | None
    splitter: nn.Module
    config: Any


def parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Region | None]]:
    """The components in one tensor that the naming called `name`, with the region of each; one with None where nothing is fused."""
    stem, _, last = name.rpartition(".")
    if stem.endswith(("moe.experts", "moe.vision.experts")):
        yield from _experts(stem, last, tensor)
    elif last == "qkv":
        yield from _named(stem, last, name, _qkv(tensor))
    elif last == "gate_up":
        yield from _named(stem, last, name, _gate_up(tensor))
    elif last == "kv" and (halves := _halves(tensor)) is not None:
        yield from zip((f"{stem}.k", f"{stem}.v"), halves, strict=True)
    else:
        yield name, None


def _named(stem: str, last: str, name: str, regions: tuple[Region, ...] | None) -> Iterator[tuple[str, Region | None]]:
    if regions is None:
        yield name, None
        return
    for role, region in zip(FUSED[last], regions, strict=True):
        yield f"{stem}.{role}", region


def _output_axis(tensor: Tensor) -> int:
    """The axis of a linear layer's outputs: 0, or the last one for GPT-2's Conv1D, which stores its matrix transposed."""
    return len(tensor.shape) - 1 if class_name(tensor.owner) == "Conv1D" else 0


def _spans(axis: int, sizes: list[int]) -> tuple[Region, ...]:
    regions, start = [], 0
    for size in sizes:
        regions.append(((axis, start, start + size, 1),))
        start += size
    return tuple(regions)


def _blocks(axis: int, total: int, blocks: int, sizes: tuple[int, int, int]) -> tuple[Region, ...] | None:
    """`blocks` groups of rows, each holding `sizes` rows of q, k and v: one range a group and role."""
    if blocks <= 0 or sum(sizes) * blocks != total or min(sizes) <= 0:
        return None
    starts = (0, sizes[0], sizes[0] + sizes[1])
    return tuple(
        tuple((axis, block * sum(sizes) + start, block * sum(sizes) + start + size, 1) for block in range(blocks))
        for start, size in zip(starts, sizes, strict=True)
    )


def _number(config: Any, *keys: str) -> int | None:
    found = next((value for key in keys if isinstance(value := getattr(config, key, None), int)), None)
    return found if found and found > 0 else None


def _qkv(tensor: Tensor) -> tuple[Region, ...] | None:
    layout = families().fused["qkv"].get(class_name(tensor.splitter))
    axis = _output_axis(tensor)
    total = tensor.shape[axis]
    if layout == "thirds":
        return _spans(axis, [total // 3] * 3) if total % 3 == 0 else None
    heads = _number(tensor.config, "num_attention_heads", "num_heads", "n_heads")
    if heads is None or layout is None:
        return None
    if layout == "bigcode":
        layout = "grouped" if tensor.config.multi_query else "per_head"
        keys = 1 if tensor.config.multi_query else heads
    elif layout == "falcon":
        keys = _number(tensor.config, "num_kv_heads") or heads
        if tensor.config.new_decoder_architecture:
            size = total // (heads + 2 * keys)
            return _blocks(axis, total, keys, (heads // keys * size, size, size))
        layout, keys = ("grouped", 1) if tensor.config.multi_query else ("per_head", heads)
    else:
        keys = _number(tensor.config, "num_key_value_heads", "kv_n_heads") or heads
    if layout == "per_head":
        size = total // (3 * heads)
        return _blocks(axis, total, heads, (size, size, size))
    if layout == "codegen":
        return _codegen(axis, total)
    size = total // (heads + 2 * keys)
    return _spans(axis, [heads * size, keys * size, keys * size]) if size * (heads + 2 * keys) == total else None


def _codegen(axis: int, total: int) -> tuple[Region, ...] | None:
    """CodeGen: four blocks, each of q, v, k in this order."""
    size = total // 12
    regions = _blocks(axis, total, 4, (size, size, size))
    return (regions[0], regions[2], regions[1]) if regions is not None else None


def _halves(tensor: Tensor) -> tuple[Region, ...] | None:
    """Keys and values of one tensor beside queries of their own; None where one tensor is both, as DeepSeek V4's is."""
    axis = _output_axis(tensor)
    if families().fused["qkv"].get(class_name(tensor.splitter)) != "halves" or tensor.shape[axis] % 2:
        return None
    return _spans(axis, [tensor.shape[axis] // 2] * 2)


def _gate_up(tensor: Tensor) -> tuple[Region, ...] | None:
    layout = families().fused["gate_up"].get(class_name(tensor.splitter))
    axis = _output_axis(tensor)
    total = tensor.shape[axis]
    if layout is None or total % 2:
        return None
    first, second = _spans(axis, [total // 2] * 2)
    return (first, second) if layout == "gate_first" else (second, first)


def _experts(stem: str, last: str, tensor: Tensor) -> Iterator[tuple[str, Region | None]]:
    """Packed experts: axis 0 is the expert; gate and up share the axis that is twice the inner width."""
    if last not in {"gate_up", "up", "down", "gate"} or len(tensor.shape) not in {2, 3}:
        yield f"{stem}.{last}", None
        return
    if families().fused["experts"].get(class_name(tensor.splitter)) == "rows":
        yield from _stacked(stem, last, tensor)
        return
    inside: tuple[Region, ...] | None = None
    if last == "gate_up":
        inside = _expert_gate_up(tensor)
    for expert in range(tensor.shape[0]):
        one = (0, expert, expert + 1, 1)
        if inside is None:
            yield f"{stem}.{expert}.{last}", (one,)
        else:
            for role, region in zip(FUSED["gate_up"], inside, strict=True):
                yield f"{stem}.{expert}.{role}", (one, *region)


def _stacked(stem: str, last: str, tensor: Tensor) -> Iterator[tuple[str, Region | None]]:
    """Experts one below the other in one matrix, in DBRX's way."""
    count = _number(tensor.splitter, "moe_num_experts")
    rows = tensor.shape[0]
    if count is None or rows % count:
        yield f"{stem}.{last}", None
        return
    for expert, region in enumerate(_spans(0, [rows // count] * count)):
        yield f"{stem}.{expert}.{last}", region


def _expert_gate_up(tensor: Tensor) -> tuple[Region, ...] | None:
    module = tensor.splitter
    known = families().fused["gate_up"].get(class_name(module))
    transposed = getattr(module, "is_transposed", None)
    concatenated = getattr(module, "is_concatenated", None)
    if known is None and (transposed is None or concatenated is None):
        return None
    axis = _inner_axis(tensor)
    if axis is None or (transposed is not None and len(tensor.shape) == 3 and axis != (2 if transposed else 1)):
        return None
    total = tensor.shape[axis]
    if total % 2:
        return None
    if concatenated is False:
        return ((axis, 0, total, 2),), ((axis, 1, total, 2),)
    first, second = _spans(axis, [total // 2] * 2)
    return (first, second) if known != "up_first" else (second, first)


def _inner_axis(tensor: Tensor) -> int | None:
    """The axis that holds gate and up, from the shapes of both expert tensors: twice the width that `down` reads."""
    if len(tensor.shape) == 2:
        return 1
    pairs = (("gate_up_proj", "down_proj"), ("input_linear", "output_linear"))
    parameters = {name: tuple(value.shape) for name, value in tensor.splitter.named_parameters()}
    for up, down in pairs:
        wide = parameters.get(up) or parameters.get(f"{up}.weight")
        narrow = parameters.get(down) or parameters.get(f"{down}.weight")
        if wide is None or narrow is None:
            continue
        if wide[1] == 2 * narrow[2] and wide[2] == narrow[1]:
            return 1
        if wide[2] == 2 * narrow[1] and wide[1] == narrow[2]:
            return 2
    return None
