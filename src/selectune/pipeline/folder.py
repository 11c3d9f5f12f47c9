"""A run's folder: what is written while it goes on, so that it can be followed, and taken up again where it stopped.

::

    selectune-runs/NAME-YYYYMMDD-HHMMSS/
      run.json          which recipes, which registry
      recipe.yaml       resolved: everything written out
      inputs.json       digests of the recipe, the model, the selection and the records: what a resumed run must find again
      events.jsonl      one line for each thing that happened; steps that were made again after a crash stand there twice
      samples/          STAGE.parquet, one for each measurement
      samples/before/   STAGE.parquet: with gate.early, what was asked of the model before STAGE only when that was judged
      stages/           STAGE.json: what a finished stage found
      checkpoints/      of the stage that is being trained
      trackers/         what those of `report_to` keep
      adapters/         STAGE/: with optim.adapter, the low-rank matrices in PEFT's form
      result.json, report.html

With several recipes, each has a folder of its own inside. Every file but `events.jsonl` is written whole or not at all; what a crash left
unfinished begins with a dot, and is gone when the run goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selectune.delta.files import sweep, temporary_name
from selectune.errors import InputError, ResumeError, StorageError
from selectune.evaluation.measurement import Measurement
from selectune.governance.documents import now_text
from selectune.hashing import parse_json
from selectune.recipe import Recipe, dump_recipe, parse_recipe
from selectune.reporting.document import Document, write_whole
from selectune.reporting.judged import Verdict
from selectune.reporting.measured import NumberStage
from selectune.reporting.trained import Phase, QuickPoint, UpdateInfo


class CaptionText(Document):
    """What a model wrote about one picture."""

    id: str
    text: str
    mean: float
    max: float


class StageDocument(Document):
    """What one finished stage found; with its measurement and its update's delta, all that a resumed run needs of it."""

    stage: str
    model_id: str
    """Of the model after the stage."""
    seconds: dict[str, float]
    phase: Phase | None = None
    """None for the base."""
    update: UpdateInfo | None = None
    verdict: Verdict | None = None
    numbers: NumberStage | None = None
    captions: tuple[CaptionText, ...] = ()
    alarms: tuple[str, ...] = ()
    """What the rules of `watch` found in the training, a sentence each."""


class RunDocument(Document):
    """What a run was asked to do."""

    run: str
    created: str
    registry: str
    recipes: tuple[str, ...]
    """Folders of the recipes, inside the run's own; ``.`` for a single one."""


