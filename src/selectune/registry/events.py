"""The event log: rows that can only be appended, each chained by hash to the one before. SQLite or PostgreSQL.

The triggers stop accidents and honest programs. An administrator can drop them and edit a row; the chain then shows where. Only a head
(count and last hash) kept elsewhere shows that the tail was cut.

`read` reads every row. `recall` and `deciding`, which a program that runs for long asks again and again, read each row once: `Log.recall`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from selectune.errors import InputError, LogCut, RegistryError
from selectune.faults import reach
from selectune.hashing import canonical, digest, parse_json, text_digest
from selectune.registry import schema
from selectune.registry.database import Database
from selectune.registry.schema import GENESIS, events

__all__ = ["GENESIS", "Event", "Head", "Log", "Text", "changed", "extended"]

_quoted = json.JSONEncoder(ensure_ascii=False).encode


class Text(Mapping[str, Any]):
    """An event's body as the database has it: read whenever it is looked at, so that nobody shares what comes of it.

    Raises RegistryError, where it is looked at, for what is no JSON object.
    """

    __slots__ = ("seq", "text")

    def __init__(self, seq: int, text: str) -> None:
        self.seq = seq
        self.text = text

    def read(self) -> dict[str, Any]:
        """The body, new and the caller's own."""
        try:
            return _body(self.text)
        except InputError as error:
            raise _unreadable(self.seq, error) from error

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Text) else super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as a dict

    def __getitem__(self, name: str) -> Any:
        return self.read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())

    def __len__(self) -> int:
        return len(self.read())


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened."""

    seq: int
    """From 1, without gaps."""
    utc: str
    actor: str
    kind: str
    """create, add, snapshot, promote, revert, tag, retire, hold, release, look, policy, approve, revoke, gc, import, export or verify."""
    name: str | None
    subject: str | None
    """The update's id; of a look, the model's; of a policy, its digest."""
    body: Mapping[str, Any]
    prev: str
    """The hash of the event before; 64 zeros for the first."""
    hash: str

    @classmethod
    def following(cls, count: int, prev: str, said: Mapping[str, Any]) -> Event:
        """The event behind `count` others, the last of which has the hash `prev`, that says {utc, actor, kind, name, subject, body}.

        Raises RegistryError for a NUL character in its words, which PostgreSQL cannot keep; InputError for what is no canonical JSON.
        """
        for field, word in said.items():
            if isinstance(word, str) and "\0" in word:
                raise RegistryError(f"the {field} {word[:80]!r} has a NUL character in it", then="Leave that character out.")
        made = cls(seq=count + 1, prev=prev, hash="", **said)
        return replace(made, hash=made.computed_hash())

    def said(self) -> dict[str, Any]:
        """What whoever appended it said: {utc, actor, kind, name, subject, body}."""
        return {field: getattr(self, field) for field in ("utc", "actor", "kind", "name", "subject", "body")}

    def content(self) -> dict[str, Any]:
        """The body; of an event that is shared, a copy whose top the caller may change."""
        return self.body.read() if isinstance(self.body, Text) else dict(self.body)

    def motion(self) -> str:
        """``digest("move", …)`` of all fields but the hash, and of the body but what is ``signed``: what whoever moves something signs."""
        body = {name: value for name, value in self.content().items() if name != "signed"}
        return digest("move", {**self.said(), "body": body, "seq": self.seq, "prev": self.prev})

    def computed_hash(self) -> str:
        """``digest("event", …)`` of all fields but the hash."""
        if isinstance(self.body, Text) and text_digest("event", self._spelled(self.body.text)) == self.hash:
            # Most texts are the canonical JSON that was hashed; making that again takes fifty times as long.
            return self.hash
        fields = ("seq", "utc", "actor", "kind", "name", "subject", "prev")
        return digest("event", {**{field: getattr(self, field) for field in fields}, "body": self.content()})

    def _spelled(self, body: str) -> bytes:
        """The canonical JSON of all fields but the hash, if `body` is that of the body."""
        name, subject = ("null" if word is None else _quoted(word) for word in (self.name, self.subject))
        start = f'{{"actor":{_quoted(self.actor)},"body":{body},"kind":{_quoted(self.kind)},"name":{name},"prev":{_quoted(self.prev)}'
        return f'{start},"seq":{self.seq},"subject":{subject},"utc":{_quoted(self.utc)}}}'.encode(errors="surrogatepass")


def extended(events: Sequence[Event], said: Iterable[Mapping[str, Any]]) -> list[Event]:
    """A log as it would be with {utc, actor, kind, name, subject, body} appended, one after the other. Raises as `Event.following`."""
    found = list(events)
    for one in said:
        last = found[-1] if found else None
        found.append(Event.following(last.seq if last else 0, last.hash if last else GENESIS, one))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The end of the log at one moment; kept elsewhere it shows later that nothing was cut off."""

    count: int
    hash: str


