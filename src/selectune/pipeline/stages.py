"""One stage of a run: train, measure, probe, judge, record. A stage that finished is never done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selectune import gates
from selectune.delta import applied, onto
from selectune.errors import Alarmed, Stopped
from selectune.evaluation import Measurement, Suite, evaluate
from selectune.hashing import digest
from selectune.pipeline.folder import CaptionText, Folder, StageDocument
from selectune.pipeline.keeping import keeping, with_base
from selectune.pipeline.preparing import RECOVERY, Prepared, is_synthetic
from selectune.pipeline.progress import Progress, bar
from selectune.pipeline.recording import Made, record_update
from selectune.pipeline.tracking import Trackers
from selectune.probes import probe_numbers
from selectune.reporting.result import NumberStage, Phase, QuickPoint, StepPoint, Verdict, write_whole
from selectune.training import FeatureCache, Keeping, Session, train
from selectune.training.watching import sentences

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.hashing import Manifest
    from selectune.models import Model
    from selectune.probes import NumberReading
    from selectune.recipe import Data, Optim
    from selectune.records import Records
    from selectune.registry import Registry
    from selectune.training import Step, Training
    from selectune.training.processes import Processes
    from selectune.training.watching import Alarm

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A finished stage."""

    document: StageDocument
    measurement: Measurement

    @property
    def name(self) -> str:
        """A skill's name, ``base`` or ``recovery``."""
        return self.document.stage


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every stage of one recipe works with."""

    prepared: Prepared
    folder: Folder
    registry: Registry
    progress: Progress
    features: FeatureCache
    processes: Processes
    trackers: Trackers = field(default_factory=Trackers)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one stage teaches."""

    name: str
    kind: Literal["skill", "recovery"]
    data: Data
    records: Records
    selection: Selection
    optim: Optim
    keeping: Keeping


def lessons(prepared: Prepared) -> list[Lesson]:
    """A recipe's stages after the base, in order."""
    recipe, records, kept = prepared.recipe, prepared.examples.train, prepared.examples.kept
    names = [skill.name for skill in recipe.skills]
    found = [
        Lesson(
            name=skill.name,
            kind="skill",
            data=skill.train,
            records=records[skill.name],
            selection=prepared.selection,
            optim=recipe.optim_of(skill),
            keeping=keeping(kept[skill.name], {name: records[name] for name in names[:index]}),
        )
        for index, skill in enumerate(recipe.skills)
    ]
    if recipe.recovery is not None and prepared.recovery is not None:
        optim = recipe.optim.merged(recipe.recovery.optim)
        data = recipe.recovery.train
        found.append(
            Lesson(
                name=RECOVERY,
                kind="recovery",
                data=data,
                records=records[RECOVERY],
                selection=prepared.recovery,
                optim=optim,
                keeping=keeping(kept[RECOVERY], {name: records[name] for name in names}),
            )
        )
    return found


def sequence(prepared: Prepared) -> list[Lesson]:
    """`lessons` for a run, in which each is taught on what those before it left: teachers that are the base remember it."""
    found = lessons(prepared)
    told = with_base(prepared.model, prepared.selection, {lesson.name: (lesson.keeping, lesson.selection) for lesson in found})
    return [replace(lesson, keeping=told[lesson.name]) for lesson in found]


def measure_base(bench: Bench, cache: Path) -> Stage:
    """The model as it came, measured once for every model, suite, pictures, batch and version: runs share the folder `cache`."""
    finished = bench.folder.stage(BASE)
    if finished is not None:
        return Stage(document=finished[0], measurement=finished[1])
    model, key = bench.prepared.model, _base_key(bench.prepared)
    samples, notes = cache / f"{key}.parquet", cache / f"{key}.json"
    if samples.is_file() and notes.is_file():
        bench.progress.say(f"The base was measured before: {samples}")
        document = StageDocument.model_validate_json(notes.read_bytes())
        measurement = Measurement.load(samples)
    else:
        document, measurement = _measured(bench, model, BASE, None)
        cache.mkdir(parents=True, exist_ok=True)
        measurement.save(samples)
        write_whole(notes, document.model_dump_json(indent=1) + "\n")
    measurement.save(bench.folder.measurement(BASE))
    bench.folder.finish(document)
    bench.folder.event("measured", stage=BASE, model=model.id, scores={task: measurement.score(task) for task in measurement.tasks})
    return Stage(document=document, measurement=measurement)


