"""Two measurements side by side, paired by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selectune import statistics
from selectune.errors import DataError
from selectune.evaluation import Measurement
from selectune.evaluation.matrix import align
from selectune.statistics.intervals import finite_or_none


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One task in two measurements."""

    task: str
    before: float
    after: float
    value: float
    """Mean of after minus before, paired by sample."""
    low: float | None
    """Ends of its 95 % interval; None where the data bound nothing."""
    high: float | None
    gained: int
    """Samples whose score rose."""
    lost: int
    n: int
    method: str

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high is not None and self.high < 0

    def to_json(self) -> dict[str, Any]:
        """All fields, and `worse`."""
        return asdict(self) | {"worse": self.worse}


def compare(before: Measurement, after: Measurement) -> Sequence[Comparison]:
    """Every task that both hold. Raises DataError where they share none, or a task's samples are not the same in both."""
    tasks = [task for task in before.tasks if task in after.tasks]
    if not tasks:
        raise DataError(
            f"{', '.join(before.tasks)} and {', '.join(after.tasks)} have no task in common",
            where="compare",
            then="Measure the same suite.",
        )
    return [_comparison(before, after, task) for task in tasks]


def _comparison(before: Measurement, after: Measurement, task: str) -> Comparison:
    pairs = align([before, after], task)
    change = statistics.change(pairs.scores[0], pairs.scores[1], pairs.clusters)
    moved = pairs.scores[1] - pairs.scores[0]
    return Comparison(
        task=task,
        before=float(pairs.scores[0].mean()),
        after=float(pairs.scores[1].mean()),
        value=change.value,
        low=finite_or_none(change.low),
        high=finite_or_none(change.high),
        gained=int((moved > 0).sum()),
        lost=int((moved < 0).sum()),
        n=change.n,
        method=change.method,
    )
