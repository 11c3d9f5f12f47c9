"""Stages against tasks: the matrix of scores, and what was learned and forgotten, paired by sample. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from selectune.errors import DataError
from selectune.statistics import Estimate, change, score
from selectune.statistics.intervals import Floats, finite_or_none, is_bounded


class Scored(Protocol):
    """One scored sample; `evaluation.Sample` is one."""

    @property
    def task(self) -> str:
        """Which task asked it."""

    @property
    def id(self) -> str:
        """What measurements are paired by."""

    @property
    def cluster(self) -> str:
        """Samples that are not independent, such as questions on one image, share it."""

    @property
    def prompt_digest(self) -> str:
        """Of what went into the model: two samples of one id must have been asked the same."""

    @property
    def score(self) -> float:
        """Higher is better; in [0, 1], or a log-likelihood."""


class Measured(Protocol):
    """What this module needs of a measurement; `evaluation.Measurement` is one."""

    @property
    def stage(self) -> str:
        """When it was taken: "base", or the name of the skill just taught."""

    @property
    def samples(self) -> Sequence[Scored]:
        """One for each record of each task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The scores of one task in two or more measurements, sample by sample."""

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    scores: tuple[Floats, ...]
    """One array for each measurement, [samples]."""

    def only(self, samples: Sequence[int]) -> Pairs:
        """Some of the samples, by their places."""
        rows = list(samples)
        return Pairs(
            ids=tuple(self.ids[at] for at in rows),
            clusters=tuple(self.clusters[at] for at in rows),
            scores=tuple(scores[rows] for scores in self.scores),
        )


def align(measurements: Sequence[Measured], task: str, *, seen: bool = False) -> Pairs:
    """The task's scores of each measurement in the first one's order of samples, whatever the order of the others.

    With `seen` the first may hold a part of the others' samples, as one that stopped early does. Raises DataError where a measurement
    lacks the task, has an id twice, a score that is no finite number, or other ids, prompts or clusters than the first: a sample is never
    compared with another one.
    """
    found = [_of(measurement, task) for measurement in measurements]
    first, name = found[0], measurements[0].stage
    for measurement, samples in zip(measurements[1:], found[1:], strict=True):
        where = f'task {task}: stages "{name}" and "{measurement.stage}"'
        alone = sorted(first.keys() - samples.keys() if seen else first.keys() ^ samples.keys())
        if alone:
            what = f"{len(alone)} sample ids are in one only, such as {alone[0]!r}"
            raise DataError(what, where=where, then="Measure both on the same records.")
        for key, sample in first.items():
            if sample.prompt_digest != samples[key].prompt_digest or sample.cluster != samples[key].cluster:
                raise DataError(f"sample {key!r} was not asked the same in both", where=where, then="Measure both with the same suite.")
    scores = tuple(np.array([samples[key].score for key in first], dtype=np.float64) for samples in found)
    return Pairs(ids=tuple(first), clusters=tuple(sample.cluster for sample in first.values()), scores=scores)


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """Mean scores, stages (rows) by tasks (columns), with 95 % intervals. A cell that was not measured is None, with n = 0."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    scores: tuple[tuple[float | None, ...], ...]
    low: tuple[tuple[float | None, ...], ...]
    """Ends of each cell's own interval (not of a change); None also where the data bound nothing."""
    high: tuple[tuple[float | None, ...], ...]
    n: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """`{"rows", "columns", "scores", "low", "high", "n"}`, the grids as lists of rows."""
        grids = {name: [list(row) for row in getattr(self, name)] for name in ("scores", "low", "high", "n")}
        return {"rows": list(self.rows), "columns": list(self.columns), **grids}


