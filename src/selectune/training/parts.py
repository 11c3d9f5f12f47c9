"""The selected parts of a network's parameters, each under a name of its own: `NAME#0`, `NAME#1`, … box after box of its regions.

Masters, what a pull is measured from, and a teacher's values are all held so. Of a sharded parameter each process has its own rows of every
box, which may be none.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from selectune.components.slices import Region, boxes
from selectune.delta.bits import torch_dtype
from selectune.network import is_sharded, parameters
from selectune.training.sharding import local_views

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.delta import Snapshot


def parameter_of(key: str) -> str:
    """The name of the parameter that a part belongs to."""
    return key.rpartition("#")[0]


class Parts:
    """A selection's parts in one network."""

    def __init__(self, net: nn.Module, selection: Selection) -> None:
        found = parameters(net)
        self._regions: dict[str, tuple[Region | None, ...]] = {
            name: (None,) if regions is None else regions for name, regions in selection.parameters.items()
        }
        self.owners: dict[str, nn.Parameter] = {name: found[name] for name in self._regions}
        """The parameters that are selected in full or in part."""
        self.sharded = frozenset(name for name, owner in self.owners.items() if is_sharded(owner))
        """Those of which this process holds a shard."""

    def of(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The selected parts of a tensor that has the shape, and the shards, of the parameter `name`: views, by the parts' names."""
        owner = self.owners[name]
        views = (view for region in self._regions[name] for view, _ in local_views(owner, tensor, region))
        return ((f"{name}#{number}", view) for number, view in enumerate(views))

    def live(self) -> dict[str, Tensor]:
        """The parameters' own values, live and without a graph."""
        return {key: view for name, owner in self.owners.items() for key, view in self.of(name, owner.detach())}

    def at(self, before: Snapshot) -> dict[str, Tensor]:
        """What the parts held at a snapshot, in their own dtype and on the CPU, in the snapshot's memory.

        A snapshot may hold less than the selection: parts of which it knows nothing are left out.
        """
        found: dict[str, Tensor] = {}
        for name, owner in self.owners.items():
            number = 0
            for region in self._regions[name]:
                bits = before.bits.get((name, region))
                flat, at = None if bits is None else torch.from_numpy(bits).view(torch_dtype(before.manifest[name].dtype)), 0
                for box, (_, (first, stop)) in zip(
                    boxes(tuple(owner.shape), region), local_views(owner, owner.detach(), region), strict=True
                ):
                    shape = tuple(len(range(*part.indices(size))) for part, size in zip(box, owner.shape, strict=True))
                    if flat is not None:
                        found[f"{name}#{number}"] = flat[at : at + prod(shape)].view(shape)[first:stop]
                    at, number = at + prod(shape), number + 1
        return found
