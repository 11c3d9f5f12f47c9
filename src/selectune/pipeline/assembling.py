"""The result of a run, from what its stages found. Nothing is measured here."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from selectune import statistics
from selectune.evaluation import Measurement
from selectune.evaluation.matrix import Pairs, align, matrix, metrics
from selectune.evaluation.noise import noise_floor
from selectune.evaluation.portions import on_common
from selectune.evaluation.readings import readings
from selectune.pipeline.changed import RIGHT, by_right, changed, thumbnail
from selectune.pipeline.folder import now
from selectune.pipeline.preparing import RECOVERY, Prepared
from selectune.probes import Caption, NumberReading, correlation
from selectune.reporting import RunResult
from selectune.reporting.document import Estimate
from selectune.reporting.measured import (
    CaptionedPicture,
    Change,
    Difference,
    MatrixTable,
    Probes,
    RecoveredTask,
    SecondReading,
    StageCaption,
    Tally,
)
from selectune.reporting.trained import Family, ModelInfo, Recovery, SelectionInfo

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.pipeline.stages import Stage

CAPTIONS = 12
"""Pictures whose captions are shown: the first ones, not chosen by what was said of them."""
CHANGES = 6
"""Changed samples shown of each task, stage and way: the first ones."""


def assemble(prepared: Prepared, stages: Sequence[Stage], *, run: str, seconds: Mapping[str, float]) -> RunResult:
    """The result of a run that has these stages, the base first."""
    recipe, model, examples = prepared.recipe, prepared.model, prepared.examples
    measurements = [stage.measurement for stage in stages]
    compared = on_common(measurements)
    taught = [stage for stage in stages[1:] if stage.name != RECOVERY]
    targets = [stage.name for stage in taught]
    held_out = [task.name for task in recipe.held_out]
    skipped = [skill.name for skill in recipe.skills if skill.name not in targets]
    notes = [
        *examples.notes,
        *(f"{stage.name}: {alarm}" for stage in stages for alarm in stage.document.alarms),
        *_stopped_early(measurements),
        *(f"{name} was not taught: the gate failed before it, and the recipe says on_failure: stop" for name in skipped),
    ]
    grid = matrix(measurements)
    return RunResult(
        run=run,
        created=now(),
        name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
        model=ModelInfo(name=model.name, id=model.id, elements=model.map.elements, about=type(model.net).__name__),
        selection=_selection(prepared.selection, model.map.elements),
        skills=tuple(targets),
        tasks=examples.tasks,
        matrix=MatrixTable.model_validate(grid),
        metrics={name: Estimate.model_validate(found) for name, found in metrics(compared, targets, held_out).items()},
        probes=_probes(taught, stages[0], held_out),
        updates=tuple(stage.document.update for stage in stages if stage.document.update is not None),
        verdicts=tuple(stage.document.verdict for stage in stages if stage.document.verdict is not None),
        phases=tuple(stage.document.phase for stage in taught if stage.document.phase is not None),
        captions=_captions(prepared, stages),
        differences=tuple(_differences(measurements)),
        tallies=tuple(_tallies(measurements)),
        readings=tuple(_readings(measurements)),
        changes=tuple(_changes(prepared, measurements)),
        leaks=examples.leaks,
        recovery=_recovery(prepared, stages, held_out),
        noise=_noise(stages[0]),
        seconds=dict(seconds) | _seconds(stages),
        environment=_environment(prepared),
        notes=tuple(notes),
    )


def _noise(base: Stage) -> dict[str, Estimate]:
    """What the base's scores do when it is measured twice, by task."""
    if base.again is None:
        return {}
    return {task: Estimate.model_validate(found) for task, found in noise_floor(base.measurement, base.again).items()}


def _selection(selection: Selection, total: int) -> SelectionInfo:
    families = tuple(Family(component=name, count=count, elements=elements) for name, count, elements in selection.table())
    return SelectionInfo(patterns=selection.patterns, elements=selection.elements, total=total, digest=selection.digest, families=families)


def _probes(taught: Sequence[Stage], base: Stage, held_out: Sequence[str]) -> Probes:
    """Number mass by stage, and how it moves with the held-out mean; no correlation over two stages, or where one of both stands still."""
    stages = [base, *taught]
    numbers = [stage.document.numbers for stage in stages if stage.document.numbers is not None]
    shares = [task for task in held_out if base.measurement.kinds.get(task) != "perplexity"]
    related = None
    if len(numbers) == len(stages) and len(stages) > 2 and shares:
        means = [sum(stage.measurement.score(task) for task in shares) / len(shares) for stage in stages]
        readings = [_reading(stage) for stage in stages]
        if len(set(means)) > 1 and len({reading.mean for reading in readings}) > 1:
            related = Estimate.model_validate(correlation(readings, means))
    return Probes(numbers=tuple(numbers), correlation=related)


def _reading(stage: Stage) -> NumberReading:
    captions = [Caption(id=one.id, text=one.text, mean=one.mean, max=one.max) for one in stage.document.captions]
    return NumberReading.of(stage.name, captions)


