"""Samples whose answers changed, with their pictures, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from selectune.evaluation.measurement import Measurement, Sample
from selectune.reporting import thumbnail_url
from selectune.reporting.measured import Change

if TYPE_CHECKING:
    from selectune.records import Record

Way = Literal["gained", "lost"]
Judge = Callable[[Sample, Sample], Way | None]
"""Whether a sample was gained or lost, from its old and its new answer."""

RIGHT = 0.5
"""A sample counts as right from this score on."""


def by_right(old: Sample, new: Sample) -> Way | None:
    """Gained or lost where an answer became right or wrong."""
    if (old.score >= RIGHT) == (new.score >= RIGHT):
        return None
    return "gained" if new.score >= RIGHT else "lost"


def by_score(old: Sample, new: Sample) -> Way | None:
    """Gained or lost where the score rose or fell at all, as statistics count."""
    return None if old.score == new.score else "gained" if new.score > old.score else "lost"


def changed(
    task: str, before: Measurement, after: Measurement, judge: Judge, *, records: Mapping[str, Record] | None = None, most: int
) -> list[Change]:
    """The first `most` samples of each way, in the order of `after`; pictures and questions are the records', where those are given."""
    found, shown = [], {"gained": 0, "lost": 0}
    old = before.of(task)
    for name, new in after.of(task).items():
        way = judge(old[name], new)
        if way is None or shown[way] == most:
            continue
        shown[way] += 1
        record = records[name] if records else None
        found.append(
            Change(
                task=task,
                id=name,
                stage=after.stage,
                against=before.stage,
                way=way,
                picture=thumbnail(record) if record else None,
                question=question(record) if record else "",
                reference=new.reference,
                before=old[name].output,
                after=new.output,
            )
        )
    return found


def thumbnail(record: Record) -> str | None:
    """A small version of a record's first picture, as a data URL; None without one."""
    return thumbnail_url(record.pictures[0].open()) if record.pictures else None


def question(record: Record) -> str:
    """What a record asks last."""
    return next((message.text for message in reversed(record.prompt) if message.role == "user"), "")
