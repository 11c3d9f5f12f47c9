"""Another scorer for outputs that were measured already: nothing is asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectune.errors import DataError
from selectune.evaluation.scorers import scorer
from selectune.evaluation.suite import score

if TYPE_CHECKING:
    from selectune.evaluation.measurement import Measurement
    from selectune.evaluation.suite import Task


def rescore(measurement: Measurement, task: Task, name: str) -> dict[str, float]:
    """Record id to score by the scorer `name`, for a task that was measured by another.

    Raises NoMatch where the task was not measured or the scorer is unknown, and DataError for a measurement of other records, for a task
    that writes nothing, and for an answer that the scorer cannot read.
    """
    samples = measurement.of(task.name)
    where = f"task {task.name}"
    if task.kind not in ("generate", "caption"):
        raise DataError(f"a task of kind {task.kind} writes nothing to score", where=where, then="Use a task of kind generate.")
    if set(samples) != {record.id for record in task.records}:
        raise DataError("the measurement is of other records", where=where, then="Measure the task as it is now.")
    judge = scorer(name, task.references)
    return {record.id: score(judge, record, samples[record.id].output, where=where) for record in task.records}
