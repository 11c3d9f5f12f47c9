"""Two readings of each item: what a model writes of its own accord, and which of the possible answers it finds likeliest.

An update may lose points by writing in another form, or by preferring other answers than before, though it still knows the right one. What
the first reading lost and the second kept is such a shift: it can be recovered, by constrained decoding or a few more examples. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from selectune import statistics
from selectune.errors import DataError
from selectune.evaluation.matrix import align

if TYPE_CHECKING:
    from selectune.evaluation.measurement import Measurement, Sample
    from selectune.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Readings:
    """A task's loss from one measurement to another, taken apart. All shares of items, paired by sample, with 95 % intervals."""

    task: str
    lost: Estimate
    """By what was written: mean score before minus after. Negative where it rose."""
    knowledge: Estimate
    """By the likeliest answer: the part that is gone in both readings."""
    form: Estimate
    """`lost` minus `knowledge`, item by item: a shift of format or of the distribution of answers."""

    def to_json(self) -> dict[str, Any]:
        """Each of the three with its interval."""
        return {"lost": self.lost.to_json(), "knowledge": self.knowledge.to_json(), "form": self.form.to_json()}

    def __str__(self) -> str:
        lost, form = (100 * one.value for one in (self.lost, self.form))
        return (
            f"{self.task}: of {lost:.1f} points lost, {form:.1f} are a shift of format or answers"
            f" ({100 * self.form.low:+.1f} to {100 * self.form.high:+.1f}, n = {self.form.n})"
        )


def readings(before: Measurement, after: Measurement, task: str) -> Readings | None:
    """How much of a task's loss is one of form; None where a measurement has no second reading (`Task.likelihoods`).

    Only samples that were read twice count, also for what was lost in writing: in a task of mixed kinds those with answers to rank.

    The interval is that of a mean of paired differences of differences (t, cluster-robust where samples share a cluster, or BCa): an item
    counts 1 where the answer was lost in writing alone, -1 where it was lost by likelihood alone. Raises DataError where the two
    measurements have other samples, or ranked other answers.
    """
    pairs = align([before, after], task)
    rows = [(before.of(task)[name], after.of(task)[name]) for name in pairs.ids]
    if any(not any("choice" in sample.extra for sample in side) for side in zip(*rows, strict=True)):
        return None
    twice = [at for at, row in enumerate(rows) if any("choice" in sample.extra for sample in row)]
    pairs, rows = pairs.only(twice), [rows[at] for at in twice]
    for old, new in rows:
        if _ranked(old) != _ranked(new):
            where = f'task {task}: sample "{old.id}"'
            raise DataError("the two measurements ranked other answers", where=where, then="Measure both on the same task.")
    likeliest = np.array([[sample.extra["choice"]["score"] for sample in row] for row in rows], dtype=float)
    lost = pairs.scores[0] - pairs.scores[1]
    gone = likeliest[:, 0] - likeliest[:, 1]
    return Readings(
        task=task,
        lost=statistics.change(pairs.scores[1], pairs.scores[0], pairs.clusters),
        knowledge=statistics.change(likeliest[:, 1], likeliest[:, 0], pairs.clusters),
        form=_doubled(statistics.change((1 + gone) / 2, (1 + lost) / 2, pairs.clusters)),
    )


def _ranked(sample: Sample) -> int:
    """How many answers were ranked."""
    return len(sample.extra["choice"]["logprobs"]) if "choice" in sample.extra else 0


def _doubled(half: Estimate) -> Estimate:
    """Of halves, which lie in 0..1 as scores do, so that an interval allows for what few changed items leave unseen."""
    return replace(half, value=2 * half.value, low=2 * half.low, high=2 * half.high)
