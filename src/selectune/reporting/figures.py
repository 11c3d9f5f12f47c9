"""The report's figures, each made from results by one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selectune.reporting import wording
from selectune.reporting.charts import Axis, Panel, Point, Series, name_axis, panel, thin, value_axis
from selectune.reporting.measured import Difference
from selectune.reporting.outcome import HELD_OUT, LEARNING, held_out_mean, interval_words, last_row
from selectune.reporting.result import RunResult
from selectune.reporting.trained import Phase, StepPoint

Results = Sequence[RunResult]


def trade_off(results: Results) -> Panel | None:
    """Target learning over held-out forgetting, one point a recipe with both intervals; None if nothing has both."""
    series = []
    for style, result in enumerate(results):
        learned, kept = result.metrics.get(LEARNING), result.metrics.get(HELD_OUT)
        if learned is None or kept is None or learned.value is None or kept.value is None:
            continue
        point = Point(
            x=kept.value,
            y=learned.value,
            x_low=kept.low,
            x_high=kept.high,
            y_low=learned.low,
            y_high=learned.high,
            label=result.name,
            title=f"{result.name}: learning {interval_words(learned)}; held-out {interval_words(kept)}",
        )
        series.append(Series(name=result.name, style=style, points=(point,), line=False))
    if not series:
        return None
    points = [one.points[0] for one in series]
    x = value_axis(
        "held-out forgetting, points", [v for p in points for v in (p.x, p.x_low, p.x_high)], zero=True, percent=True, signed=True
    )
    y = value_axis("target learning, points", [v for p in points for v in (p.y, p.y_low, p.y_high)], zero=True, percent=True, signed=True)
    return panel("Learning against forgetting", series, x, y, size=(520.0, 420.0))


def change_from_base(results: Results) -> Panel | None:
    """Change of each task from the base to the last skill's stage, with intervals paired by sample; None without differences."""
    tasks = [task.name for task in results[0].tasks if task.kind != "perplexity"] if results else []
    tasks = [name for name in tasks if any(final_difference(result, name) for result in results)]
    if not tasks:
        return None
    series, ends = [], []
    spread = 0.5 / max(1, len(results))
    for style, result in enumerate(results):
        points = []
        for row, name in enumerate(tasks):
            found = final_difference(result, name)
            if found is None or found.value is None:
                continue
            at = len(tasks) - 1 - row + ((len(results) - 1) / 2 - style) * spread
            title = f"{result.name}, {name}: {wording.points(found.value)} points ({wording.points_range(found.low, found.high)})"
            points.append(Point(x=found.value, y=at, x_low=found.low, x_high=found.high, title=title))
            ends += [found.value, found.low, found.high]
        series.append(Series(name=result.name, style=style, points=tuple(points), line=False))
    x = value_axis("change from the base, points", ends, zero=True, percent=True, signed=True)
    y = name_axis("", list(reversed(tasks)), grid=True)
    return panel("Change from the base", series, x, y, size=(500.0, 64.0 + 48.0 * len(tasks)), left=104.0)


def final_difference(result: RunResult, task: str) -> Difference | None:
    """The paired change of `task` from the base to the end of the last skill, if the run measured one."""
    base, last = result.matrix.rows[0], last_row(result)
    for one in result.differences:
        if (one.task, one.against, one.stage) == (task, base, last):
            return one
    return None


