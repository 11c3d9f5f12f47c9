"""Learning and forgetting over several runs of one recipe that differ in their seeds, by a hierarchical bootstrap. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from selectune.errors import DataError, InputError
from selectune.evaluation.matrix import Matrix, Measured, align, taught_stages
from selectune.statistics import Estimate
from selectune.statistics.intervals import Codes, Floats, checked, is_bounded

DRAWS = 4000
_AT_ONCE = 200
"""Draws made together: [draws, runs, stages, tasks] of float64 stays small."""

Curve = Callable[[Floats], Floats]
"""A metric from mean scores [..., stages, tasks] to [...]."""
_Metric = tuple[Curve, list[str], float, str | None]
"""A curve, the tasks in it, the level of its interval, and its label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """One task in every run and stage."""

    name: str
    scores: Floats
    """[runs, stages, items]"""
    codes: Codes
    """The cluster of each item."""


def forgetting(
    runs: Sequence[Sequence[Measured]], targets: Sequence[str], held_out: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimate]:
    """What was learned and forgotten on average over runs, with 95 % intervals; each run is the base and one measurement after each target.

    With a(s, t) the mean score of task t after stage s of T, the average over the runs of

    ===================== ====================================================================================
    target_learning       mean over targets t of a(t, t) - a(0, t)
    backward_transfer     mean over targets t < T of a(T, t) - a(t, t): what later lessons did to earlier ones
    forgetting_from_best  mean over targets t < T of a(T, t) - max over t <= s <= T of a(s, t); at most 0
    target_overall        mean over targets t of a(T, t) - a(0, t)
    held_out_forgetting   mean over held-out tasks h of a(T, h) - a(0, h)
    worst_stage           the least over stages s >= 1 of the mean over h of a(s, h) - a(0, h); `label` is the stage
    held_out_area         mean over h of the area under a(s, h) - a(0, h), s = 0..T by the trapezoid rule, over T
    ===================== ====================================================================================

    The names are those of `matrix.metrics`, whose target_forgetting is the backward transfer.

    Bootstrap: runs are drawn, then clusters, then items within each drawn cluster. Every run is asked the same items, so that one draw of
    items serves all runs of a draw; the spread of the drawn runs is widened by sqrt(R/(R-1)), as R runs show too little of it. One run
    has no spread between runs in its interval, and the method says so. `worst_stage` is the stage that is worst in the mean of all runs,
    at the level 1 - 0.05/T; `n` counts items. Forgetting by a maximum is biased downwards by noise; backward transfer is not.

    A metric without a term is absent, as are tasks whose scores are not in 0..1. Sources: Chaudhry et al. (2018), ECCV (forgetting);
    Lopez-Paz and Ranzato (2017), NeurIPS (backward transfer); Owen (2007), Ann. Appl. Stat. 1:386 (crossed draws).

    Raises DataError for no run, runs that were not asked the same, or too few measurements, InputError for fewer than 100 draws.
    """
    stages = [taught_stages(run, targets) for run in runs]
    names = _checked(stages, draws)
    found = {name: _task(stages, name) for name in dict.fromkeys([*targets, *held_out])}
    tasks = {name: task for name, task in found.items() if is_bounded(task.scores.ravel())}
    metrics = _metrics(list(tasks), list(targets), list(held_out), names)
    if not metrics:
        return {}
    return _with_the_worst(_estimates(metrics, tasks, draws, seed))


def _estimates(metrics: Mapping[str, _Metric], tasks: Mapping[str, _Task], draws: int, seed: int) -> dict[str, Estimate]:
    """Each metric with the interval of its draws."""
    means = np.stack([task.scores.mean(axis=2) for task in tasks.values()], axis=-1)
    drawn = _drawn(list(tasks.values()), draws, np.random.default_rng(seed))
    found = {}
    for name, (curve, members, level, label) in metrics.items():
        low, high = _ends(curve(drawn), level, seed)
        value = float(curve(means).mean())
        found[name] = Estimate(
            value=value,
            low=min(low, value),
            high=max(high, value),
            n=sum(tasks[task].scores.shape[2] for task in members),
            method=_words(len(means), draws, level),
            label=label,
        )
    return found


