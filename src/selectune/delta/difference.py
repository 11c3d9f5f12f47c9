"""What lies between two models that deltas lead to from a common one: which elements, how far, in which direction, of what rank.

Which elements moved is in the deltas alone. How far they moved is not, as a delta holds the xor of bits: that needs the tensors of the
common model that the deltas touch, and no others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from selectune.components import ComponentMap
from selectune.components.slices import Region, elements_of, region_shape, views
from selectune.components.spectra import matrix_of
from selectune.delta.bits import torch_dtype
from selectune.delta.format import Delta, Touched
from selectune.delta.values import Read, checked, child_of, regions_of, shift
from selectune.errors import InputError

__all__ = ["Difference", "Numbers", "Row", "difference"]

SPECTRUM = 64
"""Singular values kept of each spectrum."""
_CHUNK = 1 << 22
"""Elements of a tensor that are summed at once."""
Place = tuple[str, Region | None]
"""A component's name, and its region of a tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """How far, where the values are known. Frobenius norms, summed in fp64."""

    norm: float | None
    """Of B - A; None where a number is not finite."""
    relative: float | None
    """That over the norm of A; None also where A is zero."""
    cosine: float | None
    """Between the two updates, A and B each minus the common model; None where one of the two did not move."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One component, or one tensor where the map is not known."""

    name: str
    parameter: str
    slice: Region | None
    shape: tuple[int, ...]
    elements: int
    moved: int
    """Elements whose bits differ between A and B."""
    moved_a: int
    """Elements that A moved from the common model."""
    moved_b: int
    both: int
    """Elements that both moved."""
    numbers: Numbers | None = None
    top: float | None = None
    """Share of the squared norm of B - A in its largest singular values."""
    spectrum: tuple[float, ...] = ()
    """Each singular value's share of the squared norm, the largest first, at most 64."""
    note: str = ""
    """Why there is no spectrum, or what it is of."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What lies between A and B."""

    common: str
    """The id of the model from which both come."""
    a: str
    b: str
    rows: tuple[Row, ...]
    """What differs between A and B, in the model's order."""
    touched: int
    """Elements that either was allowed to move."""
    total: int | None
    """All elements of the model, where its map is known."""
    numbers: Numbers | None
    """Over all touched tensors together; None where values were not read."""
    k: int
    """How many singular values `top` counts."""

    @property
    def moved(self) -> int:
        """Elements that differ between A and B."""
        return sum(row.moved for row in self.rows)

    @property
    def both(self) -> int:
        """Elements that both moved, to the same or to another value, among the rows."""
        return sum(row.both for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Everything, with the sums."""
        return asdict(self) | {"moved": self.moved, "both": self.both}


def difference(
    to_a: Sequence[Delta],
    to_b: Sequence[Delta],
    read: Read | None = None,
    *,
    components: ComponentMap | None = None,
    spectra: int = 8,
    k: int = 8,
) -> Difference:
    """What lies between the model that `to_a` leads to and the one that `to_b` does, from one model; either may be empty.

    `read` gives the tensors of that model; without it bits alone are compared. Spectra are computed of the `spectra` components that moved
    farthest, as each takes seconds in a large model, and `top` is the share of the `k` largest. One tensor at a time is in memory, a few
    times over. Raises InputError where both are empty or do not begin at one model, WrongParent where `read` gives something else.
    """
    begins = {deltas[0].parent for deltas in (to_a, to_b) if deltas}
    if len(begins) != 1:
        what = "there is no delta between them" if not begins else "the deltas begin at two models"
        raise InputError(what, where="diff", then="Give two versions that come from one model.")
    (common,) = begins
    places = _places(components)
    touched = {name: one for delta in (*to_b[::-1], *to_a[::-1]) for name, one in delta.tensors.items()}
    old = {name: one.old for deltas in (to_a[::-1], to_b[::-1]) for delta in deltas for name, one in delta.tensors.items()}
    sums, rows = _Sums(), []
    for name in _ordered(touched, components):
        pair = _Pair.of(name, touched[name], (to_a, to_b), None if read is None else checked(read, name, old[name], "diff"))
        sums.add(pair)
        rows += [row for place in places.get(name, [(name, None)]) if (row := pair.row(place)).moved]
    far = sorted((row for row in rows if row.numbers and row.numbers.norm), key=lambda row: -(row.numbers.norm or 0))[:spectra]  # type: ignore[union-attr]
    chosen = {(row.parameter, row.slice) for row in far}
    if read is not None:
        rows = [_with_spectrum(row, chosen, touched, (to_a, to_b), read, k) for row in rows]
    return Difference(
        common=common,
        a=to_a[-1].child if to_a else common,
        b=to_b[-1].child if to_b else common,
        rows=tuple(rows),
        touched=sum(_allowed(name, one, (*to_a, *to_b)) for name, one in touched.items()),
        total=components.elements if components else None,
        numbers=None if read is None else sums.numbers(),
        k=k,
    )


def _places(components: ComponentMap | None) -> Mapping[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for component in components.components if components else ():
        found.setdefault(component.parameter, []).append((component.name, component.slice))
    return found


def _ordered(touched: Mapping[str, Touched], components: ComponentMap | None) -> list[str]:
    """In the model's order where it is known, else by name."""
    order = {name: number for number, name in enumerate(components.shapes)} if components else {}
    return sorted(touched, key=lambda name: (order.get(name, len(order)), name))


def _allowed(name: str, one: Touched, deltas: Sequence[Delta]) -> int:
    """How many elements of a tensor any of the deltas may have moved."""
    return sum(elements_of(one.shape, region) for region in regions_of(deltas, name))


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """One tensor of A and of B."""

    name: str
    shape: tuple[int, ...]
    bits_a: Tensor
    bits_b: Tensor
    start: Tensor | None
    """Of the common model; None where values are not read, or are no real numbers."""

    @classmethod
    def of(cls, name: str, one: Touched, sides: tuple[Sequence[Delta], Sequence[Delta]], start: Tensor | None) -> _Pair:
        bits_a, bits_b = (shift([delta for delta in side if name in delta.tensors], name, one) for side in sides)
        is_real = torch_dtype(one.dtype).is_floating_point
        return cls(name=name, shape=one.shape, bits_a=bits_a, bits_b=bits_b, start=start if is_real else None)

    @cached_property
    def a(self) -> Tensor:
        """A's tensor."""
        assert self.start is not None
        return child_of(self.start, self.bits_a)

    @cached_property
    def b(self) -> Tensor:
        """B's tensor."""
        assert self.start is not None
        return child_of(self.start, self.bits_b)

    def row(self, place: Place) -> Row:
        label, region = place
        in_a, in_b = (torch.cat([view.reshape(-1) for view in views(bits, region)]) for bits in (self.bits_a, self.bits_b))
        numbers = None
        if self.start is not None:
            sums = _Sums()
            sums.add(self, region)
            numbers = sums.numbers()
        return Row(
            name=label,
            parameter=self.name,
            slice=region,
            shape=region_shape(self.shape, region),
            elements=in_a.numel(),
            moved=int((in_a != in_b).sum()),
            moved_a=int((in_a != 0).sum()),
            moved_b=int((in_b != 0).sum()),
            both=int(((in_a != 0) & (in_b != 0)).sum()),
            numbers=numbers,
        )


class _Sums:
    """Sums of squares and products, in fp64."""

    def __init__(self) -> None:
        self.between = self.of_a = self.from_a = self.from_b = self.product = 0.0

    def add(self, pair: _Pair, region: Region | None = None) -> None:
        """Adds a tensor, or a region of it."""
        if pair.start is None:
            return
        for parts in zip(*(views(tensor, region) for tensor in (pair.start, pair.a, pair.b)), strict=True):
            for start, a, b in zip(*(part.reshape(-1).split(_CHUNK) for part in parts), strict=True):
                self._add(start.double(), a.double(), b.double())

    def _add(self, start: Tensor, a: Tensor, b: Tensor) -> None:
        self.between += float((b - a).square().sum())
        self.of_a += float(a.square().sum())
        self.from_a += float((a - start).square().sum())
        self.from_b += float((b - start).square().sum())
        self.product += float(((a - start) * (b - start)).sum())

    def numbers(self) -> Numbers:
        """Norms and cosine."""
        lengths = math.sqrt(self.from_a) * math.sqrt(self.from_b)
        return Numbers(
            norm=_finite(math.sqrt(self.between)),
            relative=_finite(math.sqrt(self.between / self.of_a)) if self.of_a else None,
            cosine=_finite(self.product / lengths) if lengths else None,
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_spectrum(
    row: Row,
    chosen: set[tuple[str, Region | None]],
    touched: Mapping[str, Touched],
    sides: tuple[Sequence[Delta], Sequence[Delta]],
    read: Read,
    k: int,
) -> Row:
    """The row with its spectrum, or with the reason why it has none."""
    if row.numbers is None or row.numbers.norm is None:
        return replace(row, note="no finite real numbers: no spectrum")
    if len(row.shape) < 2:
        return replace(row, note="a vector: no spectrum")
    if (row.parameter, row.slice) not in chosen:
        return replace(row, note="others moved farther: no spectrum computed")
    pair = _Pair.of(row.parameter, touched[row.parameter], sides, read(row.parameter))
    matrix = matrix_of(pair.b.double() - pair.a.double(), row.slice)
    if matrix is None:
        return replace(row, note="a vector: no spectrum")
    squares = torch.linalg.svdvals(matrix).double().square()
    shares = (squares / squares.sum()).tolist()
    note = "" if row.slice is None else f"of this part of {row.parameter} alone"
    if len(row.shape) > 2:
        note = f"{note + '; ' if note else ''}as a matrix of {matrix.shape[0]} by {matrix.shape[1]}"
    return replace(row, top=min(1.0, sum(shares[:k])), spectrum=tuple(shares[:SPECTRUM]), note=note)