def teach(bench: Bench, model: Model, lesson: Lesson, past: Sequence[Stage]) -> Stage:
    """Train `lesson` on `model`, measure what came of it, judge and record it. `model` is the same afterwards.

    `past` is every stage so far, the base first. A stage that this run finished before is read instead.
    """
    finished = bench.folder.stage(lesson.name)
    if finished is not None:
        return Stage(document=finished[0], measurement=finished[1])
    done = sum(len(stage.document.phase.steps) for stage in past if stage.document.phase is not None)
    training = _train(bench, model, lesson, done)
    phase = _phase(bench.folder, lesson, training)
    file = bench.folder.path / f".{lesson.name}.delta"
    if training.adapter is not None:
        training.adapter.save(bench.folder.path / "adapters" / lesson.name)
    try:
        delta = training.delta if bench.prepared.origin is None else onto(training.delta, _original(bench.prepared.origin, model))
        delta.save(file)
        with applied(model, training.delta) as child:
            document, measurement = _measured(bench, child, lesson.name, past[0].measurement)
        verdict = _verdict(bench, lesson, measurement, past)
        measurement.save(bench.folder.measurement(lesson.name))
        document = document.model_copy(
            update={
                "phase": phase,
                "verdict": verdict,
                "seconds": document.seconds | {"train": training.seconds},
                "alarms": sentences(training.alarms),
            }
        )
        made = Made(document=document, delta=delta, file=file, parent=past[-1].document.update)
        update = bench.processes.leads(lambda: record_update(bench.registry, bench.prepared, made))
    finally:
        file.unlink(missing_ok=True)
    document = document.model_copy(update={"update": update})
    bench.folder.finish(document)
    said = verdict.verdict if verdict else "not judged"
    bench.folder.event("recorded", stage=lesson.name, update=update.id, verdict=said, model=document.model_id)
    bench.trackers.log("scores", {task: measurement.score(task) for task in measurement.tasks}, done + len(phase.steps))
    bench.progress.say(f"{lesson.name}: update {update.id[:12]}, {said}")
    return Stage(document=document, measurement=measurement)


def _original(origin: Manifest, model: Model) -> Manifest:
    """What the original would be after the updates so far: they lie in tensors that were not quantised, so these have its very bits."""
    plain = {component.parameter for component in model.map.components if component.quantised is None}
    return origin.replace({name: entry for name, entry in model.manifest.items() if name in plain})


def _base_key(prepared: Prepared) -> str:
    """What the base's measurement depends on, 32 hex digits."""
    from selectune import __version__

    pictures = prepared.examples.pictures
    parts = {
        "model": prepared.model.id,
        "suite": prepared.examples.suite.digest,
        "batch": prepared.recipe.eval_batch,
        "pictures": None if pictures is None else pictures.digest,
        "tokens": prepared.recipe.probe.max_new_tokens,
        "version": __version__,
    }
    return digest("base", parts)[:32]


def _train(bench: Bench, model: Model, lesson: Lesson, done: int) -> Training:
    """Train one lesson, with its events, its bar and its checkpoints, after `done` steps of the lessons before."""
    folder, recipe = bench.folder, bench.prepared.recipe
    suite = _quick_suite(bench.prepared) if recipe.probe.quick_every else None

    with bar(bench.progress, f"Teaching {lesson.name}") as advance:

        def on_step(step: Step) -> None:
            point = _step(step).model_dump(mode="json")
            kept = {f"keep.{name}": value for name, value in step.kept.items()}
            folder.event("step", stage=lesson.name, **point, waited=step.waited, **kept)
            bench.trackers.log(lesson.name, {**point, "waited": step.waited, **kept}, done + step.n)
            if suite is not None and recipe.probe.quick_every and step.n % recipe.probe.quick_every == 0:
                quick = _quick(model, suite, step.n, recipe.eval_batch)
                folder.event("quick", stage=lesson.name, **quick.model_dump(mode="json"))
                bench.trackers.log(f"{lesson.name}/quick", quick.scores, done + step.n)
            advance(step.n, step.total)

        def on_alarm(alarm: Alarm) -> None:
            folder.event("alarm", stage=lesson.name, rule=alarm.rule, step=alarm.step, stops=alarm.stops, what=alarm.what, then=alarm.then)
            bench.progress.say(f"{lesson.name}: {alarm}")

        checkpoints = folder.checkpoints / lesson.name
        session = Session(
            checkpoint_dir=checkpoints,
            resume=checkpoints if any(checkpoints.rglob("checkpoint-*")) else None,
            features=bench.features,
            on_step=on_step,
            watch=recipe.watch,
            on_alarm=on_alarm,
        )
        try:
            training = train(
                model, lesson.selection, lesson.records, lesson.optim, seed=recipe.seed, keeping=lesson.keeping, session=session
            )
        except Stopped as stopped:
            raise Stopped(stopped.what, where=lesson.name, then="") from stopped
        except Alarmed as alarmed:
            raise Alarmed(alarmed.what, where=lesson.name) from alarmed
    return training


