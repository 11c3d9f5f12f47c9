"""A delta to somewhere between a parent and its child, or beyond it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from selectune.delta.bits import flip, read
from selectune.delta.changes import check_tensor
from selectune.delta.encoding import Bytes
from selectune.delta.format import Delta, Part, Touched
from selectune.delta.values import real, rounded, wide
from selectune.errors import InputError, WrongParent
from selectune.hashing import Entry, tensor_entry
from selectune.network import state

if TYPE_CHECKING:
    from selectune.models import Model

__all__ = ["interpolate"]


def interpolate(model: Model, delta: Delta, share: float) -> Delta:
    """The delta to ``base + share * (child - base)``, worked out in fp32 (fp64 for F32 and F64 tensors) and rounded once.

    `model` is the parent and is left as it is. A share of 1 leads to the very child, 0 to the parent; elements whose bits agree stay
    untouched (a negative zero stays one). Raises WrongParent for another model, InputError for a share that is not finite, DeltaError
    where integers moved or where the result overflows.
    """
    if not math.isfinite(share):
        raise InputError(f"share {share} is not a finite number", where="interpolate", then="Use a share such as 0.5.")
    if model.manifest.id != delta.parent:
        raise WrongParent(
            f"the delta is for model {delta.parent[:12]}, this is {model.manifest.id[:12]}",
            where="interpolate",
            then="Revert to the parent first.",
        )
    tensors = state(model.net)
    scratch: dict[str, torch.Tensor] = {}
    parts = []
    for part in delta.parts:
        one = delta.tensors[part.parameter]
        if part.parameter not in scratch:
            check_tensor(tensors, part.parameter, Entry(dtype=one.dtype, shape=one.shape, sha256=one.old), "interpolate")
            scratch[part.parameter] = tensors[part.parameter].detach().to("cpu", copy=True)
        old = read(tensors[part.parameter], part.slice)
        new = _between(old, part.bits(delta.itemsize(part)), one.dtype, share, part.parameter)
        change = np.bitwise_xor(old, new)
        flip(scratch[part.parameter], part.slice, change)
        parts.append(Part.of(part.parameter, part.slice, part.shape, change))
    return _child(model, delta, scratch, tuple(parts), {**delta.meta, "interpolated": {"share": share, "of": delta.digest}})


def _child(model: Model, delta: Delta, tensors: Mapping[str, torch.Tensor], parts: tuple[Part, ...], meta: Mapping[str, Any]) -> Delta:
    """The delta of the same parent whose touched tensors become `tensors`."""
    entries = {name: tensor_entry(tensor) for name, tensor in tensors.items()}
    touched = {
        name: Touched(dtype=one.dtype, shape=one.shape, old=one.old, new=entries[name].sha256) for name, one in delta.tensors.items()
    }
    child = model.manifest.replace(entries).id
    return Delta(parent=delta.parent, child=child, patterns=delta.patterns, tensors=touched, parts=parts, meta=meta)


def _between(old: Bytes, change: Bytes, dtype: str, share: float, name: str) -> Bytes:
    """The raw bytes of ``old + share * (new - old)`` where new is ``old ^ change``."""
    new = np.bitwise_xor(old, change)
    if share == 1.0 or not change.any():
        return new
    kind = real(name, dtype, "interpolate")
    computed = wide(kind)
    start, stop = (torch.from_numpy(one).view(kind) for one in (old, new))
    goal = start.to(computed) + share * (stop.to(computed) - start.to(computed))
    moved = torch.from_numpy(np.any(change.reshape(-1, kind.itemsize), axis=1))
    kept = rounded(start, goal, moved, name=name, where=f"interpolate at share {share}")
    return np.frombuffer(kept.view(torch.uint8).numpy(), dtype=np.uint8)
