"""Deltas: exactly what changed between a model and its child, bit for bit, applied and taken back at will.

>>> from selectune.delta import Delta  # reading and writing files needs no torch; the functions on models load it when first used
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from selectune.delta.format import Delta, Part, Touched

if TYPE_CHECKING:
    from selectune.delta.capturing import Captured, capture
    from selectune.delta.changes import Snapshot, after, applied, apply, extract, interpolate, onto, restore, revert, snapshot
    from selectune.delta.merging import Dare, Linear, Ties, merge
    from selectune.delta.rebasing import carry

__all__ = [
    "Captured",
    "Dare",
    "Delta",
    "Linear",
    "Part",
    "Snapshot",
    "Ties",
    "Touched",
    "after",
    "applied",
    "apply",
    "capture",
    "carry",
    "extract",
    "interpolate",
    "merge",
    "onto",
    "restore",
    "revert",
    "snapshot",
]

_HOMES = {
    "Captured": "capturing",
    "capture": "capturing",
    "Snapshot": "changes",
    "after": "changes",
    "applied": "changes",
    "apply": "changes",
    "extract": "changes",
    "interpolate": "changes",
    "onto": "changes",
    "restore": "changes",
    "revert": "changes",
    "snapshot": "changes",
    "Dare": "merging",
    "Linear": "merging",
    "Ties": "merging",
    "merge": "merging",
    "carry": "rebasing",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
