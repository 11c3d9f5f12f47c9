"""What a verb shows: one document on stdout, everything else on stderr, and every error as a short message with the right exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

from selectune.errors import SelectuneError, Stopped, StorageError, plain

_LONG = 1000
"""Entries of a list; a document with a longer one is written on one line."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""What the system says when a disk is full or must not be written to."""


class _Plain(Console):
    """A console on which what a registry, a model or a record says is text and nothing else: rich lets a stranger's escapes through."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for one in super().render(renderable, options):
            yield one if one.control or one.text.isprintable() else Segment(plain(one.text), one.style)


class Screen:
    """A verb's output. Inside the block, whatever a library prints goes to stderr, so that stdout holds the verb's document alone.

    Errors end the block with a message on stderr and an exit code: 1, 2 or 130 as `selectune.errors` says, 3 for a bug of ours. With
    `as_json` an error that comes before the document is a document itself: ``{"error": {"kind", "message", "exit_code"}}``.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._speaks = os.environ.get("RANK", "0") == "0"
        """Of several processes that torchrun began, the first one alone shows what came of it; each tells its own errors."""
        self._shown = False
        self._stdout: TextIO = sys.stdout
        self._console = _Plain(stderr=True, soft_wrap=True, emoji=False)
        self._redirect = redirect_stdout(sys.stderr)
        self._progress: Progress | None = None
        self._what = ""
        self._since = 0.0

    def __enter__(self) -> Self:
        # Nothing is fetched at run time: a hub id must be on this disk already.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TQDM_DISABLE", "1")
        self._redirect.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish()
        self._redirect.__exit__(kind, error, trace)
        if error is None or isinstance(error, typer.Exit | SystemExit | GeneratorExit):
            return
        if isinstance(error, BrokenPipeError):
            return
        if isinstance(error, KeyboardInterrupt):
            error = Stopped("stopped before anything was written", then="Start it again.")
        elif isinstance(error, OSError) and not isinstance(error, SelectuneError) and error.errno in FULL:
            error = StorageError(f"{error.strerror}", where=str(error.filename or "disk"), then="Free space, or choose another folder.")
        code = error.exit_code if isinstance(error, SelectuneError) else 3
        message = str(error) if isinstance(error, SelectuneError) else _crash(error)
        self._console.print(f"{type(error).__name__}: {message}", style="red", markup=False, highlight=False)
        if self.as_json and self._speaks and not self._shown:
            self._write_json({"error": {"kind": type(error).__name__, "message": message, "exit_code": code}})
        raise typer.Exit(code) from error

    def show(self, document: Any, human: Callable[[Console], None]) -> None:
        """The verb's result: `document` with ``--json``, else what `human` prints."""
        self.finish()
        self._shown = True
        if not self._speaks:
            return
        if self.as_json:
            self._write_json(document)
        else:
            human(_Plain(file=self._stdout, soft_wrap=True, highlight=False, emoji=False))

    def exit(self, code: int) -> None:
        """Leave with this code after the document."""
        raise typer.Exit(code)

    def say(self, text: str) -> None:
        """A message on stderr."""
        if self._speaks:
            self._console.print(text, markup=False, highlight=False)

    def start(self, what: str, total: int | None) -> None:
        """A bar with the time that is left; on a stderr that is no terminal, one line when it ends."""
        self.finish()
        self._what, self._since = what, time.monotonic()
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.add_task(what, total=total)
            self._progress.start()

    def advance(self, done: int, total: int | None = None) -> None:
        """The bar stands at `done`."""
        if self._progress is not None:
            task = self._progress.task_ids[0]
            if total is not None:
                self._progress.update(task, total=total)
            self._progress.update(task, completed=done)

    def finish(self) -> None:
        """The bar ends; what took more than two seconds leaves a line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        seconds = time.monotonic() - self._since
        if self._what and seconds > 2:
            self.say(f"{self._what}: {seconds:.0f} s")
        self._what = ""

    def _write_json(self, document: Any) -> None:
        # With an indent Python's encoder is five times slower, and nobody reads a list of thousands.
        long = isinstance(document, dict) and any(isinstance(value, list) and len(value) > _LONG for value in document.values())
        indent = None if long else 1
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
        if not text.replace("\n", "").isprintable():  # JSON itself escapes half of what moves a terminal
            text = json.dumps(document, allow_nan=False, indent=indent)
        self._stdout.write(text + "\n")
        self._stdout.flush()


def _crash(error: BaseException) -> str:
    """The message for a bug of ours; the traceback goes to a file."""
    handle, path = tempfile.mkstemp(prefix="selectune-crash-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(f"{' '.join(sys.argv)}\n\n")
        stream.write("".join(traceback.format_exception(error)))
    return f"{error}. This is a bug of ours; its traceback is in {Path(path)}. Please report it with that file."
