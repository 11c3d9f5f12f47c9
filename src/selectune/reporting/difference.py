"""What lies between two updates: a table for the terminal, and one self-contained page with pictures of spectra."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from pydantic import ConfigDict
from rich.table import Table

from selectune.reporting import wording
from selectune.reporting.charts import STYLES, Panel, Point, Series, panel, value_axis
from selectune.reporting.document import Document, Real, write_whole
from selectune.reporting.page import render_page
from selectune.reporting.tables import decimal, decimals, plain_table

SHOWN = 40
"""Components of a table in the terminal; the page and the JSON have all."""


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


def tensor_table(page: DiffPage) -> Table:
    """The components that moved farthest, at most 40 of them."""
    found = page.difference
    table = plain_table("component", "elements", "differ", "both moved", "rel. norm", "cosine", f"in top {found.k}", "")
    for row in by_distance(found.rows)[:SHOWN]:
        numbers = row.numbers
        values = (_short(numbers.relative), _short(numbers.cosine)) if numbers else (wording.DASH, wording.DASH)
        counts = (wording.count(row.elements), wording.share(row.moved / row.elements), wording.share(row.both / row.elements))
        table.add_row(wording.plain(row.name), *counts, *values, wording.share(row.top), wording.plain(row.note))
    return table


def behaviour_table(page: DiffPage) -> Table:
    """What was measured of both, side by side."""
    table = plain_table("task", "what", "A", "95 % interval", "n", "B", "95 % interval", "n")
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
    return render_page("diff.html.j2", page=page, rows=by_distance(page.difference.rows), spectra=spectra(page))


def _short(value: float | None) -> str:
    return wording.DASH if value is None else f"{value:.3g}".replace("-", wording.MINUS)
