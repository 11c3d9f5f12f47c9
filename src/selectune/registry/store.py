"""What a registry is kept in: a log of events and a store of objects, whichever kind they are.

Two kinds of log: a database (`events`), and objects that are each written once (`objects`). Two kinds of object store: a local folder
(`blobs`) and whatever fsspec reaches (`remote`).
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from selectune.errors import Overtaken

if TYPE_CHECKING:
    from selectune.registry.events import Event

__all__ = ["EVENT_LIMIT", "OBJECT_LIMIT", "Blobs", "EventLog", "again", "silent"]

OBJECT_LIMIT = 256 << 30
"""Bytes of the largest object that is fetched from elsewhere."""
EVENT_LIMIT = 16 << 20
"""Bytes of the largest event that is read."""

ATTEMPTS = 30
"""How often a decision is taken anew because somebody else's event came first."""
_PAUSE = 0.02
"""Seconds; up to twice as many after each attempt, so that writers who met once do not meet again."""

P = ParamSpec("P")
T = TypeVar("T")


def silent(_: int) -> None:
    """Hears of bytes and says nothing."""


class EventLog(Protocol):
    """Events that can only be appended, each chained by hash to the one before."""

    def exists(self) -> bool:
        """Whether the log is there."""

    def create(self, first: Mapping[str, Any]) -> None:
        """Makes the log with its first event {utc, actor, kind, name, subject, body}, if it is not there. Several may do so at once."""

    def append(self, event: Mapping[str, Any], *, once: bool = False) -> bool:
        """Appends {utc, actor, kind, name, subject, body}; with `once` not if an event of that kind and subject is there. Says which."""

    def deciding(self) -> AbstractContextManager[tuple[list[Event], Any]]:
        """All events, as `recall`, and what `append_to` wants; what is appended in the block follows what it was decided on, or nothing is.

        Raises Overtaken, on leaving the block, where somebody else's event came first: then the whole decision is taken `again`.
        """

    def append_to(self, connection: Any, event: Mapping[str, Any]) -> None:
        """Appends inside a `deciding` block; it is there once the block is left."""

    def read(self, *, lenient: bool = False) -> list[Event]:
        """All events, oldest first. Raises RegistryError where there is no registry.

        What cannot be read raises too, or, when `lenient`, is left out or has an empty body, which its hash then does not fit.
        """

    def recall(self) -> list[Event]:
        """All events, oldest first, for a process that has read some of them before: of those only the last is read again.

        What the events before it hold is then what this process read first, whatever became of them since; how an edit is noticed sooner
        than by `read`, each kind of log says. The list is the caller's own. Raises LogCut where the last one is gone, or another now.
        """

    def recent(self, limit: int) -> tuple[list[Event], int]:
        """What tells of the newest updates: their first `add` events, at most `limit`, and whatever is no `add`, `snapshot` or `look`.

        Oldest first; and how many updates there are. Raises as `read`, but for what is not read.
        """

    def of_kind(self, kind: str) -> list[Event]:
        """The events of one kind, oldest first. Raises as `recent`."""

    def names(self) -> dict[str, str]:
        """Where each name points. Raises RegistryError where there is no registry."""


class Blobs(Protocol):
    """Objects by the sha256 of their bytes, 64 hex digits; one never changes once it is there.

    Every method but `fault` raises RegistryError for a name that is no sha256; all raise StorageError where the store cannot be reached,
    read or written.
    """

    def create(self) -> None:
        """Makes what has to be there before the first `put`, and removes what a process that is gone left unfinished."""

    def put(self, source: Path | bytes, *, moved: Callable[[int], None] = silent) -> str:
        """Copies a file (or bytes) in and returns the sha256 of what was copied. Whole or not there; again changes nothing.

        `moved` hears of each piece's bytes, from several threads at once; of none where the object is there already.
        """

    def together(self) -> AbstractContextManager[None]:
        """What is put in the block is there once it ends; without it, once `put` returns. A store may take all of it in one step then."""

    def read(self, name: str) -> bytes:
        """An object's bytes, checked: the very bytes that were hashed. Raises ObjectDamaged, ObjectMissing."""

    def open(self, name: str, *, moved: Callable[[int], None] = silent) -> AbstractContextManager[BufferedReader]:
        """An object as a local file, at its first byte, hashed through the same descriptor. `fileno` and `mmap` work on it.

        An object of another machine is fetched once for each process, and `moved` hears of it. Raises ObjectDamaged, ObjectMissing,
        and Oversize for one of more than `OBJECT_LIMIT` bytes elsewhere.
        """

    def path(self, name: str) -> Path:
        """Where an object lies on this machine, for a program that reads files; fetched if need be, else not hashed.

        Raises ObjectMissing.
        """

    def size(self, name: str) -> int:
        """An object's bytes as the store counts them. Raises ObjectMissing."""

    def has(self, name: str) -> bool:
        """Whether an object of that name is there; nothing is hashed."""

    def modified(self, name: str) -> float:
        """When an object, or what a crash left, was written: seconds since 1970, by the store's clock. ObjectMissing if it is gone."""

    def fault(self, name: str) -> str | None:
        """None for an object that is there and whole, else "missing", which every name that is no sha256 is, or "damaged"."""

    def names(self) -> list[str]:
        """Every name of the store, objects and what a crash left, sorted."""

    def delete(self, name: str) -> None:
        """Removes an object; nothing happens where it is not there."""


def again(decide: Callable[P, T]) -> Callable[P, T]:
    """`decide`, taken anew whenever another event came first, from what is there then. Raises Overtaken after 30 attempts.

    `decide` does nothing that lasts but what it appends in one `EventLog.deciding` block.
    """

    @functools.wraps(decide)
    def decided(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(ATTEMPTS - 1):
            try:
                return decide(*args, **kwargs)
            except Overtaken:
                time.sleep(random.uniform(0, _PAUSE * (attempt + 1)))
        return decide(*args, **kwargs)

    return decided
