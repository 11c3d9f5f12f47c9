"""What a stage measures: the suite, the captions of the number probe, and for the base how it differs from itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from selectune.evaluation import Measurement, Suite, evaluate
from selectune.evaluation.asking import Shared
from selectune.evaluation.evaluator import environment
from selectune.hashing import digest
from selectune.pipeline.folder import CaptionText, Folder, StageDocument
from selectune.pipeline.progress import Progress, bar
from selectune.probes import probe_numbers
from selectune.reporting.document import write_whole
from selectune.reporting.measured import NumberStage
from selectune.training import FeatureCache
from selectune.training.features import in_language

if TYPE_CHECKING:
    from selectune.evaluation.kept import Kept
    from selectune.models import Model
    from selectune.pipeline.preparing import Prepared
    from selectune.probes import NumberReading

BASE, AGAIN = "base", "base-again"


def shared_of(prepared: Prepared, features: FeatureCache, kept: Kept | None = None) -> Shared:
    """What the measurements of a run's stages have in common; with a training, where the vision tower is not trained."""
    components = prepared.selection.components + (() if prepared.recovery is None else prepared.recovery.components)
    shapes = {**prepared.selection.full_shapes, **({} if prepared.recovery is None else prepared.recovery.full_shapes)}
    still = all(in_language(component.name) for component in components)
    return Shared(
        features=features if still else FeatureCache(),
        selection=replace(prepared.selection, components=components, full_shapes=shapes),
        kept=kept,
    )


def measure_base(
    prepared: Prepared, folder: Folder, progress: Progress, cache: Path, shared: Shared | None = None
) -> tuple[StageDocument, Measurement, Measurement | None]:
    """The model as it came, measured once for every model, suite, pictures, batch and version: runs share the folder `cache`.

    The last value is the same model measured again with another batch, where the recipe's gate asks for the noise floor.
    """
    finished = folder.stage(BASE)
    key = _base_key(prepared)
    if finished is None:
        finished = _first(prepared, folder, progress, cache / key, shared)
    if not prepared.recipe.gate.noise:
        return *finished, None
    kept = folder.measurement(AGAIN)
    if kept.is_file():
        return *finished, Measurement.load(kept)
    samples = cache / f"{key}-again.parquet"
    if samples.is_file():
        again = Measurement.load(samples)
    else:
        again = measured(prepared, prepared.model, progress, stage=AGAIN, batch=other_batch(prepared.recipe.eval_batch), shared=shared)
        again.save(samples)
    again.save(kept)
    return *finished, again


def _first(prepared: Prepared, folder: Folder, progress: Progress, kept: Path, shared: Shared | None) -> tuple[StageDocument, Measurement]:
    model = prepared.model
    samples, notes = kept.with_suffix(".parquet"), kept.with_suffix(".json")
    if samples.is_file() and notes.is_file():
        progress.say(f"The base was measured before: {samples}")
        document = StageDocument.model_validate_json(notes.read_bytes())
        measurement = Measurement.load(samples)
    else:
        started = time.monotonic()
        measurement = measured(prepared, model, progress, stage=BASE, shared=shared)
        document = probed(prepared, model, progress, stage=BASE, seconds=time.monotonic() - started)
        kept.parent.mkdir(parents=True, exist_ok=True)
        measurement.save(samples)
        write_whole(notes, document.model_dump_json(indent=1) + "\n")
    measurement.save(folder.measurement(BASE))
    folder.finish(document)
    folder.event("measured", stage=BASE, model=model.id, scores={task: measurement.score(task) for task in measurement.tasks})
    return document, measurement


def other_batch(batch: int) -> int:
    """A batch size under which the same records meet others: half as many, or two where each was alone."""
    return batch // 2 if batch > 1 else 2


def _base_key(prepared: Prepared) -> str:
    """What the base's measurement depends on, 32 hex digits."""
    pictures = prepared.examples.pictures
    parts = {
        "model": prepared.model.id,
        "suite": prepared.examples.suite.digest,
        "batch": prepared.recipe.eval_batch,
        "pictures": None if pictures is None else pictures.digest,
        "tokens": prepared.recipe.probe.max_new_tokens,
        "environment": environment(prepared.model, prepared.recipe.eval_batch),
    }
    return digest("base", parts)[:32]


def measured(
    prepared: Prepared,
    model: Model,
    progress: Progress,
    *,
    stage: str,
    base: Measurement | None = None,
    batch: int | None = None,
    shared: Shared | None = None,
) -> Measurement:
    """The whole suite on a model; `batch` in place of the recipe's."""
    suite = prepared.examples.suite
    with bar(progress, f"Measuring {stage}", sum(len(task.records) for task in suite.tasks)) as advance:
        counted = counting(suite, advance)
        size = batch or prepared.recipe.eval_batch
        return evaluate(model, suite, stage=stage, batch=size, progress=counted, base=base, shared=shared)


def probed(prepared: Prepared, model: Model, progress: Progress, *, stage: str, seconds: float) -> StageDocument:
    """The document of a stage that took `seconds` to measure, with the number probe's reading where the recipe asks for one."""
    spent = {"measure": seconds}
    numbers: NumberStage | None = None
    captions: tuple[CaptionText, ...] = ()
    if prepared.examples.pictures is not None:
        started = time.monotonic()
        with bar(progress, f"Captions after {stage}"):
            reading = probe_numbers(
                model,
                prepared.examples.pictures,
                stage=stage,
                max_new_tokens=prepared.recipe.probe.max_new_tokens,
                batch=prepared.recipe.eval_batch,
            )
        numbers, captions = _reading(reading)
        spent["probe"] = time.monotonic() - started
    return StageDocument(stage=stage, model_id=model.id, seconds=spent, numbers=numbers, captions=captions)


def counting(suite: Suite, advance: Callable[[int, int | None], None]) -> Callable[[str, int, int], None]:
    """A progress function for `evaluate` that counts over all tasks of a suite."""
    done = dict.fromkeys((task.name for task in suite.tasks), 0)

    def count(task: str, finished: int, _: int) -> None:
        done[task] = finished
        advance(sum(done.values()), None)

    return count


def _reading(reading: NumberReading) -> tuple[NumberStage, tuple[CaptionText, ...]]:
    return NumberStage.model_validate(reading), tuple(CaptionText.model_validate(caption) for caption in reading.captions)
