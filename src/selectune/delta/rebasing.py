"""An update carried to a newer base: the change ``child - parent`` added to what the base holds now.

`delta.onto` moves an update exactly, where every tensor that it touches is the same in both bases. Where one differs, the sum is another
model than anybody trained or measured: a candidate, for a gate to judge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selectune.delta.bits import bit_view
from selectune.delta.format import Delta
from selectune.delta.values import Read, build, checked, child_of, real, regions_of, rounded, shift, wide
from selectune.errors import WrongParent
from selectune.hashing import Manifest, tensor_digest

__all__ = ["carry", "differing"]

_WHERE = "rebase"


def differing(delta: Delta, parent: Manifest) -> tuple[str, ...]:
    """The tensors that the delta touches and that are not the same bits in `parent`.

    Raises WrongParent where `parent` lacks one of them or holds it in another shape: that is another model, not a newer one.
    """
    for name, one in delta.tensors.items():
        if name not in parent or parent[name].shape != one.shape:
            found = f"it is {list(parent[name].shape)} there" if name in parent else "that has none of this name"
            what = f'the update changes "{name}", {list(one.shape)}, and model {parent.id[:12]} is another: {found}'
            raise WrongParent(what, where=_WHERE, then="Give a newer base of the same architecture and vocabulary.")
    return tuple(name for name, one in delta.tensors.items() if parent[name].sha256 != one.old or parent[name].dtype != one.dtype)


def carry(delta: Delta, parent: Manifest, old: Read, new: Read) -> Delta:
    """The delta from `parent` to ``parent + (child - parent of the delta)``, element by element that the delta moved.

    `old` gives tensors of the delta's own parent, `new` those of `parent`; only those that differ are asked for. Computed in fp32 (fp64
    where either has 32 bits and more), rounded once; tensors that are the same in both become exactly what they were in the child. Raises
    WrongParent as `differing` does, DeltaError where integers moved and where a number overflows.
    """
    others = frozenset(differing(delta, parent))

    def change(name: str) -> tuple[Tensor, str]:
        one = delta.tensors[name]
        bits = shift([delta], name, one)
        if name not in others:
            return bits, one.new
        before = checked(old, name, one.old, _WHERE)
        start = checked(new, name, parent[name].sha256, _WHERE)
        moved = bits != 0
        if not bool(moved.any()):
            return bit_view(start.contiguous()) ^ bit_view(start.contiguous()), parent[name].sha256
        kinds = [wide(real(name, dtype, _WHERE)) for dtype in (one.dtype, parent[name].dtype)]
        kind = torch.float64 if torch.float64 in kinds else torch.float32
        goal = start.to(kind) + (child_of(before, bits).to(kind) - before.to(kind))
        result = rounded(start, goal, moved, name=name, where=_WHERE)
        return bit_view(start.contiguous()) ^ bit_view(result), tensor_digest(result)

    note = {"of": delta.digest, "child": delta.child, "differing": sorted(others)}
    names = {name: regions_of([delta], name) for name in delta.tensors}
    return build(parent, names, change, patterns=delta.patterns, meta={**delta.meta, "rebased": note})
