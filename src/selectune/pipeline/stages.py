"""One stage of a run: train, measure, probe, judge, record. A stage that finished is never done again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selectune.delta import applied, onto
from selectune.errors import Alarmed, Stopped
from selectune.evaluation import Measurement, Suite, evaluate
from selectune.evaluation.noise import noise_floor
from selectune.network import holds_shards
from selectune.pipeline import measuring
from selectune.pipeline.adapters import AdapterTensors
from selectune.pipeline.folder import Folder, StageDocument
from selectune.pipeline.judging import Case, Models, judge_early, look_of
from selectune.pipeline.keeping import keeping, with_base
from selectune.pipeline.preparing import RECOVERY, Prepared, is_synthetic
from selectune.pipeline.progress import Progress, bar
from selectune.pipeline.recording import Made, record_update
from selectune.pipeline.tensors import LoadedTensors, VersionTensors
from selectune.pipeline.tracking import Trackers
from selectune.reporting.judged import Verdict
from selectune.reporting.trained import Phase, QuickPoint, StepPoint
from selectune.training import FeatureCache, Keeping, Session, train
from selectune.training.watching import sentences

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.delta import Delta
    from selectune.delta.values import Read
    from selectune.evaluation.asking import Shared
    from selectune.hashing import Manifest
    from selectune.models import Model
    from selectune.recipe import Data, Optim
    from selectune.records import Records
    from selectune.registry import Registry
    from selectune.training import Step, Training
    from selectune.training.processes import Processes
    from selectune.training.watching import Alarm


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A finished stage."""

    document: StageDocument
    measurement: Measurement
    again: Measurement | None = None
    """Of the base: the same model measured with another batch, where the gate asks for the noise floor."""

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
    shared: Shared | None = None
    """What the stages' measurements have in common."""
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
    """The model as it came; runs share its measurement in the folder `cache`."""
    document, measurement, again = measuring.measure_base(bench.prepared, bench.folder, bench.progress, cache, bench.shared)
    return Stage(document=document, measurement=measurement, again=again)


def teach(bench: Bench, model: Model, lesson: Lesson, past: Sequence[Stage], original: Manifest | None = None) -> Stage:
    """Train `lesson` on `model`, measure what came of it, judge and record it. `model` is the same afterwards.

    `original` is the model that the update is for, where `model` holds it in another dtype or beside a quantised base. `past` is every
    stage so far, the base first. A stage that this run finished before is read instead.
    """
    finished = bench.folder.stage(lesson.name)
    if finished is not None:
        return Stage(document=finished[0], measurement=finished[1])
    done = sum(len(stage.document.phase.steps) for stage in past if stage.document.phase is not None)
    training = _train(bench, model, lesson, done)
    phase = _phase(bench.folder, lesson, training)
    file = bench.folder.path / f".{lesson.name}.delta"
    factors = bench.processes.leads(lambda: _adapter_kept(bench.folder, model, lesson, training))
    try:
        trained, delta = _exact(training.delta, model, original)
        delta.save(file)
        _spend(bench, lesson, delta.child, past)
        models = Models(after=lambda: applied(model, trained), before=model, shared=bench.shared)
        document, measurement, verdict = _judged(bench, lesson, models, past)
        measurement.save(bench.folder.measurement(lesson.name))
        document = document.model_copy(
            update={
                "phase": phase,
                "verdict": verdict,
                "seconds": document.seconds | {"train": training.seconds},
                "alarms": sentences(training.alarms),
            }
        )
        scores = {task: {"value": measurement.score(task), "n": measurement.n(task)} for task in measurement.tasks}
        made = Made(
            document=document,
            delta=delta,
            file=file,
            parent=past[-1].document.update,
            scores=scores,
            factors=factors,
            values=_values(model, original, delta),
        )
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


def _exact(delta: Delta, model: Model, original: Manifest | None) -> tuple[Delta, Delta]:
    """The delta of `model` that is measured, and that of the original which is recorded: numbers as they are rounded in it."""
    if original is None:
        return delta, delta
    recorded = onto(delta, original, model)
    return onto(recorded, model.manifest, model), recorded


def _values(model: Model, original: Manifest | None, delta: Delta) -> Read | None:
    """Gives tensors of what the delta makes of the original, from those that `model` has in memory."""
    # Shards are gathered by all processes together, and the first one records alone.
    return None if holds_shards(model.net) else VersionTensors(LoadedTensors(model, original), [delta]).read


def _adapter_kept(folder: Folder, model: Model, lesson: Lesson, training: Training) -> bytes | None:
    """Writes an adapter into the run's folder, in PEFT's form; of LoRA gives the matrices that its update keeps."""
    if training.adapter is None or lesson.optim.adapter is None:
        return None
    place = training.adapter.save(folder.path / "adapters" / lesson.name)
    return AdapterTensors(LoadedTensors(model), place).factors() if lesson.optim.adapter.kind == "lora" else None


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
            seed=recipe.seed,
            checkpoint_dir=checkpoints,
            resume=checkpoints if any(checkpoints.rglob("checkpoint-*")) else None,
            features=bench.features,
            on_step=on_step,
            watch=recipe.watch,
            on_alarm=on_alarm,
        )
        try:
            training = train(model, lesson.selection, lesson.records, lesson.optim, keeping=lesson.keeping, session=session)
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


def _spend(bench: Bench, lesson: Lesson, child: str, past: Sequence[Stage]) -> None:
    """Pay for the look at the test records that judging this model is; a recovery is not judged."""
    skills = [stage.name for stage in past[1:]] + [lesson.name]
    look = look_of(bench.prepared.recipe, bench.prepared.examples.suite, child, skills)
    if look is not None and lesson.kind == "skill":
        bench.processes.leads(lambda: bench.registry.look(look))


def _judged(bench: Bench, lesson: Lesson, models: Models, past: Sequence[Stage]) -> tuple[StageDocument, Measurement, Verdict | None]:
    """The suite on the updated model, what its captions say, and the gate's word on a skill; a recovery has no target and is not judged."""
    prepared, progress, base = bench.prepared, bench.progress, past[0]
    suite, started = prepared.examples.suite, time.monotonic()
    case = Case(
        recipe=prepared.recipe,
        suite=suite,
        skill=lesson.name,
        past=tuple(stage.measurement for stage in past),
        noise={} if base.again is None else noise_floor(base.measurement, base.again),
    )
    verdict = None
    if lesson.kind == "skill" and prepared.recipe.gate.early:
        with bar(progress, f"Measuring {lesson.name}", sum(len(task.records) for task in suite.tasks)) as advance:
            judged = judge_early(case, models, advance)
        measurement, verdict = judged.measurement, judged.verdict
        if judged.more is not None:
            judged.more.save(bench.folder.more(lesson.name))
        bench.folder.event("asked", stage=lesson.name, items={task: measurement.n(task) for task in measurement.planned})
        with models.after() as child:
            document = measuring.probed(prepared, child, progress, stage=lesson.name, seconds=time.monotonic() - started)
    else:
        with models.after() as child:
            measurement = measuring.measured(prepared, child, progress, stage=lesson.name, base=base.measurement, shared=bench.shared)
            document = measuring.probed(prepared, child, progress, stage=lesson.name, seconds=time.monotonic() - started)
        if lesson.kind == "skill":
            verdict = case.decide(measurement)
    return document, measurement, None if verdict is None else Verdict.model_validate(verdict)


def _phase(folder: Folder, lesson: Lesson, training: Training) -> Phase:
    return Phase(
        name=lesson.name,
        kind=lesson.kind,
        source=lesson.data.named,
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
