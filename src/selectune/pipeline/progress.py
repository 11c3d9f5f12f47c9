"""How a run tells a person what it does; the command line draws it, a program may ignore it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What a run reports to while it goes on."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def start(self, what: str, total: int | None) -> None:
        """A bar begins; `total` is None where the end is not known."""

    def advance(self, done: int, total: int | None = None) -> None:
        """The bar stands at `done`; `total` where only now it is known."""

    def finish(self) -> None:
        """The bar ends, reached or not."""


class Silent:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Nothing."""

    def start(self, what: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, done: int, total: int | None = None) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


@contextmanager
def bar(progress: Progress, what: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """A bar that ends with the block; yields ``(done, total) -> None``."""
    progress.start(what, total)
    try:
        yield progress.advance
    finally:
        progress.finish()
