"""A training's states on disk: written on time while it goes on, and where it goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from selectune.training import checkpoint
from selectune.training.background import Writer

if TYPE_CHECKING:
    from selectune.training.results import Session, Step
    from selectune.training.setup import Setup


class States:
    """Where one training's checkpoints go, if anywhere. Of several processes all write if each holds a part, else the first alone."""

    def __init__(self, setup: Setup, session: Session) -> None:
        self._setup = setup
        self._session = session
        self._processes, self._masters = setup.processes, setup.masters
        self._writer: Writer | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, checkpoints can be written; leaving waits for the last one. Raises StorageError."""
        if self._session.checkpoint_dir is None:
            yield
            return
        optim = self._setup.optim
        if self._masters.sharded:
            optim = optim.model_copy(update={"keep_checkpoints": max(2, optim.keep_checkpoints)})
        idle = not (self._processes.is_first or self._masters.sharded)
        with Writer(self._part(self._session.checkpoint_dir), optim, self._masters.live, idle=idle) as self._writer:
            yield

    @property
    def newest(self) -> Path | None:
        """The last checkpoint that this training has on the disk."""
        return None if self._writer is None else self._writer.newest

    @property
    def place(self) -> Path | None:
        """What to go on from: the last checkpoint, else the folder; None where none are written."""
        return None if self._writer is None else self._writer.newest or self._writer.folder

    def keep(self, history: Sequence[Step], *, stopping: bool) -> None:
        """Writes the state after the last step of `history` if it is time, and in any case when `stopping`, which waits for it.

        Raises StorageError, also for a write that was begun earlier.
        """
        writer = self._writer
        if writer is None:
            return
        writer.check()
        if stopping or self._processes.any(writer.due(history[-1].n)):
            if self._masters.sharded:
                # Every part of the last one is on the disk before any part of the next is begun: there is always a whole one.
                writer.finish()
                self._processes.wait()
            tensors = self._masters.state()
            writer.begin(checkpoint.Checkpoint(identity=self._setup.identity, steps=tuple(history), tensors=tensors))
        if stopping:
            writer.finish()

    def resume(self) -> list[Step]:
        """The steps that are done already, with masters, moments and random state as they were after them. Raises ResumeError."""
        if self._session.resume is None:
            return []
        path = self._part(self._session.resume)
        if self._masters.sharded and path.is_dir():
            whole = self._processes.everywhere([one.name for one in checkpoint.written(path)])
            path = path / max(whole, default="checkpoint")
        saved = checkpoint.read(path, self._setup.identity, self._masters.live)
        self._masters.load(saved.tensors)
        if self._writer is not None:
            self._writer.take_over(len(saved.steps))
        return list(saved.steps)

    def _part(self, path: Path) -> Path:
        """A checkpoint's place: of a model in shards, each process has a folder of its own."""
        if not self._masters.sharded or path.is_file():
            return path
        return path / f"process-{self._processes.index + 1}-of-{self._processes.count}"