def matrix(measurements: Sequence[Measured]) -> Matrix:
    """One row for each measurement, in their order; one column for each task, in the order in which tasks first occur.

    Raises DataError for no measurement, two of one stage, or a task with one sample id twice.
    """
    _check_stages(measurements)
    columns = tuple(dict.fromkeys(sample.task for measurement in measurements for sample in measurement.samples))
    cells = [[_cell(measurement, task) for task in columns] for measurement in measurements]

    def grid(read: Callable[[Estimate], float | None]) -> tuple[tuple[float | None, ...], ...]:
        return tuple(tuple(None if cell is None else read(cell) for cell in row) for row in cells)

    return Matrix(
        rows=tuple(measurement.stage for measurement in measurements),
        columns=columns,
        scores=grid(lambda cell: cell.value),
        low=grid(lambda cell: finite_or_none(cell.low)),
        high=grid(lambda cell: finite_or_none(cell.high)),
        n=tuple(tuple(0 if cell is None else cell.n for cell in row) for row in cells),
    )


def metrics(measurements: Sequence[Measured], targets: Sequence[str], held_out: Sequence[str]) -> dict[str, Estimate]:
    """What was learned and forgotten, with 95 % intervals; measurement 0 is the base and measurement k was taken after target k, T in all.

    With a(s, t) the mean score of task t after stage s, all in the unit of the scores (shares; a negative forgetting is a loss):

    ===================== =====================================================================
    target_learning       mean over t of a(t, t) - a(0, t)
    target_forgetting     mean over t < T of a(T, t) - a(t, t); absent with one target: it has no terms
    target_overall        mean over t of a(T, t) - a(0, t)
    held_out_forgetting   mean over h of a(T, h) - a(0, h)
    worst_stage           the least over stages s >= 1 of the mean over h of a(s, h) - a(0, h); `label` is the stage
    worst_task            the least over h of a(T, h) - a(0, h); `label` is the task
    held_out_area         mean over h of the area under a(s, h) - a(0, h), s = 0..T by the trapezoid rule, over T
    ===================== =====================================================================

    Only tasks whose scores all lie in 0..1 enter the means. Any other, such as a perplexity's log-likelihoods, is never averaged with
    accuracies: it is reported by itself in its own unit, as `target_learning.TASK`, `target_overall.TASK` or `held_out_forgetting.TASK`. A
    metric without a term is absent, never 0.

    Each term is the mean of differences paired by sample (`statistics.change`, clusters respected). A mean over tasks adds their
    variances, as separate tasks are independent, by the distances of each term's ends from its value (MOVER: Zou and Donner 2008, Stat.
    Med. 27:1693), so that one term keeps its own interval and a silent task is not called certain. `worst_*` are chosen among k, so their
    intervals are at 1 - 0.05/k each. Measurements after the last target, such as one after a recovery, take no part.

    Raises DataError for fewer than T + 1 measurements, no target, two of one stage, or samples that do not pair (`align`).
    """
    stages = taught_stages(measurements, targets)
    taught = {task: align(stages, task) for task in targets}
    kept = {task: align(stages, task) for task in held_out}
    last = len(targets)
    when = {task: k for k, task in enumerate(targets, start=1)}
    found: dict[str, Estimate | None] = {
        "target_learning": _mean([_change(pairs, 0, when[task]) for task, pairs in _shares(taught).items()]),
        "target_forgetting": _mean([_change(pairs, when[task], last) for task, pairs in _shares(taught).items() if when[task] < last]),
        "target_overall": _mean([_change(pairs, 0, last) for pairs in _shares(taught).values()]),
        "held_out_forgetting": _mean([_change(pairs, 0, last) for pairs in _shares(kept).values()]),
        "worst_stage": _worst_stage(_shares(kept), [stage.stage for stage in stages]),
        "worst_task": _worst_task(_shares(kept), last),
        "held_out_area": _mean([_area(pairs) for pairs in _shares(kept).values()]),
    }
    for task in taught.keys() - _shares(taught).keys():
        found[f"target_learning.{task}"] = _change(taught[task], 0, when[task])
        found[f"target_overall.{task}"] = _change(taught[task], 0, last)
    for task in kept.keys() - _shares(kept).keys():
        found[f"held_out_forgetting.{task}"] = _change(kept[task], 0, last)
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _check_stages(measurements: Sequence[Measured]) -> None:
    names = [measurement.stage for measurement in measurements]
    if not names:
        raise DataError("no measurement", then="Measure the base first.")
    twice = sorted(name for name in set(names) if names.count(name) > 1)
    if twice:
        raise DataError(f'two measurements of stage "{twice[0]}"', then="Give every stage a name of its own.")


