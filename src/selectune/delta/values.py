"""A delta's tensors as numbers: what moved, what it was and what it becomes, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from selectune.components.slices import Region, overlap, region_shape
from selectune.delta.bits import bit_view, flip, read, torch_dtype
from selectune.delta.format import Delta, Part, Touched
from selectune.errors import DeltaError, WrongParent
from selectune.hashing import DTYPES, Entry, Manifest, tensor_digest

__all__ = ["Read", "build", "child_of", "regions_of", "rounded", "shift", "wide"]

Read = Callable[[str], Tensor]
"""Gives a model's tensor by its name in memory, on the CPU."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are computed in: fp32, and fp64 for those that have 32 bits or more themselves."""
    return torch.float64 if dtype.itemsize >= 4 else torch.float32


def parts_of(delta: Delta, name: str) -> Iterator[Part]:
    """The parts of one tensor."""
    return (part for part in delta.parts if part.parameter == name)


def shift(deltas: Iterable[Delta], name: str, one: Touched) -> Tensor:
    """The xor of a tensor's bits that the deltas make one after the other, as integers of its shape; zero where nothing moves."""
    bits = torch.zeros(one.shape, dtype=torch_dtype(one.dtype))
    for delta in deltas:
        for part in parts_of(delta, name):
            flip(bits, part.slice, part.bits(delta.itemsize(part)))
    return bit_view(bits)


def child_of(start: Tensor, bits: Tensor) -> Tensor:
    """The tensor whose bits differ from those of `start` by `bits`."""
    return (bit_view(start.contiguous()) ^ bits).view(start.dtype)


def rounded(start: Tensor, goal: Tensor, moved: Tensor, *, name: str, where: str) -> Tensor:
    """`goal` rounded to the dtype of `start` where `moved`, and the very bits of `start` elsewhere.

    Raises DeltaError for numbers that were finite and overflow.
    """
    new = goal.to(start.dtype)
    lost = moved & ~torch.isfinite(new.to(goal.dtype)) & torch.isfinite(goal)
    lost |= moved & ~torch.isfinite(goal) & torch.isfinite(start.to(goal.dtype))
    if bool(lost.any()):
        kind = next(key for key, (word, _) in DTYPES.items() if f"torch.{word}" == str(start.dtype))
        what = f'{int(lost.sum())} numbers of "{name}" overflow {kind} or are not finite'
        raise DeltaError(what, where=where, then="Use smaller weights, and updates without NaN.")
    return torch.where(moved, bit_view(new), bit_view(start.contiguous())).view(start.dtype)


def real(name: str, dtype: str, where: str) -> torch.dtype:
    """The torch dtype of a tensor of real numbers. Raises DeltaError for another one."""
    kind = torch_dtype(dtype)
    if not kind.is_floating_point:
        raise DeltaError(
            f'"{name}" is {dtype} and moved; only real numbers can be combined', where=where, then="Leave it out of the selections."
        )
    return kind


def regions_of(deltas: Sequence[Delta], name: str) -> tuple[Region | None, ...]:
    """Disjoint regions, sorted, that hold all parts of a tensor in any of the deltas; the whole tensor where parts overlap only in part."""
    found = {part.slice for delta in deltas for part in parts_of(delta, name)}
    ordered = sorted(found, key=lambda region: region or ())
    for number, one in enumerate(ordered):
        if any(overlap(one, other) for other in ordered[number + 1 :]):
            return (None,)
    return tuple(ordered)


def build(
    parent: Manifest,
    names: Mapping[str, tuple[Region | None, ...]],
    change: Callable[[str], tuple[Tensor, str]],
    *,
    patterns: tuple[str, ...],
    meta: Mapping[str, object],
) -> Delta:
    """The delta from `parent` with these parts of these tensors; `change` gives a tensor's xor and the digest of what it becomes.

    One tensor is in memory at a time.
    """
    tensors, parts = {}, []
    for name, regions in sorted(names.items()):
        old = parent[name]
        bits, new = change(name)
        tensors[name] = Touched(dtype=old.dtype, shape=old.shape, old=old.sha256, new=new)
        parts += [Part.of(name, region, region_shape(old.shape, region), np.ascontiguousarray(read(bits, region))) for region in regions]
    child = touched(parent, tensors)
    return Delta(parent=parent.id, child=child.id, patterns=patterns, tensors=tensors, parts=tuple(parts), meta=dict(meta))


def touched(parent: Manifest, tensors: Mapping[str, Touched]) -> Manifest:
    """The parent's tensors with these as a delta leaves them."""
    return parent.replace({name: Entry(dtype=one.dtype, shape=one.shape, sha256=one.new) for name, one in tensors.items()})


def checked(read_: Read, name: str, sha256: str, where: str) -> Tensor:
    """A tensor that must have this digest. Raises WrongParent for another."""
    tensor = read_(name)
    if tensor_digest(tensor) != sha256:
        raise WrongParent(f'"{name}" is not what the delta was made on', where=where, then="Give the model that the update was trained on.")
    return tensor
