"""Checkpoints written while training goes on: copied first, then written by a thread, one after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch import Tensor

from selectune.delta.files import sweep
from selectune.training import checkpoint
from selectune.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from selectune.recipe import Optim


class Writer:
    """A folder of checkpoints of one training. Leaving the block waits for the last one, and raises its error if there is no other.

    A checkpoint takes memory for one copy of masters and moments while it is written; a second one waits until the first is on the disk, so
    none overtakes another.
    """

    def __init__(self, folder: Path, optim: Optim, start: Mapping[str, Tensor], *, idle: bool = False) -> None:
        """`start`: the weights before the first step, by the masters' names, which are copied. Removes what a crash left half-written.

        An `idle` one keeps the time but writes nothing, where another process does.
        """
        self.folder = folder
        self._every = optim.save_every
        self._seconds = None if optim.save_minutes is None else 60.0 * optim.save_minutes
        self._keep = optim.keep_checkpoints
        self._idle = idle
        self._start = {} if idle else {name: weight.to("cpu", copy=True) for name, weight in start.items()}
        self._kept: list[Path] = []
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="selectune-checkpoint")
        self._writing: Future[None] | None = None
        if not idle:
            sweep(folder)

    @property
    def newest(self) -> Path | None:
        """The last one that is on the disk."""
        return self._kept[-1] if self._kept else None

    def take_over(self, steps: int) -> None:
        """Counts the checkpoints that this training wrote in the folder, up to so many steps, among those that are kept."""
        if not self._idle:
            self._kept = [path for path in checkpoint.written(self.folder) if path.name <= checkpoint.NAME.format(steps)]

    def due(self, number: int) -> bool:
        """Whether a checkpoint is wanted after this step, by steps or by the time since the last one was begun."""
        late = self._seconds is not None and time.monotonic() - self._since >= self._seconds
        return late or (self._every is not None and number % self._every == 0)

    def begin(self, state: Checkpoint) -> None:
        """Copies the state and returns; a thread writes it. Waits for an earlier one. Raises StorageError if that one failed."""
        self.finish()
        self._since = time.monotonic()
        if not self._idle:
            self._writing = self._thread.submit(self._write, state.copied())

    def check(self) -> None:
        """Raises the error of a write that has failed meanwhile; does not wait."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Waits until what was begun is on the disk. Raises its error, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, state: Checkpoint) -> None:
        path = checkpoint.write(self.folder, state, self._start)
        kept = [*(one for one in self._kept if one != path), path]
        for old in kept[: -self._keep]:
            old.unlink(missing_ok=True)
        self._kept = kept[-self._keep :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.finish()