def taught_stages(measurements: Sequence[Measured], targets: Sequence[str]) -> Sequence[Measured]:
    """The base's measurement and the one after each target. Raises DataError where one is missing, or two have one stage."""
    _check_stages(measurements)
    if not targets or len(set(targets)) != len(targets):
        raise DataError(f"targets {list(targets)}", then="Name each skill that was taught once, in order.")
    if len(measurements) <= len(targets):
        what = f"{len(measurements)} measurements for {len(targets)} targets"
        raise DataError(what, then="Give the base's and one after each target, in order.")
    return measurements[: len(targets) + 1]


def _of(measurement: Measured, task: str) -> Mapping[str, Scored]:
    samples = [sample for sample in measurement.samples if sample.task == task]
    by_id = {sample.id: sample for sample in samples}
    where = f'stage "{measurement.stage}"'
    if not samples:
        raise DataError(f'task "{task}" was not measured', where=where, then="Measure it, or take it out of the plan.")
    if len(by_id) < len(samples):
        what = f'task "{task}" has {len(samples) - len(by_id)} sample ids twice'
        raise DataError(what, where=where, then="Give every record an id of its own.")
    for sample in samples:
        if not math.isfinite(sample.score):
            what = f'sample "{sample.id}" of task "{task}" has the score {sample.score}'
            raise DataError(what, where=where, then="Check the model's weights and the scorer.")
    return by_id


def _cell(measurement: Measured, task: str) -> Estimate | None:
    if not any(sample.task == task for sample in measurement.samples):
        return None
    samples = _of(measurement, task).values()
    return score([sample.score for sample in samples], clusters=[sample.cluster for sample in samples])


def _shares(tasks: Mapping[str, Pairs]) -> dict[str, Pairs]:
    return {task: pairs for task, pairs in tasks.items() if all(is_bounded(scores) for scores in pairs.scores)}


def _change(pairs: Pairs, before: int, after: int, *, level: float = 0.95) -> Estimate:
    return change(pairs.scores[before], pairs.scores[after], pairs.clusters, level=level)


def _area(pairs: Pairs) -> Estimate:
    curve = np.mean([(left + right) / 2 for left, right in pairwise(pairs.scores)], axis=0)
    # Rounding must not push a share out of 0..1: it would be taken for another kind of score.
    return change(pairs.scores[0], np.clip(curve, 0.0, 1.0), pairs.clusters)


def _mean(terms: Sequence[Estimate]) -> Estimate | None:
    if not terms:
        return None
    if len(terms) == 1:
        return terms[0]
    count = len(terms)
    value = math.fsum(term.value for term in terms) / count
    below = math.sqrt(math.fsum((term.value - term.low) ** 2 for term in terms)) / count
    above = math.sqrt(math.fsum((term.high - term.value) ** 2 for term in terms)) / count
    low, high = max(-1.0, value - below), min(1.0, value + above)
    return Estimate(value=value, low=low, high=high, n=sum(term.n for term in terms), method=f"paired, MOVER over {count} tasks")


def _worst_stage(kept: Mapping[str, Pairs], names: Sequence[str]) -> Estimate | None:
    level = 1 - 0.05 / (len(names) - 1)
    found = [(name, _mean([_change(pairs, 0, k, level=level) for pairs in kept.values()])) for k, name in enumerate(names) if k]
    return _least([(name, estimate) for name, estimate in found if estimate is not None])


def _worst_task(kept: Mapping[str, Pairs], last: int) -> Estimate | None:
    return _least([(name, _change(pairs, 0, last, level=1 - 0.05 / len(kept))) for name, pairs in kept.items()])


def _least(found: Sequence[tuple[str, Estimate]]) -> Estimate | None:
    if not found:
        return None
    name, least = min(found, key=lambda pair: pair[1].value)
    method = f"{name}, the worst of {len(found)}; interval at {1 - 0.05 / len(found):.1%}; {least.method}"
    return Estimate(value=least.value, low=least.low, high=least.high, n=least.n, method=method, label=name)
