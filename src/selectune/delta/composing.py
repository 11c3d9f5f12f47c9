"""Deltas one after the other made into one that does the same at once: a snapshot of where they lead.

Xor adds up, so the composed delta needs no model. It holds every tensor that any of them touches, from the first parent to the last child.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from threading import Lock

import numpy as np
import psutil
import torch
from torch import Tensor

from selectune.components.slices import region_shape
from selectune.delta.bits import read, torch_dtype
from selectune.delta.format import Delta, Part, Touched
from selectune.delta.values import Read, child_of, parts_of, regions_of, shift
from selectune.errors import DeltaError, WrongParent
from selectune.hashing import DTYPES, tensor_digest
from selectune.threads import each

__all__ = ["compose"]

_WHERE = "compose"


def compose(deltas: Sequence[Delta], values: Read | None = None) -> Delta:
    """The delta from the first one's parent to the last one's child.

    `values` gives tensors of the child, where somebody has the model at hand: a tensor is then stored as its new bits where they pack
    smaller than the xor of all its parts. On as many threads as there are cores, a tensor in the memory of each; `values` is asked by one
    at a time. Raises WrongParent where a delta does not follow the one before it, model by model and tensor by tensor, DeltaError for
    damaged bits, for a tensor larger than memory, and for values that are not the child's.
    """
    tensors, alone = _follow(deltas), Lock()

    def parts(name: str) -> list[Part]:
        mine, one = [delta for delta in deltas if name in delta.tensors], tensors[name]
        first = next(parts_of(mine[0], name))
        if first.replaces:  # an earlier snapshot has all of the tensor: what came later is put on that
            live = torch.from_numpy(first.raw(mine[0].itemsize(first))).view(torch_dtype(one.dtype)).reshape(one.shape)
            return [_whole(name, child_of(live, shift(mine[1:], name, one)), one)]
        bits = shift(mine, name, one)
        changed = [
            Part.of(name, region, region_shape(one.shape, region), np.ascontiguousarray(read(bits, region)))
            for region in regions_of(mine, name)
        ]
        if values is None:
            return changed
        with alone:
            tensor = values(name)
        whole = _whole(name, tensor, one)
        return [whole] if len(whole.data) < sum(len(part.data) for part in changed) else changed

    found = [part for several in each(parts, sorted(tensors)) for part in several]
    patterns = tuple(dict.fromkeys(pattern for delta in deltas for pattern in delta.patterns))
    meta = {"snapshot": {"of": [delta.digest for delta in deltas]}}
    ordered = {name: tensors[name] for name in sorted(tensors)}
    return Delta(parent=deltas[0].parent, child=deltas[-1].child, patterns=patterns, tensors=ordered, parts=tuple(found), meta=meta)


def _follow(deltas: Sequence[Delta]) -> dict[str, Touched]:
    """Every tensor that is touched, from what it was to what it becomes."""
    tensors: dict[str, Touched] = {}
    room = psutil.virtual_memory().total
    for number, delta in enumerate(deltas):
        if number and deltas[number - 1].child != delta.parent:
            what = f"a delta leads to model {deltas[number - 1].child[:12]}, and the next one starts from {delta.parent[:12]}"
            raise WrongParent(what, where=_WHERE, then="Give the deltas of one line, in their order.")
        for name, one in delta.tensors.items():
            # No model is at hand that would say how large it is: a stranger's header alone does, and zeros pack to nothing.
            if prod(one.shape) * DTYPES[one.dtype][1] > room:
                what = f'"{name[:200]}" is {one.dtype} {list(one.shape)}, which is more than this machine\'s memory'
                raise DeltaError(what, where=_WHERE, then="Compose it on a larger machine, if you trust where it comes from.")
            before = tensors.get(name)
            if before is not None and (before.new, before.dtype, before.shape) != (one.old, one.dtype, one.shape):
                what = f'"{name}" is one thing after a delta and another before the next one'
                raise WrongParent(what, where=_WHERE, then="See what is damaged: selectune verify")
            tensors[name] = Touched(dtype=one.dtype, shape=one.shape, old=before.old if before else one.old, new=one.new)
    return tensors


def _whole(name: str, tensor: Tensor, one: Touched) -> Part:
    """All of a tensor's new bits. Raises DeltaError where they are not what the last delta leads to."""
    if tensor_digest(tensor) != one.new:
        raise DeltaError(f'"{name}" is not what the last delta leads to', where=_WHERE, then="Give the tensors of that very model.")
    return Part.of(name, None, one.shape, read(tensor, None), new=True)
