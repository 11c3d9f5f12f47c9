"""An event log kept as objects, for a store without a database: ``events/00000001.json``, ``events/00000002.json``, …

Each event is an object that can only be written where nothing is yet, so two writers never both write event n: the one that comes second
reads again what is there and decides anew. The chain of hashes is that of the log in a database, and so are its limits: whoever may write
to the store can also remove or change objects, which the chain shows, but for a cut tail, which only a head that is kept elsewhere shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from selectune.errors import EventEdited, EventMalformed, InputError, LogCut, Oversize, Overtaken, RegistryError, VerifyFailed
from selectune.faults import reach
from selectune.hashing import canonical, parse_json
from selectune.registry.events import GENESIS, Event, changed, extended
from selectune.registry.lineage import pointers
from selectune.registry.shelves import Shelf
from selectune.registry.store import EVENT_LIMIT, again

__all__ = ["ObjectLog", "as_object"]

_NAME = re.compile(r"([0-9]{8})\.json\Z")
_THREADS = 16
_MOST = 99_999_999
_FIELDS = ("seq", "utc", "actor", "kind", "name", "subject", "body", "prev", "hash")


class _Row(BaseModel):
    """An event as its object holds it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seq: int
    utc: str
    actor: str
    kind: str
    name: str | None
    subject: str | None
    body: dict[str, Any]
    prev: str
    hash: str