def _quick_suite(prepared: Prepared) -> Suite:
    """A few records of each task: of a skill's validation records where it has some, never of its test records."""
    n, examples = prepared.recipe.probe.quick_n, prepared.examples
    tasks = []
    for task in examples.suite.tasks:
        records = examples.validation.get(task.name) if task.role == "target" else task.records
        if records is not None:
            small = records.take(min(n, len(records)), seed=prepared.recipe.seed)
            tasks.append(type(task)(name=task.name, records=small, kind=task.kind, scorer=task.scorer, max_new_tokens=task.max_new_tokens))
    return Suite(tasks=tuple(tasks))


def _quick(model: Model, suite: Suite, step: int, batch: int) -> QuickPoint:
    measurement = evaluate(model, suite, stage=f"step {step}", batch=batch)
    scores: dict[str, float | None] = {task: measurement.score(task) for task in measurement.tasks}
    return QuickPoint(step=step, scores=scores, n=min(measurement.n(task) for task in measurement.tasks))


def _measured(bench: Bench, model: Model, stage: str, base: Measurement | None) -> tuple[StageDocument, Measurement]:
    """The suite and the number probe on a model."""
    prepared = bench.prepared
    started = time.monotonic()
    suite, batch = prepared.examples.suite, prepared.recipe.eval_batch
    with bar(bench.progress, f"Measuring {stage}", sum(len(task.records) for task in suite.tasks)) as advance:
        measurement = evaluate(model, suite, stage=stage, batch=batch, progress=counting(suite, advance), base=base)
    seconds = {"measure": time.monotonic() - started}
    numbers: NumberStage | None = None
    captions: tuple[CaptionText, ...] = ()
    if prepared.examples.pictures is not None:
        started = time.monotonic()
        with bar(bench.progress, f"Captions after {stage}"):
            reading = probe_numbers(
                model,
                prepared.examples.pictures,
                stage=stage,
                max_new_tokens=prepared.recipe.probe.max_new_tokens,
                batch=batch,
            )
        numbers, captions = _reading(reading)
        seconds["probe"] = time.monotonic() - started
    return StageDocument(stage=stage, model_id=model.id, seconds=seconds, numbers=numbers, captions=captions), measurement


def counting(suite: Suite, advance: Callable[[int, int | None], None]) -> Callable[[str, int, int], None]:
    """A progress function for `evaluate` that counts over all tasks of a suite."""
    done = dict.fromkeys((task.name for task in suite.tasks), 0)

    def count(task: str, finished: int, _: int) -> None:
        done[task] = finished
        advance(sum(done.values()), None)

    return count


def _reading(reading: NumberReading) -> tuple[NumberStage, tuple[CaptionText, ...]]:
    return NumberStage.model_validate(reading), tuple(CaptionText.model_validate(caption) for caption in reading.captions)


def _verdict(bench: Bench, lesson: Lesson, after: Measurement, past: Sequence[Stage]) -> Verdict | None:
    """The gate's word on a skill; a recovery has no target and is not judged."""
    if lesson.kind == "recovery":
        return None
    recipe = bench.prepared.recipe
    evidence = gates.Evidence(
        after=after,
        before=past[-1].measurement,
        anchor=past[0].measurement,
        learned={stage.name: stage.measurement for stage in past[1:]},
    )
    return Verdict.model_validate(gates.decide(lesson.name, evidence, recipe.gate, recipe.held_out))


def _phase(folder: Folder, lesson: Lesson, training: Training) -> Phase:
    return Phase(
        name=lesson.name,
        kind=lesson.kind,
        source=lesson.data.source,
        synthetic=is_synthetic(lesson.data, lesson.records),
        records=len(lesson.records),
        optim=lesson.optim.model_dump(mode="json"),
        steps=tuple(_step(step) for step in training.steps),
        seconds=training.seconds,
        quick=folder.quick(lesson.name),
        skipped=dict(training.skipped),
        dropped=dict(lesson.records.dropped),
        proof=training.proof,
        keep={name: words for name, words in training.reasons.items() if name.startswith("keep.")},
    )


def _step(step: Step) -> StepPoint:
    return StepPoint(n=step.n, loss=step.loss, lr=step.lr, grad_norm=step.grad_norm, tokens=step.tokens, seconds=step.seconds)
