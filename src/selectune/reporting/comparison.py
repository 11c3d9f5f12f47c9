"""One self-contained page of two measurements: what was lost and gained, task by task, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from selectune.reporting.document import Document, Real, write_whole
from selectune.reporting.measured import Change
from selectune.reporting.page import Pictures, render_page

PICTURE_BYTES = 12_000_000
"""Pictures embedded in one page; those beyond it are named as left out."""


class ComparedTask(Document):
    """A task in two measurements."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    kind: str
    before: Real
    after: Real
    value: Real
    low: Real
    high: Real
    p_value: float
    adjusted: float
    gained: int
    lost: int
    n: int
    noise: Real = None
    worse: bool
    within_noise: bool | None


class ComparisonPage(Document):
    """All that the page shows."""

    before: str
    """The first measurement's stage, and the second's."""
    after: str
    models: tuple[str, str]
    correction: Literal["holm", "benjamini-hochberg"]
    tasks: tuple[ComparedTask, ...]
    changes: tuple[Change, ...]
    """In the tasks' order."""
    notes: tuple[str, ...] = ()


def write_comparison(page: ComparisonPage, path: Path) -> Path:
    """Write the page, whole or not at all, and return `path`. Raises StorageError."""
    return write_whole(path, render_comparison(page))


def render_comparison(page: ComparisonPage) -> str:
    """The page's HTML; it loads nothing from anywhere."""
    pictures = Pictures(PICTURE_BYTES)
    groups = []
    for task in page.tasks:
        for way in ("lost", "gained"):
            rows = [
                {"change": one, "picture": pictures.take(one.picture)} for one in page.changes if (one.task, one.way) == (task.task, way)
            ]
            groups.append({"task": task, "way": way, "rows": rows})
    # What was surely lost is looked at first, the largest loss above all; the table keeps the tasks' own order, and the links find each.
    ordered = sorted(enumerate(page.tasks, 1), key=lambda pair: (not pair[1].worse, pair[1].value or 0.0))
    return render_page("compare.html.j2", page=page, ordered=ordered, groups=groups, pictures=pictures)