def _captions(prepared: Prepared, stages: Sequence[Stage]) -> tuple[CaptionedPicture, ...]:
    pictures = prepared.examples.pictures
    if pictures is None:
        return ()
    written = {stage.name: {caption.id: caption for caption in stage.document.captions} for stage in stages}
    found = []
    for record in pictures[:CAPTIONS]:
        captions = [(name, captions[record.id]) for name, captions in written.items() if record.id in captions]
        found.append(
            CaptionedPicture(
                id=record.id,
                picture=thumbnail(record),
                reference=record.answer,
                synthetic=bool(record.meta.get("synthetic")),
                captions=tuple(StageCaption(stage=name, text=caption.text, mean=caption.mean) for name, caption in captions),
            )
        )
    return tuple(found)


def _stopped_early(measurements: Sequence[Measurement]) -> list[str]:
    """A sentence for each stage whose gate decided before every record was asked."""
    found = []
    for one in measurements:
        asked = {task: (one.n(task), planned) for task, planned in one.planned.items() if one.n(task) < planned}
        if asked:
            counts = ", ".join(f"{n} of {planned} records of {task}" for task, (n, planned) in asked.items())
            found.append(f"{one.stage}: the gate decided after {counts}; changes are given for the records that all stages were asked")
    return found


def _pairs(measurements: Sequence[Measurement]) -> list[tuple[str, str, Pairs]]:
    """(task, stage, base and stage side by side) for each task and each stage after the base."""
    base = measurements[0]
    return [(task, later.stage, align(on_common([base, later]), task)) for later in measurements[1:] for task in base.tasks]


def _differences(measurements: Sequence[Measurement]) -> list[Difference]:
    found = []
    for task, stage, pairs in _pairs(measurements):
        change = statistics.change(pairs.scores[0], pairs.scores[1], pairs.clusters)
        found.append(Difference(task=task, stage=stage, value=change.value, low=change.low, high=change.high, n=change.n))
    return found


def _readings(measurements: Sequence[Measurement]) -> list[SecondReading]:
    """Every stage's losses from the base, taken apart where samples were read twice."""
    found = []
    for later in measurements[1:]:
        base, after = on_common([measurements[0], later])
        for task in base.tasks:
            read = readings(base, after, task)
            if read is not None:
                lost, knowledge, form = (Estimate.model_validate(one) for one in (read.lost, read.knowledge, read.form))
                found.append(SecondReading(task=task, stage=after.stage, lost=lost, knowledge=knowledge, form=form))
    return found


def _tallies(measurements: Sequence[Measurement]) -> list[Tally]:
    found = []
    for task, stage, pairs in _pairs(measurements):
        if measurements[0].kinds.get(task) != "perplexity":
            before, after = pairs.scores[0] >= RIGHT, pairs.scores[1] >= RIGHT
            gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
            found.append(Tally(task=task, stage=stage, gained=gained, lost=lost, n=len(pairs.ids)))
    return found


def _changes(prepared: Prepared, measurements: Sequence[Measurement]) -> list[Change]:
    """The first samples of each task that became right or wrong between the base and the end of the last skill."""
    last = [measurement for measurement in measurements if measurement.stage != RECOVERY][-1]
    base = measurements[0]
    found = []
    for task in prepared.examples.suite.tasks:
        if task.kind != "perplexity" and last is not base:
            records = {record.id: record for record in task.records}
            found += changed(task.name, base, last, by_right, records=records, most=CHANGES)
    return found


def _recovery(prepared: Prepared, stages: Sequence[Stage], held_out: Sequence[str]) -> Recovery | None:
    """What a recovery phase brought back, against the end of the last skill."""
    last = stages[-1]
    if last.name != RECOVERY or last.document.phase is None or prepared.recovery is None:
        return None
    before, base = stages[-2], stages[0]
    names = base.measurement.tasks
    tasks = tuple(
        RecoveredTask(task=task, base=_score(base, task), before=_score(before, task), after=_score(last, task)) for task in names
    )
    # `metrics` takes two measurements as base and end of one target; the "target" here is the first skill, and only the held-out
    # part is kept.
    found = metrics(on_common([before.measurement, last.measurement]), [prepared.recipe.skills[0].name], held_out)
    recovered = {"held_out_recovered": Estimate.model_validate(found["held_out_forgetting"])} if "held_out_forgetting" in found else {}
    return Recovery(
        phase=last.document.phase,
        patterns=prepared.recovery.patterns,
        tasks=tasks,
        numbers_before=before.document.numbers,
        numbers_after=last.document.numbers,
        metrics=recovered,
    )


def _score(stage: Stage, task: str) -> Estimate:
    scores, clusters = stage.measurement.scores(task), stage.measurement.clusters(task)
    return Estimate.model_validate(statistics.score(list(scores.values()), clusters=list(clusters.values())))


def _seconds(stages: Sequence[Stage]) -> dict[str, float]:
    return {f"{name} {stage.name}": seconds for stage in stages for name, seconds in stage.document.seconds.items()}


def _environment(prepared: Prepared) -> dict[str, str]:
    import torch

    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    from selectune import __version__

    return {
        "selectune": __version__,
        "python": platform.python_version(),
        **packages,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "device": str(prepared.model.device),
        "dtype": str(prepared.model.net.dtype).removeprefix("torch."),
    }
