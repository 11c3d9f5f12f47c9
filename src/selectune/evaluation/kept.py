"""Measured tasks that are kept: the same model asked the same again, in the same way and on the same kind of machine, is read instead.

A task's samples are one Parquet file beside a note that says what they are of and the file's sha256. Nothing else is trusted: another
model, task, prompt, decoding, batch, version or machine has another name, and a file that is not the very one that was written is
measured again, which is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.delta.files import replacing
from selectune.errors import DataError
from selectune.evaluation.measurement import Measurement
from selectune.hashing import digest, file_digest, parse_json

if TYPE_CHECKING:
    from selectune.evaluation.measurement import Sample
    from selectune.evaluation.suite import Task

VERSION = 1


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A folder of measured tasks."""

    folder: Path
    fresh: bool = False
    """Measure everything again; what is found is kept in place of the old."""
    say: Callable[[str], None] = _silent
    """Told of each task that was read, and of each file that was not trusted."""

    def find(self, task: Task, about: Mapping[str, Any]) -> tuple[Sample, ...] | None:
        """The task's samples as they were measured under `about`; None where there are none to be trusted."""
        path, note = self._paths(about)
        if self.fresh or not note.is_file():
            return None
        try:
            said = parse_json(note.read_bytes())
            if said != {"version": VERSION, "about": dict(about), "sha256": file_digest(path)}:
                raise DataError("it is not the file that was written", where=str(path))
            found = Measurement.load(path)
        except (DataError, OSError, ValueError) as error:
            why = error.what if isinstance(error, DataError) else str(error)
            self.say(f"{task.name}: measured again, as {path} cannot be trusted: {why}")
            return None
        self.say(f"{task.name}: cached in {path}")
        return tuple(replace(sample, task=task.name) for sample in found.samples)

    def keep(self, task: Task, about: Mapping[str, Any], samples: tuple[Sample, ...]) -> None:
        """Writes a task's samples. Raises StorageError where they cannot be written."""
        path, note = self._paths(about)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The note goes first and comes last, so that it never speaks of another file.
        note.unlink(missing_ok=True)
        Measurement(stage="kept", model_id=str(about["model"]), suite="", samples=samples, seconds=0.0, kinds={task.name: task.kind}).save(
            path
        )
        text = json.dumps({"version": VERSION, "about": dict(about), "sha256": file_digest(path)}, indent=1, sort_keys=True)
        with replacing(note) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def _paths(self, about: Mapping[str, Any]) -> tuple[Path, Path]:
        name = digest("evaluation", dict(about))[:32]
        return self.folder / f"task-{name}.parquet", self.folder / f"task-{name}.json"