class ObjectLog:
    """The events on one shelf. A `store.EventLog`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._known: list[Event] = []
        # What this process has read once it does not ask for again: an event never changes.

    def exists(self) -> bool:
        """Whether there is any event."""
        return any(_NAME.match(name) for name in self._shelf.sizes())

    def create(self, first: Mapping[str, Any]) -> None:
        """The first event, if there is none. Raises RegistryError for a store in which an object can be written twice."""
        self._shelf.prepare()
        event = Event.following(0, GENESIS, first)
        name, data = as_object(event)
        reach("event.begun")
        if self._shelf.create(name, data) and self._shelf.create(name, data):
            raise RegistryError(
                "this store lets an object be written twice, so two writers could both write the same event",
                where=self._shelf.where,
                then="Use a store that honours If-None-Match, or keep the events in PostgreSQL.",
            )
        reach("event.committed")

    @again
    def append(self, event: Mapping[str, Any], *, once: bool = False) -> bool:
        """As `store.EventLog.append`."""
        with self.deciding() as (events, pending):
            if once and any((one.kind, one.subject) == (event["kind"], event["subject"]) for one in events):
                return False
            self.append_to(pending, event)
        return True

    @contextmanager
    def deciding(self) -> Iterator[tuple[list[Event], list[Mapping[str, Any]]]]:
        """As `store.EventLog.deciding`. Several events of one block are written one after the other: a crash leaves the first of them."""
        events, pending = self.recall(), list[Mapping[str, Any]]()
        yield events, pending
        self._write(extended(events[-1:], pending)[1:])

    def append_to(self, connection: list[Mapping[str, Any]], event: Mapping[str, Any]) -> None:
        """As `store.EventLog.append_to`."""
        connection.append(event)

    def _write(self, events: Sequence[Event]) -> None:
        reach("event.begun")
        for event in events:
            self._check_room(event)
            name, data = as_object(event)
            # A connection that broke after the store had taken the event ends in "taken" as well; then the very bytes are there.
            if not self._shelf.create(name, data) and self._shelf.get(name, len(data) + 1) != data:
                raise Overtaken(f"event {event.seq} was written by somebody else first", where=self._shelf.where, then="Try again.")
            if len(known := self._known) == event.seq - 1:
                self._known = [*known, event]
            reach("event.appended")
        reach("event.committed")

    def _check_room(self, event: Event) -> None:
        if event.seq > _MOST:
            raise RegistryError(f"the log is full at {_MOST} events", where=self._shelf.where, then="Keep the events in PostgreSQL.")

    def read(self, *, lenient: bool = False) -> list[Event]:
        """As `store.EventLog.read`. Raises LogCut where an event is gone, EventMalformed, EventEdited, Oversize."""
        sizes = {int(match[1]): size for name, size in self._shelf.sizes().items() if (match := _NAME.match(name))}
        if not sizes:
            raise RegistryError(
                "this is no registry", where=self._shelf.where, then="Record a run first: selectune run RECIPE --registry DIR"
            )
        known = [] if lenient else self._known
        if len(known) > max(sizes):
            raise LogCut(
                f"{len(known)} events were here, {max(sizes)} are left", where=self._shelf.where, then="Find out who removed them."
            )
        wanted = sorted(sizes)[len(known) :]
        if not lenient and wanted != list(range(len(known) + 1, max(sizes) + 1)):
            lost = next(number for number in range(1, max(sizes) + 1) if number not in sizes)
            raise LogCut(f"event {lost} is missing", where=self._shelf.where, then="See what else is: selectune verify")
        with ThreadPoolExecutor(_THREADS) as threads:
            found = [*known, *threads.map(lambda number: self._event(number, sizes[number], lenient), wanted)]
        if not lenient:
            self._known = list(found)
        return found

    def recall(self) -> list[Event]:
        """As `store.EventLog.recall`: the last event's object is fetched again, and those after it one by one until there is none.

        Nothing is listed, so a gap and an object that was removed or changed before the last one are found by `read`, and so by `verify`.
        """
        known = self._known
        if not known:
            return self.read()
        count, last = len(known), self._shelf.get(_name(len(known)), EVENT_LIMIT + 1)
        if last is None or self._parsed(count, last, lenient=False) != known[-1]:
            raise changed(count, gone=last is None, where=self._shelf.where)
        found = list(known)
        while (data := self._shelf.get(_name(len(found) + 1), EVENT_LIMIT + 1)) is not None:
            found.append(self._parsed(len(found) + 1, data, lenient=False))
        self._known = found
        return list(found)

    def _event(self, number: int, size: int, lenient: bool) -> Event:
        self._check_size(number, size)
        data = self._shelf.get(_name(number), EVENT_LIMIT + 1) if size else b""
        return self._parsed(number, data or b"", lenient=lenient)

    def _check_size(self, number: int, size: int) -> None:
        if size > EVENT_LIMIT:
            where = f"{self._shelf.where}/{_name(number)}"
            raise Oversize(f"an event of {size} bytes, over the limit of {EVENT_LIMIT}", where=where, then="Find out who wrote it.")

    def _parsed(self, number: int, data: bytes, *, lenient: bool) -> Event:
        where = f"{self._shelf.where}/{_name(number)}"
        self._check_size(number, len(data))
        try:
            row = _Row.model_validate(parse_json(data, limit=EVENT_LIMIT))
        except (InputError, ValidationError) as error:
            if lenient:
                return Event(seq=number, utc="", actor="", kind="", name=None, subject=None, body={}, prev="", hash="")
            why = error.what if isinstance(error, InputError) else error.errors()[0]["msg"]
            raise EventMalformed(f"event {number} is unreadable: {why}", where=where, then="See what else is: selectune verify") from error
        if row.seq != number and not lenient:
            raise EventEdited(
                f"event {row.seq} lies where event {number} should be", where=where, then="See what else is: selectune verify"
            )
        return Event(**row.model_dump())

    def recent(self, limit: int) -> tuple[list[Event], int]:
        """As `store.EventLog.recent`. Every event is read, as each is an object of its own."""
        found = self.read()
        first: dict[str | None, int] = {}
        for event in found:
            if event.kind == "add":
                first.setdefault(event.subject, event.seq)
        newest = set(list(first.values())[max(len(first) - limit, 0) :])
        return [event for event in found if event.kind not in ("add", "snapshot", "look") or event.seq in newest], len(first)

    def of_kind(self, kind: str) -> list[Event]:
        """As `store.EventLog.of_kind`. Every event is read."""
        return [event for event in self.read() if event.kind == kind]

    def names(self) -> dict[str, str]:
        """As `store.EventLog.names`; in a log that is damaged, by what can be read of it, so that `verify` can tell the rest."""
        try:
            return pointers(self.read())
        except VerifyFailed:
            return pointers(self.read(lenient=True))


def _name(number: int) -> str:
    return f"{number:08d}.json"


def as_object(event: Event) -> tuple[str, bytes]:
    """The name and the bytes of an event's object."""
    return _name(event.seq), canonical({field: getattr(event, field) for field in _FIELDS})
