"""Deltas: exactly what changed between a model and its child, bit for bit, applied and taken back at will.

>>> from selectune.delta import Delta  # reading and writing files needs no torch; the functions on models load it when first used

Everything is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectune.offers import offering

if TYPE_CHECKING:
    from selectune.delta.capturing import Captured, capture
    from selectune.delta.changes import Snapshot, after, applied, apply, extract, onto, restore, revert, snapshot
    from selectune.delta.format import Delta, Part, Touched
    from selectune.delta.interpolating import interpolate
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

__getattr__ = offering(
    __name__,
    {
        "format": ("Delta", "Part", "Touched"),
        "capturing": ("Captured", "capture"),
        "changes": ("Snapshot", "after", "applied", "apply", "extract", "onto", "restore", "revert", "snapshot"),
        "interpolating": ("interpolate",),
        "merging": ("Dare", "Linear", "Ties", "merge"),
        "rebasing": ("carry",),
    },
)