class Folder:
    """The folder of one recipe in a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Where the stage in training keeps its checkpoints."""
        return self.path / "checkpoints"

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        path = self.path / "recipe.yaml"
        try:
            return parse_recipe(path.read_text(encoding="utf-8"), where=str(path))
        except OSError as error:
            raise ResumeError(f"cannot be read ({error.strerror})", where=str(path), then="Start the run again.") from error

    def write_recipe(self, recipe: Recipe) -> None:
        """Write `recipe.yaml`, resolved."""
        write_whole(self.path / "recipe.yaml", f"# Resolved by selectune; every path is absolute.\n{dump_recipe(recipe)}")

    def mend(self) -> None:
        """Removes what a crash left: files that begin with a dot, the last line of the events if it has no end, and checkpoints of stages
        that are finished.

        For the one process that holds the run (`held`).
        """
        for path in sorted(self.path.rglob(".*"), reverse=True):
            if "trackers" in path.relative_to(self.path).parts:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path in self.checkpoints.glob("*"):
            if (self.path / "stages" / f"{path.name}.json").is_file():
                shutil.rmtree(path)
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()
        events = self.path / "events.jsonl"
        if events.is_file():
            data = events.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(events, data.rfind(b"\n") + 1)

    def claim(self, inputs: Mapping[str, str]) -> None:
        """Keeps the digests of what a run is made from; when it goes on, raises ResumeError that names each one that is another now."""
        path = self.path / "inputs.json"
        try:
            before = parse_json(path.read_bytes()) if path.is_file() else None
            if not isinstance(before, dict | None):
                raise InputError("it holds no digests")
        except InputError as error:
            raise ResumeError(f"cannot be read ({error})", where=str(path), then="Start the run again.") from error
        if before is None:
            write_whole(path, json.dumps(dict(inputs), indent=1) + "\n")
            return
        changed = [
            f"{name} was {str(before.get(name))[:12]}, is {str(inputs.get(name))[:12]}"
            for name in sorted(before.keys() | inputs.keys())
            if before.get(name) != inputs.get(name)
        ]
        if changed:
            then = "Put back what was changed, or start a new run."
            raise ResumeError(f"was begun with something else: {'; '.join(changed)}", where=str(self.path), then=then)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to `events.jsonl`. Raises StorageError."""
        line = json.dumps({"at": now(), "event": kind, **fields}, ensure_ascii=False, allow_nan=False)
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise StorageError(
                f"{error.strerror}", where=str(self.path / "events.jsonl"), then="Free space, or choose another folder."
            ) from error

    def quick(self, stage: str) -> tuple[QuickPoint, ...]:
        """Every small measurement of a stage, those before an interruption too, from the events; one that was taken again counts once."""
        path = self.path / "events.jsonl"
        try:
            events = [parse_json(line) for line in path.read_bytes().splitlines()]
            events = [event for event in events if event["event"] == "quick" and event["stage"] == stage]
            found = {event["step"]: QuickPoint(step=event["step"], scores=event["scores"], n=event["n"]) for event in events}
        except (InputError, ValidationError, KeyError, TypeError) as error:
            raise ResumeError(f"has a line that is no event ({str(error)[:120]})", where=str(path), then="Start the run again.") from error
        return tuple(found[n] for n in sorted(found))

    def measurement(self, stage: str) -> Path:
        """Where a stage's samples lie."""
        path = self.path / "samples" / f"{stage}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def more(self, stage: str) -> Path:
        """Where the samples lie that were asked of the model before a stage only when the stage was judged."""
        path = self.path / "samples" / "before" / f"{stage}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def stage(self, name: str) -> tuple[StageDocument, Measurement] | None:
        """A finished stage, or None. Raises ResumeError for a file that is not one."""
        path = self.path / "stages" / f"{name}.json"
        if not path.is_file():
            return None
        try:
            document = StageDocument.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ResumeError("is not a stage of this version", where=str(path), then="Start the run again.") from error
        return document, Measurement.load(self.measurement(name))

    def finish(self, document: StageDocument) -> None:
        """Write a stage's document, the last thing of a stage; its checkpoints are then needed no more."""
        write_whole(self.path / "stages" / f"{document.stage}.json", document.model_dump_json(indent=1) + "\n")
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return now_text(datetime.now(UTC))


def open_run(out: Path, name: str, recipes: Sequence[Recipe], registry: str) -> tuple[RunDocument, Path]:
    """A new folder for a run under `out`, with its recipes written. Raises StorageError, and InputError for two recipes of one name."""
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise InputError(f"two recipes of one run have the same name: {', '.join(names)}", where="run", then="Rename one.")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = out / f"{name}-{stamp}"
    count = 1
    folders = ["."] if len(recipes) == 1 else names
    unfinished = out / temporary_name()
    try:
        out.mkdir(parents=True, exist_ok=True)
        sweep(out)
        while path.exists():
            count += 1
            path = out / f"{name}-{stamp}-{count}"
        unfinished.mkdir()
        for folder, recipe in zip(folders, recipes, strict=True):
            (unfinished / folder).mkdir(exist_ok=True)
            Folder(unfinished / folder).write_recipe(recipe)
        document = RunDocument(run=path.name, created=now(), registry=registry, recipes=tuple(folders))
        write_whole(unfinished / "run.json", document.model_dump_json(indent=1) + "\n")
        # A folder of that name that another process made meanwhile is not empty, and is not replaced.
        unfinished.rename(path)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise StorageError(
            f"cannot be written ({error.strerror or error})", where=str(path), then="Free space, or choose another folder with --out."
        ) from error
    return document, path


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Inside, no other process goes on with this run; a process that is killed lets go. Raises ResumeError where one does already."""
    with (path / "run.json").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            then = "Wait for that one, or stop it first."
            raise ResumeError("another process is working on this run", where=str(path), then=then) from error
        yield


def read_run(path: Path) -> RunDocument:
    """The document of a run that was begun. Raises ResumeError for a folder that is none."""
    try:
        return RunDocument.model_validate_json((path / "run.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise ResumeError("is not the folder of a run", where=str(path), then="Give the folder that holds run.json.") from error