def matrix_over(runs: Sequence[Sequence[Measured]], tasks: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> Matrix:
    """The matrix of several runs: mean scores over the runs, with the 95 % intervals of the same bootstrap. Raises as `forgetting` does."""
    rows = _checked(runs, draws)
    found = [_task(runs, name) for name in tasks]
    drawn = _drawn(found, draws, np.random.default_rng(seed))
    means = np.stack([task.scores.mean(axis=(0, 2)) for task in found], axis=-1)
    ends = np.array([[_ends(drawn[:, :, row, column], 0.95, seed) for column in range(len(tasks))] for row in range(len(rows))])
    # The spread between runs is widened about the mean, past the ends of a scale that has any; log-likelihoods have none above or below.
    for column, task in enumerate(found):
        if task.scores.min() >= 0.0 and task.scores.max() <= 1.0:
            ends[:, column] = ends[:, column].clip(0.0, 1.0)

    def grid(numbers: Floats) -> tuple[tuple[float | None, ...], ...]:
        return tuple(tuple(float(number) for number in row) for row in numbers)

    return Matrix(
        rows=rows,
        columns=tuple(tasks),
        scores=grid(means),
        low=grid(np.minimum(ends[..., 0], means)),
        high=grid(np.maximum(ends[..., 1], means)),
        n=tuple(tuple(task.scores.shape[2] for task in found) for _ in rows),
    )


def _checked(runs: Sequence[Sequence[Measured]], draws: int) -> tuple[str, ...]:
    """The stages that all runs have."""
    if not runs:
        raise DataError("no run", then="Give the measurements of one run or more, the base first.")
    if draws < 100:
        raise InputError(f"{draws} draws", then="Make 100 or more; intervals need some thousand.")
    names = {tuple(measurement.stage for measurement in run): None for run in runs}
    if len(names) > 1:
        raise DataError(f"runs of other stages: {'; '.join(', '.join(one) for one in names)}", then="Give runs of one recipe.")
    return next(iter(names))


def _ends(values: Floats, level: float, seed: int) -> tuple[float, float]:
    """The percentile ends of a metric's draws, [draws, runs]."""
    low, high = np.quantile(_over_runs(values, np.random.default_rng(seed + 1)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _task(stages: Sequence[Sequence[Measured]], name: str) -> _Task:
    pairs = align([measurement for run in stages for measurement in run], name)
    scores = np.stack(pairs.scores).reshape(len(stages), len(stages[0]), -1)
    return _Task(name=name, scores=scores, codes=checked(pairs.scores[0], pairs.clusters)[1])


def _metrics(tasks: list[str], targets: list[str], held_out: list[str], stages: tuple[str, ...]) -> dict[str, _Metric]:
    """Name to the metric, its tasks, the level of its interval, and a label; one entry for each stage that may be the worst."""
    last = len(targets)
    when = {task: k for k, task in enumerate(targets, start=1) if task in tasks}
    earlier = {task: k for task, k in when.items() if k < last}
    kept = [task for task in held_out if task in tasks]
    column = {task: index for index, task in enumerate(tasks)}

    def mean(terms: Sequence[Curve]) -> Curve:
        return lambda a: np.mean([term(a) for term in terms], axis=0)

    def less(task: str, after: int, before: int) -> Curve:
        return lambda a: a[..., after, column[task]] - a[..., before, column[task]]

    def best(task: str, since: int) -> Curve:
        return lambda a: a[..., last, column[task]] - a[..., since:, column[task]].max(axis=-1)

    def area(task: str) -> Curve:
        weights = np.bincount([s for pair in pairwise(range(last + 1)) for s in pair]) / (2 * last)
        return lambda a: a[..., column[task]] @ weights - a[..., 0, column[task]]

    found: dict[str, _Metric] = {}
    if when:
        found["target_learning"] = (mean([less(task, k, 0) for task, k in when.items()]), list(when), 0.95, None)
    if earlier:
        found["backward_transfer"] = (mean([less(task, last, k) for task, k in earlier.items()]), list(earlier), 0.95, None)
        found["forgetting_from_best"] = (mean([best(task, k) for task, k in earlier.items()]), list(earlier), 0.95, None)
    if when:
        found["target_overall"] = (mean([less(task, last, 0) for task in when]), list(when), 0.95, None)
    if kept:
        found["held_out_forgetting"] = (mean([less(task, last, 0) for task in kept]), kept, 0.95, None)
        for k, stage in enumerate(stages[1:], start=1):
            found[f"{_WORST}.{stage}"] = (mean([less(task, k, 0) for task in kept]), kept, 1 - 0.05 / last, stage)
        found["held_out_area"] = (mean([area(task) for task in kept]), kept, 0.95, None)
    return found


_WORST = "worst_stage"


def _with_the_worst(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The metrics with the least of the stages in place of all of them."""
    candidates = [name for name in estimates if name.startswith(f"{_WORST}.")]
    worst = min(candidates, key=lambda name: estimates[name].value, default="")
    return {_WORST if name == worst else name: found for name, found in estimates.items() if name == worst or name not in candidates}


def _drawn(tasks: Sequence[_Task], draws: int, rng: np.random.Generator) -> Floats:
    """Mean scores of every draw of clusters and items, [draws, runs, stages, tasks]."""
    found = np.empty((draws, *tasks[0].scores.shape[:2], len(tasks)))
    for index, task in enumerate(tasks):
        runs, stages, items = task.scores.shape
        flat = task.scores.reshape(-1, items)
        for start in range(0, draws, _AT_ONCE):
            weights = _weights(task.codes, min(_AT_ONCE, draws - start), rng)
            means = (weights @ flat.T) / weights.sum(axis=1, keepdims=True)
            found[start : start + len(weights), ..., index] = means.reshape(-1, runs, stages)
    return found


def _weights(codes: Codes, draws: int, rng: np.random.Generator) -> Floats:
    """How often each item is drawn, [draws, items]: clusters with replacement, then as many items of each drawn cluster as it has."""
    sizes = np.bincount(codes)
    groups = len(sizes)
    clusters = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)
    if sizes.max() == 1:
        return clusters[:, codes].astype(np.float64)
    found = np.zeros((draws, len(codes)))
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        items = np.stack([np.flatnonzero(codes == group) for group in members])
        taken = rng.multinomial(clusters[:, members] * size, np.full(size, 1 / size))
        found[:, items.ravel()] = taken.reshape(draws, -1)
    return found


def _over_runs(values: Floats, rng: np.random.Generator) -> Floats:
    """Means over drawn runs, one for each draw of items; `values` is [draws, runs]."""
    draws, runs = values.shape
    centre: Floats = values.mean(axis=1)
    if runs == 1:
        return centre
    picked = np.take_along_axis(values, rng.integers(0, runs, size=(draws, runs)), axis=1).mean(axis=1)
    found: Floats = centre + np.sqrt(runs / (runs - 1)) * (picked - centre)
    return found


def _words(runs: int, draws: int, level: float) -> str:
    over = f"{runs} runs, clusters, items" if runs > 1 else "clusters, items; one run, so nothing of the spread between runs"
    at = "" if level == 0.95 else f"; interval at {level:.1%}"
    return f"hierarchical bootstrap, {draws} draws: {over}{at}"
