"""A run, forward only: load, select, read, measure, and for each skill train, measure, judge and record; then the report."""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from selectune.components.proof import forecast
from selectune.delta import after, applied, onto
from selectune.delta.files import sweep
from selectune.errors import Alarmed, Stopped, StorageError
from selectune.evaluation.kept import Kept
from selectune.pipeline.assembling import assemble
from selectune.pipeline.folder import Folder, RunDocument, held, open_run, read_run
from selectune.pipeline.judging import check_looks
from selectune.pipeline.keeping import kept_digests
from selectune.pipeline.lineage import as_it_stands
from selectune.pipeline.measuring import shared_of
from selectune.pipeline.preparing import Prepared, prepare
from selectune.pipeline.progress import Progress, Silent, bar
from selectune.pipeline.stages import Bench, Stage, measure_base, sequence, teach
from selectune.pipeline.together import own_place
from selectune.pipeline.tracking import check_trackers, tracking
from selectune.recipe import Recipe
from selectune.registry import Registry
from selectune.reporting import RunResult, save_result, write_report
from selectune.training import FeatureCache
from selectune.training.processes import Processes

if TYPE_CHECKING:
    from selectune.components.spectra import Choice
    from selectune.models import Model

OUT = Path("selectune-runs")
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""What the system says of a disk that is full or must not be written to."""
MEASUREMENTS = "measurements"
"""The folder, beside the runs, of base measurements that they share."""
TASKS = "tasks"
"""The folder in it of measured tasks (`evaluation.kept`)."""


def run(recipe: Recipe, *, registry: str | None = None, out: Path | None = None, progress: Progress | None = None) -> RunResult:
    """Teach a recipe's skills in sequence, measure, judge and record every update, and write the report.

    A new folder under `out` (the recipe's own `out` without it, else ``selectune-runs``) holds all of it, see
    `selectune.pipeline.folder`. Updates are recorded in `registry` (a folder or URL, made if need be; ``registry`` inside `out`
    without one), whether the gate accepted them or not.

    Raises InputError for what is wrong with the recipe, its records or its model, before anything is trained; CheckFailed for what
    must not happen; Stopped after SIGINT or SIGTERM, with how to go on: `resume`.
    """
    return run_all([recipe], registry=registry, out=out, progress=progress)[0]


def run_all(
    recipes: Sequence[Recipe],
    *,
    registry: str | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> list[RunResult]:
    """`run` for several recipes that share the model, the base's measurement and one report, in one folder (called after `name`)."""
    resolved = [recipe.resolved() for recipe in recipes]
    check_trackers([name for recipe in resolved for name in recipe.report_to])
    root = out or Path(resolved[0].out or OUT)
    where = registry or str(root / "registry")
    processes = Processes()
    document, path = processes.leads(lambda: open_run(root.absolute(), name or resolved[0].name, resolved, where))
    return _go(document, path, progress or Silent(), processes)


def resume(path: Path, *, progress: Progress | None = None) -> list[RunResult]:
    """Go on with a run that was stopped, from its folder: finished stages are read, the one in training continues from its checkpoint.

    What a crash left unfinished is removed first. Raises ResumeError for a folder that is not a run's, for one that another process is
    working on, and for a recipe, a model or records that are not those the run was begun with, with the difference.
    """
    return _go(read_run(path), path.absolute(), progress or Silent(), Processes())


def _go(document: RunDocument, told: Path, told_progress: Progress, processes: Processes) -> list[RunResult]:
    try:
        with own_place(told, told_progress, processes) as (path, progress), held(path), _terminable():
            loaded = Loaded(progress)
            for folder in document.recipes:
                Folder(path / folder).mend()
            sweep(path.parent / MEASUREMENTS)
            sweep(path.parent / MEASUREMENTS / TASKS)
            processes.leads(lambda: Registry.open(document.registry, create=True).where)
            registry = Registry.open(document.registry)
            # Several processes have to find the same measured before, so that these are the run's own.
            measurements = (path.parent if processes.count == 1 else path) / MEASUREMENTS
            results = [_one(Folder(path / folder), registry, loaded, measurements, processes) for folder in document.recipes]
            report = path / "report.html"
            results = as_it_stands(results, registry)
            results = [result.model_copy(update={"report": str(told / report.name)}) for result in results]
            for folder, result in zip(document.recipes, results, strict=True):
                save_result(result, path / folder / "result.json")
            write_report(results, report)
    except (Stopped, KeyboardInterrupt) as error:
        what = error.what if isinstance(error, Stopped) else "stopped; every finished stage is kept"
        raise Stopped(what, then=f"Go on with: selectune run {told}") from error
    except OSError as error:
        if not isinstance(error, StorageError) and error.errno not in UNWRITABLE:
            raise
        what = error.what if isinstance(error, StorageError) else f"cannot be written ({error.strerror})"
        where = error.where if isinstance(error, StorageError) else str(error.filename or told)
        then = f"Free space there, or make it writable, and go on with: selectune run {told}"
        raise StorageError(what, where=where, then=then) from error
    except Alarmed as error:
        then = f"Or change watch in the run's recipe.yaml, and go on with: selectune run {told}"
        raise Alarmed(error.what, where=error.where, then=then) from error
    return results


class Loaded:
    """The model of one recipe kept for the next one, with what was worked out about it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.features = FeatureCache()
        self._model: Model | None = None
        self.seconds = 0.0

    def __call__(self, name: str) -> Model:
        """The model of that name; loaded if the last one was another."""
        from selectune.models import load

        if self._model is None or self._model.name != name:
            self._model = None
            started = time.monotonic()
            with bar(self.progress, f"Loading {name}"):
                self._model = load(name)
            self.seconds = time.monotonic() - started
        return self._model

    def forget(self) -> None:
        """Lets the model go: it was widened, quantised or sharded in place, and the next recipe may want it as it came."""
        self._model = None


def _one(folder: Folder, registry: Registry, loaded: Loaded, measurements: Path, processes: Processes) -> RunResult:
    """One recipe of a run. The model is what it was, afterwards."""
    started = time.monotonic()
    recipe = folder.recipe()
    prepared = prepare(recipe, loaded)
    if prepared.origin is not None or recipe.shard:
        loaded.forget()
    if prepared.choice is not None:
        recipe = prepared.recipe
        folder.write_recipe(recipe)
    folder.claim(_inputs(recipe, prepared))
    folder.event("prepared", recipe=recipe.digest, model=prepared.model.id, dtype=prepared.dtype, suite=prepared.examples.suite.digest)
    if prepared.choice is not None:
        folder.event("chosen", by=prepared.choice.by, **_numbers(prepared.choice))
        loaded.progress.say(f"choose took {prepared.choice.about}")
    aloud = recipe if processes.is_first else recipe.model_copy(update={"report_to": ()})
    with tracking(aloud, folder.path) as trackers:
        bench = Bench(
            prepared=prepared,
            folder=folder,
            registry=registry,
            progress=loaded.progress,
            features=loaded.features,
            shared=shared_of(prepared, loaded.features, Kept(folder=measurements / TASKS, say=loaded.progress.say)),
            trackers=trackers,
            processes=processes,
        )
        stages = _stages(bench, measurements)
    seconds = {"load": loaded.seconds, "total": time.monotonic() - started}
    result = assemble(prepared, stages, run=folder.name, seconds=seconds)
    folder.event("finished", seconds=seconds["total"])
    return result


def _inputs(recipe: Recipe, prepared: Prepared) -> dict[str, str]:
    """The digests of what a run is made from."""
    examples = prepared.examples
    train = {f"records of {name}": records.digest for name, records in examples.train.items()}
    about = {"recipe": recipe.digest, "model": prepared.model.id, "selection": prepared.selection.digest}
    kept = {f"records of {name}": digest for name, digest in kept_digests(examples.kept).items()}
    return about | train | kept | {"tests": examples.suite.digest}


def _numbers(choice: Choice) -> dict[str, dict[str, float | None]]:
    """Every component's number, `taken` or `left`; None for an infinite one, which JSON does not know."""
    found: dict[str, dict[str, float | None]] = {"taken": {}, "left": {}}
    for one in choice.ranked:
        found["taken" if one.taken else "left"][one.name] = one.number if isfinite(one.number) else None
    return found


def _stages(bench: Bench, measurements: Path) -> list[Stage]:
    """The base and every lesson of a recipe, in order."""
    prepared, progress, registry = bench.prepared, bench.progress, bench.registry
    for row in forecast(prepared.model.net, prepared.selection):
        against = "" if row.expected is None else f", {row.expected:,} expected from the configuration"
        progress.say(f"may move: {row.family}, {row.components:,} components, {row.weights:,} weights{against}")
    to_teach = [skill.name for skill in prepared.recipe.skills if bench.folder.stage(skill.name) is None]
    bench.processes.leads(lambda: check_looks(registry, prepared.recipe, prepared.examples.suite, to_teach))
    stages: list[Stage] = [measure_base(bench, measurements)]
    with ExitStack() as taught:
        model, original = prepared.model, prepared.origin
        for lesson in sequence(prepared):
            stage = teach(bench, model, lesson, stages, original)
            stages.append(stage)
            if stage.document.update is not None:
                delta = registry.delta(stage.document.update.id)
                if original is not None:
                    original, delta = after(delta, original), onto(delta, model.manifest, model)
                model = taught.enter_context(applied(model, delta))
            failed = stage.document.verdict is not None and stage.document.verdict.verdict == "failed"
            if failed and prepared.recipe.on_failure == "stop":
                progress.say(f"{lesson.name}: the gate failed, and the recipe says on_failure: stop")
                break
    return stages


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does. Does nothing outside the main thread, where Python takes no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