def number_panels(results: Results) -> tuple[Panel, Panel] | None:
    """Held-out accuracy above, number probability below, by stage on the same axis; None if no recipe was probed."""
    names = stages(results)
    if not any(result.probes.numbers for result in results):
        return None
    spread = 0.12
    upper, lower, shares, chances = [], [], [], []
    for style, result in enumerate(results):
        shift = (style - (len(results) - 1) / 2) * spread
        held, numbers = [], []
        for index, stage in enumerate(names):
            if stage in result.matrix.rows:
                mean = held_out_mean(result, stage)
                if mean.value is not None:
                    title = f"{result.name}, {stage}: {wording.share(mean.value)}"
                    held.append(Point(x=index + shift, y=mean.value, y_low=mean.low, y_high=mean.high, title=title))
                    shares += [mean.value, mean.low, mean.high]
            for read in result.probes.numbers:
                if read.stage == stage and read.mean is not None:
                    title = f"{result.name}, {stage}: {wording.probability(read.mean)}"
                    numbers.append(Point(x=index + shift, y=read.mean, y_low=read.low, y_high=read.high, title=title))
                    chances += [read.mean, read.low, read.high]
        upper.append(Series(name=result.name, style=style, points=tuple(held)))
        lower.append(Series(name=result.name, style=style, points=tuple(numbers)))
    x = name_axis("stage", names)
    top = panel("Held-out accuracy", upper, x, value_axis("mean held-out score, %", shares, zero=True, percent=True))
    return top, panel("Number probability in captions", lower, x, value_axis("probability of number tokens", chances, zero=True))


def stages(results: Results) -> list[str]:
    """Every stage of any recipe's matrix, in order."""
    names: list[str] = []
    for result in results:
        names += [row for row in result.matrix.rows if row not in names]
    return names


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFigure:
    """The curves of one phase, recipes together."""

    name: str
    kind: str
    panels: tuple[Panel, ...]


def training(results: Results) -> tuple[TrainingFigure, ...]:
    """Loss, learning rate and gradient norm by step for each phase, and the quick curves where there are some."""
    phases = [(style, result.name, phase) for style, result in enumerate(results) for phase in every_phase(result)]
    names: dict[tuple[str, str], None] = {}
    for _, _, phase in phases:
        names.setdefault((phase.name, phase.kind))
    figures = []
    for name, kind in names:
        chosen = [(style, recipe, phase) for style, recipe, phase in phases if (phase.name, phase.kind) == (name, kind)]
        panels = [
            _curve("Loss", "loss, nats a token", chosen, lambda step: step.loss, zero=True),
            _curve("Gradient norm", "norm before clipping", chosen, lambda step: step.grad_norm, zero=True),
            _curve("Learning rate", "learning rate × 10⁻⁶", chosen, lambda step: step.lr * 1e6, zero=True),
            _quick(chosen),
        ]
        figures.append(TrainingFigure(name=name, kind=kind, panels=tuple(one for one in panels if one is not None)))
    return tuple(figures)


def every_phase(result: RunResult) -> tuple[Phase, ...]:
    """The skills' phases, and the recovery's if there was one."""
    return result.phases + ((result.recovery.phase,) if result.recovery else ())


Chosen = Sequence[tuple[int, str, Phase]]


def _curve(title: str, unit: str, chosen: Chosen, read: Callable[[StepPoint], float | None], *, zero: bool) -> Panel | None:
    series, values = [], []
    for style, recipe, phase in chosen:
        points = []
        for step in phase.steps:
            value = read(step)
            if value is not None:
                points.append(Point(x=float(step.n), y=value, title=f"{recipe}, step {step.n}: {value:.4g}"))
                values.append(value)
        series.append(Series(name=recipe, style=style, points=thin(points), dots=len(points) == 1))
    if not values:
        return None
    return panel(title, series, _step_axis(series), value_axis(unit, values, zero=zero), size=(480.0, 220.0))


def _quick(chosen: Chosen) -> Panel | None:
    series, values = [], []
    for style, recipe, phase in chosen:
        points = []
        for quick in phase.quick:
            known = [score for score in quick.scores.values() if score is not None]
            if known:
                mean = sum(known) / len(known)
                points.append(
                    Point(x=float(quick.step), y=mean, title=f"{recipe}, step {quick.step}: {wording.share(mean)}, n = {quick.n}")
                )
                values.append(mean)
        if points:
            series.append(Series(name=recipe, style=style, points=tuple(points)))
    if not values:
        return None
    y = value_axis("mean of a quick sample, %", values, zero=True, percent=True)
    return panel("Quick score while training", series, _step_axis(series), y, size=(480.0, 220.0))


def _step_axis(series: Sequence[Series]) -> Axis:
    return value_axis("step", [point.x for one in series for point in one.points], zero=False)
