"""Two measurements side by side, paired by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from selectune import statistics
from selectune.errors import DataError, SameModel
from selectune.evaluation import Measurement
from selectune.evaluation.matrix import Pairs, align
from selectune.evaluation.noise import noise_floor
from selectune.evaluation.readings import Readings, readings
from selectune.pipeline.changed import by_score, changed
from selectune.reporting.comparison import ComparedTask, ComparisonPage
from selectune.statistics.intervals import finite_or_none
from selectune.statistics.several import Correction

if TYPE_CHECKING:
    from selectune.evaluation import Suite
    from selectune.statistics import Estimate

ALPHA = 0.05
"""An adjusted p value up to this shows a change."""
SHOWN = 200
"""Samples of each task and way on a page; the counts beside them are of all."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One task in two measurements."""

    task: str
    kind: str
    before: float
    after: float
    value: float
    """Mean of after minus before, paired by sample."""
    low: float | None
    """Ends of its own 95 % interval, not widened for the other tasks; None where the data bound nothing."""
    high: float | None
    p_value: float
    """Two-sided, that nothing changed, as if this were the only task."""
    adjusted: float
    """The same, corrected for all the tasks that were compared."""
    correction: Correction
    gained: tuple[str, ...]
    """Ids of the samples whose score rose."""
    lost: tuple[str, ...]
    """Ids of those whose score fell."""
    n: int
    method: str
    same_outputs: bool
    """Whether every output is the same in both, letter by letter: was B's update applied at all?"""
    noise: float | None = None
    """Mean distance of a sample's scores in two measurements of A; None where it was measured once."""
    second: Readings | None = None
    """How much of a loss is a shift of format or answers; None where samples were not read twice."""

    @property
    def worse(self) -> bool:
        """Whether B is surely worse: it lost, and the adjusted p value is at most 0.05."""
        return self.value < 0 and self.adjusted <= ALPHA

    @property
    def within_noise(self) -> bool | None:
        """Whether a loss is no larger than what A's own scores do with no update; None without a loss or a noise floor."""
        return None if self.noise is None or self.value >= 0 else -self.value <= self.noise

    def to_json(self) -> dict[str, Any]:
        """All fields, `worse` and `within_noise`."""
        body = asdict(self) | {"gained": len(self.gained), "lost": len(self.lost)}
        items = {"gained": list(self.gained), "lost": list(self.lost)}
        body["second"] = None if self.second is None else self.second.to_json()
        return body | {"items": items, "worse": self.worse, "within_noise": self.within_noise}


def compare(
    before: Measurement, after: Measurement, *, correction: Correction = "holm", again: Measurement | None = None
) -> Sequence[Comparison]:
    """Every task that both hold, paired by sample id, whatever the order of the files.

    With several tasks some seem worse by chance. ``holm`` bounds the chance that any of those called worse is not, for what blocks a
    release; ``benjamini-hochberg`` bounds the share of false ones among them, for dashboards. `again` is a second measurement of the model
    of `before` with another batch, for the noise floor.

    Raises SameModel where both are of one model, DataError where they share no task, or a task's samples are not the same in both.
    """
    if before.model_id == after.model_id:
        what = f'"{before.stage}" and "{after.stage}" are of the same weights ({before.model_id[:12]}): there is no update to compare'
        then = "Give the updated model's measurement. How far one model differs from itself is the noise floor: compare A B --again A2."
        raise SameModel(what, where="compare", then=then)
    tasks = [task for task in before.tasks if task in after.tasks]
    if not tasks:
        raise DataError(
            f"{', '.join(before.tasks)} and {', '.join(after.tasks)} have no task in common",
            where="compare",
            then="Measure the same suite.",
        )
    pairs = {task: align([before, after], task) for task in tasks}
    p_values = [statistics.p_value_of_change(pair.scores[0], pair.scores[1], pair.clusters) for pair in pairs.values()]
    adjusted = statistics.adjusted(p_values, correction)
    noise = {} if again is None else noise_floor(before, again)
    return [
        _comparison(before, after, pair, (task, p_value, corrected), correction, noise.get(task))
        for (task, pair), p_value, corrected in zip(pairs.items(), p_values, adjusted, strict=True)
    ]


def _comparison(
    before: Measurement, after: Measurement, pair: Pairs, tested: tuple[str, float, float], correction: Correction, noise: Estimate | None
) -> Comparison:
    """One task's; `tested` is its name with its p value, plain and adjusted."""
    task, p_value, adjusted = tested
    kind = before.kinds.get(task, "generate")
    change = statistics.change(pair.scores[0], pair.scores[1], pair.clusters)
    moved = dict(zip(pair.ids, pair.scores[1] - pair.scores[0], strict=True))
    new = after.of(task)
    return Comparison(
        task=task,
        kind=kind,
        before=float(pair.scores[0].mean()),
        after=float(pair.scores[1].mean()),
        value=change.value,
        low=finite_or_none(change.low),
        high=finite_or_none(change.high),
        p_value=p_value,
        adjusted=adjusted,
        correction=correction,
        gained=tuple(name for name, rise in moved.items() if rise > 0),
        lost=tuple(name for name, rise in moved.items() if rise < 0),
        n=change.n,
        method=change.method,
        same_outputs=kind != "perplexity" and all(sample.output == new[name].output for name, sample in before.of(task).items()),
        noise=None if noise is None else noise.value,
        second=readings(before, after, task),
    )


def warnings(rows: Sequence[Comparison]) -> list[str]:
    """What a reader must know of a comparison: tasks on which not one letter changed."""
    return [f"{row.task}: every output is the same in both, letter by letter; was the update applied?" for row in rows if row.same_outputs]


def page(
    before: Measurement, after: Measurement, rows: Sequence[Comparison], suite: Suite | None = None, *, notes: Sequence[str] = ()
) -> ComparisonPage:
    """What the page of lost and gained samples shows; pictures and questions come from the records of `suite`, where that is given.

    `notes`: what else a reader must know.
    """
    records: Mapping[str, Mapping[str, Any]] = {
        task.name: {record.id: record for record in task.records} for task in (suite.tasks if suite else ())
    }
    changes = []
    for row in rows:
        known = records.get(row.task)
        if known is not None and (unknown := [name for name in (*row.gained, *row.lost) if name not in known]):
            what = f'the recipe has no record "{unknown[0]}", which was measured'
            raise DataError(what, where=f"task {row.task}", then="Give the recipe that both were measured with.")
        if row.kind != "perplexity":
            changes += changed(row.task, before, after, by_score, records=known, most=SHOWN)
    return ComparisonPage(
        before=before.stage,
        after=after.stage,
        models=(before.model_id, after.model_id),
        correction=rows[0].correction,
        tasks=tuple(ComparedTask.model_validate(row.to_json() | {"items": None}) for row in rows),
        changes=tuple(changes),
        notes=(*notes, *warnings(rows), *(str(row.second) for row in rows if row.second is not None)),
    )
