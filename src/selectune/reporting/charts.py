"""Geometry of the report's charts: data in, pixels out; `templates/chart.html.j2` draws them as inline SVG.

Drawn on the server side rather than by a chart library in the page, so that a report needs no script, follows light and dark through
its style sheet, prints, and weighs some tens of kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from selectune.reporting import wording

STYLES = 6
"""Series looks (colour, marker, dash) before they repeat."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 14.0, 44.0
_LINE = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A measured point in data units; interval ends are None where there is none."""

    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    label: str = ""
    """Written beside the point."""
    title: str = ""
    """Shown by a pointer that rests on it, and read aloud."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one recipe or task."""

    name: str
    style: int
    points: tuple[Point, ...]
    line: bool = True
    dots: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis: its range in data units, and where it is labelled."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    zero: bool = False
    """Draw a stronger line at zero."""
    grid: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A point in pixels; each bar is x1, y1, x2, y2."""

    x: float
    y: float
    bars: tuple[tuple[float, float, float, float], ...]
    label: str
    label_x: float
    label_y: float
    label_end: bool
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """A series in pixels."""

    name: str
    style: int
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A chart in pixels, ready to draw."""

    title: str
    description: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_title: str
    y_title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_zero: float | None
    y_zero: float | None
    x_grid: bool
    y_grid: bool
    tracks: tuple[Track, ...] = field(default=())


def ticks(low: float, high: float, wanted: int = 5) -> tuple[float, ...]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) that cover `low` to `high`, about `wanted` of them."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(1, wanted - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))


def value_axis(title: str, values: Sequence[float | None], *, zero: bool = False, percent: bool = False, signed: bool = False) -> Axis:
    """An axis over `values`, from tick to tick; `zero` includes zero, `percent` writes shares as percent, `signed` writes a plus."""
    known = [value for value in values if value is not None] + ([0.0] if zero else [])
    places = ticks(min(known, default=0.0), max(known, default=1.0))
    factor = 100.0 if percent else 1.0
    digits = max(0, -math.floor(math.log10((places[1] - places[0]) * factor) + 1e-9))
    if round((places[1] - places[0]) * factor, digits) != round((places[1] - places[0]) * factor, digits + 1):
        digits += 1
    labelled = tuple((place, wording.number(place * factor, digits, signed=signed)) for place in places)
    return Axis(title=title, low=places[0], high=places[-1], ticks=labelled, zero=zero)


def name_axis(title: str, names: Sequence[str], *, grid: bool = False) -> Axis:
    """An axis of names at 0, 1, 2, …, with half a step free at each end."""
    labelled = tuple((float(index), _cut(name, 16)) for index, name in enumerate(names))
    return Axis(title=title, low=-0.5, high=max(0, len(names) - 1) + 0.5, ticks=labelled, grid=grid)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Where two axes lie on a chart, in pixels."""

    x: Axis
    y: Axis
    left: float
    right: float
    top: float
    bottom: float

    def across(self, value: float) -> float:
        return _px(self.left + (value - self.x.low) / (self.x.high - self.x.low) * (self.right - self.left))

    def down(self, value: float) -> float:
        return _px(self.bottom - (value - self.y.low) / (self.y.high - self.y.low) * (self.bottom - self.top))

    def mark(self, point: Point) -> Mark:
        x, y = self.across(point.x), self.down(point.y)
        bars = []
        if point.x_low is not None and point.x_high is not None:
            bars.append((self.across(point.x_low), y, self.across(point.x_high), y))
        if point.y_low is not None and point.y_high is not None:
            bars.append((x, self.down(point.y_low), x, self.down(point.y_high)))
        end = x > self.left + 0.6 * (self.right - self.left)
        label_x = _px(x - 10 if end else x + 10)
        return Mark(
            x=x, y=y, bars=tuple(bars), label=_cut(point.label, 24), label_x=label_x, label_y=_px(y - 10), label_end=end, title=point.title
        )

    def track(self, one: Series) -> Track:
        path = " ".join(f"{self.across(point.x)},{self.down(point.y)}" for point in one.points) if one.line and len(one.points) > 1 else ""
        marks = tuple(self.mark(point) for point in one.points) if one.dots else ()
        return Track(name=one.name, style=one.style % STYLES, path=path, marks=marks)


def panel(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, size: tuple[float, float] = (480.0, 270.0), left: float = _LEFT
) -> Panel:
    """Lay `series` out on two axes; `size` is width and height in pixels, `left` the room for the y axis' labels."""
    width, height = size
    frame = _Frame(x=x, y=y, left=left, right=width - _RIGHT, top=_TOP, bottom=height - _BOTTOM)
    return Panel(
        title=title,
        description=f"{title}. {x.title} across, {y.title} upwards; the numbers are in a table nearby.",
        width=width,
        height=height,
        left=_px(frame.left),
        right=_px(frame.right),
        top=_px(frame.top),
        bottom=_px(frame.bottom),
        x_title=x.title,
        y_title=y.title,
        x_ticks=tuple((frame.across(value), label) for value, label in x.ticks),
        y_ticks=tuple((frame.down(value), label) for value, label in y.ticks),
        x_zero=frame.across(0.0) if x.zero else None,
        y_zero=frame.down(0.0) if y.zero else None,
        x_grid=x.grid,
        y_grid=y.grid,
        tracks=_spread(tuple(frame.track(one) for one in series)),
    )


def _spread(tracks: tuple[Track, ...]) -> tuple[Track, ...]:
    """The same marks, their labels moved apart where marks lie close: none less than a line below the one above it."""
    placed: dict[int, float] = {}
    for end in (False, True):
        lowest = -math.inf
        labelled = [mark for track in tracks for mark in track.marks if mark.label and mark.label_end == end]
        for mark in sorted(labelled, key=lambda mark: mark.label_y):
            placed[id(mark)] = max(mark.label_y, lowest)
            lowest = _px(placed[id(mark)] + _LINE)
    return tuple(
        replace(track, marks=tuple(replace(mark, label_y=placed.get(id(mark), mark.label_y)) for mark in track.marks)) for track in tracks
    )


def thin(points: Sequence[Point], most: int = 400) -> tuple[Point, ...]:
    """At most `most` of `points`, evenly spaced, the last one kept."""
    if len(points) <= most:
        return tuple(points)
    stride = math.ceil(len(points) / most)
    kept = list(points[::stride])
    if kept[-1] is not points[-1]:
        kept.append(points[-1])
    return tuple(kept)


def _px(value: float) -> float:
    return round(value, 1)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
