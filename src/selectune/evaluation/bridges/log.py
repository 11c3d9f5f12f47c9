"""What another evaluator logged, and the measurement that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selectune.errors import DataError, NoMatch
from selectune.evaluation.measurement import Measurement, Sample
from selectune.evaluation.suite import Kind
from selectune.hashing import digest

EVERY_TASK = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample of one task as another evaluator logged it."""

    task: str
    id: str
    cluster: str
    prompt: str
    output: str
    reference: str
    metrics: Mapping[str, Any]
    """By the evaluator's own names, as it wrote them."""
    place: str
    """The file and what in it, for messages."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """JSON that tells, beside the prompt and the reference, whether two samples asked the same: pictures, options."""

    @property
    def prompt_digest(self) -> str:
        """Identity of what was asked."""
        return digest("foreign prompt", {"prompt": self.prompt, "reference": self.reference, **self.asked})


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """Every sample of one evaluation by another evaluator."""

    rows: tuple[Row, ...]
    evaluator: str
    """Its name and version."""
    model: str
    """What it called the model."""
    kinds: Mapping[str, Kind]
    """By task; ``generate`` where the evaluator does not say."""
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in the log's order."""
        return tuple(dict.fromkeys(row.task for row in self.rows))


def measured(log: Log, *, stage: str, metrics: Sequence[str] = (), model_id: str | None = None) -> Measurement:
    """A measurement that `compare` and the gates take, paired by the evaluator's own sample ids.

    `metrics` names the metric to go by, ``NAME`` for every task that has it or ``TASK=NAME`` for one; a task with a single metric needs
    none. `model_id` is the id of the weights that were evaluated; no log says it, and without it the id is that of the log and `stage`,
    which no other has: whether two such measurements are of equal weights cannot be told.

    Raises DataError for an empty log, two samples of one task with one id, a metric that is no number in [0, 1] (its name and the sample
    are told), and a task with several metrics of which none was named; NoMatch for a metric or a task that is not there.
    """
    if not log.rows:
        raise DataError("it holds no sample", where=f"log of {log.evaluator}", then="Evaluate at least one, with samples logged.")
    wanted = _wanted(metrics, log)
    chosen = {task: _metric(task, [row for row in log.rows if row.task == task], wanted) for task in log.tasks}
    _check_once(log.rows)
    samples = tuple(_sample(row, chosen[row.task]) for row in log.rows)
    about = {"evaluator": log.evaluator, "model": log.model, **log.environment}
    if model_id is None:
        about["weights"] = "not known: the model's id is that of this log"
    asked = [[task, chosen[task], sorted([one.id, one.prompt_digest] for one in samples if one.task == task)] for task in sorted(log.tasks)]
    return Measurement(
        stage=stage,
        model_id=model_id or _unknown(log, stage, samples),
        suite=digest("foreign suite", [log.evaluator.split()[0], asked]),
        samples=samples,
        seconds=log.seconds,
        kinds={task: log.kinds.get(task, "generate") for task in log.tasks},
        environment=about,
    )


def _unknown(log: Log, stage: str, samples: Sequence[Sample]) -> str:
    """An id for weights of which nothing is known."""
    told = [[one.task, one.id, one.output, one.score] for one in samples]
    return digest("foreign log", [log.evaluator, log.model, log.seconds, stage, told])


def _wanted(metrics: Sequence[str], log: Log) -> dict[str, str]:
    found = {}
    for text in metrics:
        task, equals, name = text.partition("=")
        if not equals:
            task, name = EVERY_TASK, text
        elif task not in log.tasks:
            raise NoMatch(f'"{task}" is no task of the log', where=f'metric "{text}"', then=f"It has: {', '.join(log.tasks)}.")
        found[task] = name
    return found


def _metric(task: str, rows: Sequence[Row], wanted: Mapping[str, str]) -> str:
    """The metric that a task goes by: one that every row has as a number."""
    named = wanted.get(task, wanted.get(EVERY_TASK))
    shared = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    there = [name for name in shared if all(_number(row.metrics[name]) is not None for row in rows)]
    then = f"Name one with --metric {task}=NAME: {', '.join(there)}."
    if named is not None and named in shared:
        return named
    if named is not None and (task in wanted or len(there) != 1):
        raise NoMatch(f'the metric "{named}" is not in every sample', where=f"task {task}", then=then)
    if not there:
        told = ", ".join(shared) or "none at all"
        raise DataError(f"no metric of it is a number in every sample ({told})", where=f"task {task}", then="Log a metric in [0, 1].")
    if len(there) > 1:
        raise DataError(f"it has the metrics {', '.join(there)}", where=f"task {task}", then=then)
    return there[0]


def _number(value: Any) -> float | None:
    """A metric's value: a number or a truth value, or the ``score`` of what lmms-eval's tasks hand to their aggregation."""
    if isinstance(value, dict):
        value = value.get("score")
    return float(value) if isinstance(value, bool | int | float) else None


def _check_once(rows: Sequence[Row]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for row in rows:
        before = seen.setdefault((row.task, row.id), row.place)
        if before != row.place:
            what = f'sample "{row.id}" of task {row.task} is there twice, first in {before}'
            raise DataError(what, where=row.place, then="Give the files of one evaluation alone, each once.")


def _sample(row: Row, metric: str) -> Sample:
    score = _number(row.metrics[metric])
    if score is None or not 0 <= score <= 1:
        what = f'the metric "{metric}" of sample "{row.id}" is {str(row.metrics[metric])[:80]}, no number in 0 to 1'
        raise DataError(what, where=row.place, then="Name another metric with --metric, or scale it to a share.")
    return Sample(
        task=row.task,
        id=row.id,
        cluster=row.cluster,
        prompt_digest=row.prompt_digest,
        output=row.output,
        reference=row.reference,
        score=score,
        extra={"metric": metric, "prompt": row.prompt},
    )