def changed(seq: int, *, gone: bool, where: str) -> LogCut:
    """The error for a log whose event of this number, which was the last one when it was read before, is gone or another."""
    what = (
        f"the log was cut: event {seq}, which was there before, is gone" if gone else f"the log was rewritten: event {seq} is another now"
    )
    return LogCut(what, where=where, then="Find out who did that; this program decides nothing more before it is started again.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """The beginning of the log as this process has read it."""

    events: tuple[Event, ...] = ()
    seal: int | None = None
    """A number of the database's that is another one once any of these rows was changed; None where rows are missing."""


class Log:
    """The events of one database. A `store.EventLog`."""

    def __init__(self, url: sa.URL) -> None:
        self.database = Database(url)
        self._known = _Known()

    @contextmanager
    def _connection(self, *, writing: bool) -> Iterator[sa.Connection]:
        with self.database.transaction(writing=writing) as connection:
            schema.check_revision(connection, self.database.where)
            yield connection

    def exists(self) -> bool:
        """Whether the database has a log."""
        with self.database.transaction(writing=False) as connection:
            return sa.inspect(connection).has_table("events")

    def create(self, first: Mapping[str, Any]) -> None:
        """Tables, triggers and views, if they are not there, and the first event. Two processes may do so at once."""
        with self.database.transaction(writing=True, creating=True) as connection:
            if sa.inspect(connection).has_table("events"):
                schema.check_revision(connection, self.database.where)
            else:
                schema.create(connection)
                _append(connection, first)

    def upgrade(self) -> tuple[str, str]:
        """Brings the database to the newest revision; the revisions before and after. Raises as `schema.upgrade`."""
        with self.database.transaction(writing=True) as connection:
            return schema.upgrade(connection, self.database.where)

    def append(self, event: Mapping[str, Any], *, once: bool = False) -> bool:
        """Appends {utc, actor, kind, name, subject, body}; with `once` not if an event of that kind and subject is there. Says which."""
        with self._connection(writing=True) as connection:
            same = sa.select(events.c.seq).where(events.c.kind == event["kind"], events.c.subject == event["subject"])
            if once and connection.execute(same).first() is not None:
                return False
            _append(connection, event)
        return True

    @contextmanager
    def deciding(self) -> Iterator[tuple[list[Event], sa.Connection]]:
        """All events, as `recall`, and a connection for `append_to`, in one transaction that nobody else can write beside."""
        with self._connection(writing=True) as connection:
            yield self._recalled(connection), connection

    def append_to(self, connection: sa.Connection, event: Mapping[str, Any]) -> None:
        """Appends inside a `deciding` block."""
        _append(connection, event)

    def read(self, *, lenient: bool = False) -> list[Event]:
        """All events, oldest first. Raises RegistryError where the database is no registry.

        An unreadable row raises too, or, when `lenient`, has an empty body, which its hash then does not fit.
        """
        with self._connection(writing=False) as connection:
            return _read(connection, lenient=lenient)

    def recall(self) -> list[Event]:
        """As `store.EventLog.recall`. Bodies are read where they are looked at, and raise RegistryError there.

        In one transaction: the row that was the last one is read again and must be the very same; the rows after it are read; and the
        database is asked whether it knows of a change to the rows before. SQLite counts the changes of tables and triggers in its file, and
        the triggers have to go before a row can; PostgreSQL says which transaction wrote each row. Where there was a change every row is
        read again. Who sets those numbers back, or edits the file itself, is found by whoever reads everything: `read`, and so `verify`.
        """
        with self._connection(writing=False) as connection:
            return self._recalled(connection)

    def _recalled(self, connection: sa.Connection) -> list[Event]:
        known = self._known
        count, last = len(known.events), known.events[-1] if known.events else None
        seal = _seal(connection, count)
        unchanged = last is not None and seal is not None and seal == known.seal
        rows = _later(connection, count if unchanged else 1)
        found = [event for event, _ in rows]
        if unchanged:
            # The same object as before where nothing happened to it: whoever added up what was known goes on from there.
            found = [*known.events[:-1], *([last] if found[:1] == [last] else found[:1]), *found[1:]]
        if last is not None:
            there = next((event for event in reversed(found) if event.seq == last.seq), None)
            if there is None or there.hash != last.hash:
                raise changed(last.seq, gone=there is None, where=self.database.where)
        start = seal if unchanged or self.database.backend == "sqlite" else 0
        stamps = sum(stamp for _, stamp in rows[int(unchanged) :])
        self._known = _Known(events=tuple(found), seal=None if start is None else start + stamps)
        return found

    def recent(self, limit: int) -> tuple[list[Event], int]:
        """As `store.EventLog.recent`: the database leaves out what is not wanted, so that its text is not parsed."""
        first = sa.select(sa.func.min(events.c.seq).label("seq")).where(events.c.kind == "add").group_by(events.c.subject).subquery()
        newest = sa.select(first.c.seq).order_by(first.c.seq.desc()).limit(limit)
        wanted = events.c.kind.not_in(("add", "snapshot", "look")) | events.c.seq.in_(newest)
        with self._connection(writing=False) as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(first)).scalar_one()
            return _read(connection, wanted), count

    def of_kind(self, kind: str) -> list[Event]:
        """As `store.EventLog.of_kind`."""
        with self._connection(writing=False) as connection:
            return _read(connection, events.c.kind == kind)

    def names(self) -> dict[str, str]:
        """Where each name points, from the view."""
        with self._connection(writing=False) as connection:
            return {row.name: row.id for row in connection.execute(sa.text("SELECT name, id FROM names ORDER BY name"))}


