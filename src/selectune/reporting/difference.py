"""What lies between two updates: tables for the terminal, and one self-contained page with pictures of spectra.

Components that differ in indices alone are one row, so that what moved and where is seen at a glance; those that moved farthest stand by
themselves, with their spectra.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from pydantic import ConfigDict
from rich.table import Table

from selectune.components.covering import spans
from selectune.components.patterns import family
from selectune.reporting import wording
from selectune.reporting.charts import STYLES, Panel, Point, Series, panel, value_axis
from selectune.reporting.document import Document, Real, write_whole
from selectune.reporting.page import render_page
from selectune.reporting.tables import decimal, decimals, plain_table

FARTHEST = 8
"""Components that stand by themselves where no spectrum was computed, which is else what chooses them."""
_LAYER = re.compile(r"\.(\d+)(?=\.|\Z)")
_BARS = "▁▂▃▄▅▆▇█"
_WIDEST = 12
"""Bars of one row; of more layers several share one."""


class _Lenient(Document):
    model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True)


class DiffNumbers(_Lenient):
    """How far."""

    norm: Real
    relative: Real
    cosine: Real


class DiffRow(_Lenient):
    """One component."""

    name: str
    shape: tuple[int, ...]
    elements: int
    moved: int
    both: int
    numbers: DiffNumbers | None
    top: Real
    spectrum: tuple[float, ...]
    note: str


class DiffSide(_Lenient):
    """What was measured of one of the two."""

    value: Real
    low: Real
    high: Real
    n: int
    verdict: str


class DiffBehaviour(_Lenient):
    """One number of both."""

    task: str
    what: str
    against: str
    a: DiffSide | None
    b: DiffSide | None


class DiffModels(_Lenient):
    """Where the two lie."""

    common: str
    a: str
    b: str
    rows: tuple[DiffRow, ...]
    moved: int
    both: int
    touched: int
    total: int | None
    numbers: DiffNumbers | None
    k: int


class DiffUpdate(_Lenient):
    """One of the two updates."""

    id: str
    skill: str
    verdict: str


class DiffPage(_Lenient):
    """All that is shown."""

    a: DiffUpdate
    b: DiffUpdate
    difference: DiffModels
    behaviour: tuple[DiffBehaviour, ...]
    notes: tuple[str, ...]

    @property
    def tensors(self) -> str:
        """The sum in a sentence."""
        found = self.difference
        share = f", {found.moved / found.total:.2%} of the model" if found.total else ""
        text = f"{wording.count(found.moved)} of {wording.count(found.touched)} touched elements differ{share}"
        if found.numbers is not None and found.numbers.relative is not None:
            text += f"; their distance is {found.numbers.relative:.3g} of the norm of A's touched tensors"
        if found.numbers is not None and found.numbers.cosine is not None:
            text += f"; cosine of the two updates {found.numbers.cosine:+.3f}"
        return f"{text}."


@dataclass(frozen=True, kw_only=True)
class Group:
    """Components of one role: their names differ in indices alone."""

    role: str
    """With stars for indices: `language.layers.*.attn.q`."""
    rows: tuple[DiffRow, ...]

    @property
    def name(self) -> str:
        """With its layers, as a pattern that selects them: `language.layers[8:24].attn.q`."""
        layers = self.layers
        return self.role.replace(".*", f".{layers[0]}" if len(layers) == 1 else f"[{spans(layers)}]", 1) if layers else self.role

    @property
    def elements(self) -> int:
        """Of all its components."""
        return sum(row.elements for row in self.rows)

    @property
    def moved(self) -> float:
        """The share of its elements that differ."""
        return sum(row.moved for row in self.rows) / self.elements

    @property
    def both(self) -> float:
        """The share that both moved."""
        return sum(row.both for row in self.rows) / self.elements

    @property
    def norm(self) -> float | None:
        """Of B - A, over all its components; None where one is not known."""
        norms = [row.numbers.norm if row.numbers else None for row in self.rows]
        known = [norm for norm in norms if norm is not None]
        return math.hypot(*known) if len(known) == len(norms) else None

    @property
    def relative(self) -> float | None:
        """That over the norm of A; None where one of both is not known."""
        return _relative(self.rows)

    @property
    def cosines(self) -> tuple[float, float] | None:
        """The least and the largest cosine between the two updates, of the components that both moved."""
        found = [row.numbers.cosine for row in self.rows if row.numbers is not None and row.numbers.cosine is not None]
        return (min(found), max(found)) if found else None

    @property
    def layers(self) -> tuple[int, ...]:
        """Which layers it is of, from below: the first index in a component's name."""
        return tuple(sorted({int(match[1]) for row in self.rows if (match := _LAYER.search(row.name))}))

    @property
    def bars(self) -> str:
        """How far each layer moved, relative to it, from the first layer to the last: a bar each, the highest for the farthest."""
        layers = self.layers
        if len(layers) < 2:
            return ""
        width = math.ceil((layers[-1] - layers[0] + 1) / _WIDEST)
        parts: dict[int, list[DiffRow]] = {}
        for row in self.rows:
            if match := _LAYER.search(row.name):
                parts.setdefault((int(match[1]) - layers[0]) // width, []).append(row)
        found = {place: _relative(rows) for place, rows in parts.items()}
        most = max((one for one in found.values() if one is not None), default=0.0)
        heights = [found.get(place) for place in range(max(parts) + 1)] if most else []
        return "".join(" " if one is None else _BARS[round((len(_BARS) - 1) * one / most)] for one in heights)


def _relative(rows: Sequence[DiffRow]) -> float | None:
    """‖B - A‖ / ‖A‖ over several components, each of which has both."""
    squares = of_a = 0.0
    for row in rows:
        if row.numbers is None or row.numbers.norm is None or not row.numbers.relative:
            return None
        squares += row.numbers.norm**2
        of_a += (row.numbers.norm / row.numbers.relative) ** 2
    return math.sqrt(squares / of_a)


def by_role(rows: Sequence[DiffRow]) -> list[Group]:
    """The components in groups, the group that moved farthest first; where distances are not known, in the model's order."""
    found: dict[str, list[DiffRow]] = {}
    for row in rows:
        found.setdefault(family(row.name), []).append(row)
    return sorted((Group(role=role, rows=tuple(mine)) for role, mine in found.items()), key=lambda group: -(group.norm or 0.0))


def role_table(page: DiffPage) -> Table:
    """What moved by role, and in which layers."""
    table = plain_table("role, the farthest first", "elements", "differ", "both", "rel. norm")
    table.add_column("by layer", justify="left", no_wrap=True)
    for group in by_role(page.difference.rows):
        counts = (wording.short(group.elements), wording.share(group.moved), wording.share(group.both))
        table.add_row(wording.plain(group.name), *counts, _short(group.relative), group.bars)
    return table


def component_table(page: DiffPage, *, everything: bool = False) -> Table:
    """The components that moved farthest, which are those whose spectra were computed; with `everything` all of them."""
    found = page.difference
    rows = by_distance(found.rows)
    shown = rows if everything else [row for row in rows if row.spectrum] or rows[:FARTHEST]
    notes = [""] if any(row.note for row in shown) else []
    table = plain_table("farthest components", "elements", "differ", "both", "rel. norm", "cosine", f"in top {found.k}", *notes)
    for row in shown:
        numbers = row.numbers
        values = (_short(numbers.relative), _cosine(numbers.cosine)) if numbers else (wording.DASH, wording.DASH)
        counts = (wording.short(row.elements), wording.share(row.moved / row.elements), wording.share(row.both / row.elements))
        table.add_row(wording.plain(row.name), *counts, *values, wording.share(row.top), *([wording.plain(row.note)] if notes else []))
    return table


def behaviour_table(page: DiffPage) -> Table:
    """What was measured of both, side by side."""
    table = plain_table("task", "what", "A", "bounds", "n", "B", "bounds", "n")
    for row in page.behaviour:
        what = f"{row.what} against {row.against}" if row.against else row.what
        table.add_row(wording.plain(row.task), wording.plain(what), *_side(row.a), *_side(row.b))
    return table


def _side(side: DiffSide | None) -> tuple[str, str, str]:
    if side is None:
        return wording.DASH, wording.DASH, wording.DASH
    return decimal(side.value), decimals(side.low, side.high) if side.low is not None else wording.DASH, str(side.n)


def by_distance(rows: Sequence[DiffRow]) -> list[DiffRow]:
    """The farthest first; where distances are not known, in the model's order."""
    return sorted(rows, key=lambda row: -(row.numbers.norm or 0.0) if row.numbers else 0.0)


def spectra(page: DiffPage) -> Panel | None:
    """Cumulative share of the squared norm over singular values, a line for each of the components that moved farthest."""
    drawn = [row for row in by_distance(page.difference.rows) if row.spectrum][:STYLES]
    if not drawn:
        return None
    series = [
        Series(
            name=row.name,
            style=number,
            points=tuple(Point(x=float(at), y=share) for at, share in enumerate(accumulate(row.spectrum), start=1)),
            dots=False,
        )
        for number, row in enumerate(drawn)
    ]
    x = value_axis("singular values, the largest first", [point.x for one in series for point in one.points])
    y = value_axis("share of the squared norm, %", [0.0, 1.0], percent=True)
    return panel("Spectrum of what lies between A and B", series, x, y, size=(640.0, 360.0))


def write_diff(page: DiffPage, path: Path) -> Path:
    """Write the page, whole or not at all, and return `path`. Raises StorageError."""
    return write_whole(path, render_diff(page))


def render_diff(page: DiffPage) -> str:
    """The page's HTML; it loads nothing from anywhere."""
    rows = page.difference.rows
    return render_page("diff.html.j2", page=page, groups=by_role(rows), rows=by_distance(rows), spectra=spectra(page))


def _short(value: float | None) -> str:
    return wording.DASH if value is None else f"{value:.3g}".replace("-", wording.MINUS)


def _cosine(value: float | None) -> str:
    return wording.number(value, 3, signed=True)