def _append(connection: sa.Connection, event: Mapping[str, Any]) -> None:
    last = connection.execute(sa.select(events.c.seq, events.c.hash).order_by(events.c.seq.desc()).limit(1)).first()
    count, prev = (last.seq, last.hash) if last else (0, GENESIS)
    made = Event.following(count, prev, event)
    row = {**event, "body": canonical(event["body"]).decode(), "seq": made.seq, "prev": made.prev, "hash": made.hash}
    connection.execute(sa.insert(events).values(row))
    reach("event.appended")


_SEALS = {
    "sqlite": "SELECT schema_version FROM pragma_schema_version WHERE (SELECT count(*) FROM events) = (SELECT max(seq) FROM events)",
    "postgresql": "SELECT CASE WHEN count(*) = :count THEN coalesce(sum(xmin::text::bigint), 0) END FROM events WHERE seq <= :count",
}
_STAMPS = {"sqlite": "0", "postgresql": "xmin::text::bigint"}
"""What each row adds to its log's seal."""


def _seal(connection: sa.Connection, count: int) -> int | None:
    """The seal of the first `count` rows, as `Log.recall` explains; None where rows are missing."""
    found = connection.execute(sa.text(_SEALS[connection.dialect.name]), {"count": count}).scalar()
    return None if found is None else int(found)


def _later(connection: sa.Connection, first: int) -> list[tuple[Event, int]]:
    """The events from number `first` on, bodies not read yet, each with its row's stamp."""
    stamp: sa.ColumnElement[Any] = sa.literal_column(_STAMPS[connection.dialect.name]).label("stamp")
    asked = sa.select(events, stamp).where(events.c.seq >= first).order_by(events.c.seq)
    return [
        (
            Event(seq=seq, utc=utc, actor=actor, kind=kind, name=name, subject=subject, body=Text(seq, body), prev=prev, hash=hash_),
            int(added),
        )
        for seq, utc, actor, kind, name, subject, body, prev, hash_, added in connection.execute(asked)
    ]


def _body(text: str) -> dict[str, Any]:
    body = parse_json(text.encode())
    if not isinstance(body, dict):
        raise InputError("not a JSON object")
    return body


def _unreadable(seq: object, error: InputError) -> RegistryError:
    return RegistryError(f"event {seq} is unreadable: {error.what}", where="log", then="See what else is: selectune verify")


def _read(connection: sa.Connection, wanted: sa.ColumnElement[bool] | None = None, *, lenient: bool = False) -> list[Event]:
    found, asked = [], sa.select(events).order_by(events.c.seq)
    for row in connection.execute(asked if wanted is None else asked.where(wanted)).mappings():
        try:
            body = _body(row["body"])
        except InputError as error:
            if not lenient:
                raise _unreadable(row["seq"], error) from error
            body = {}
        found.append(Event(**{**row, "body": body}))
    return found
