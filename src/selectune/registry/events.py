"""The event log: rows that can only be appended, each chained by hash to the one before. SQLite or PostgreSQL.

The triggers stop accidents and honest programs. An administrator can drop them and edit a row; the chain then shows where. Only a head
(count and last hash) kept elsewhere shows that the tail was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from selectune.errors import InputError, RegistryError
from selectune.faults import reach
from selectune.hashing import canonical, digest, parse_json
from selectune.registry import schema
from selectune.registry.database import Database
from selectune.registry.schema import GENESIS, events

__all__ = ["GENESIS", "Event", "Head", "Log"]


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

    def computed_hash(self) -> str:
        """``digest("event", …)`` of all fields but the hash."""
        fields = ("seq", "utc", "actor", "kind", "name", "subject", "body", "prev")
        return digest("event", {field: getattr(self, field) for field in fields})


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The end of the log at one moment; kept elsewhere it shows later that nothing was cut off."""

    count: int
    hash: str


class Log:
    """The events of one database. A `store.EventLog`."""

    def __init__(self, url: sa.URL) -> None:
        self.database = Database(url)

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
        """All events and a connection for `append_to`, in one transaction that nobody else can write beside."""
        with self._connection(writing=True) as connection:
            yield _read(connection), connection

    def append_to(self, connection: sa.Connection, event: Mapping[str, Any]) -> None:
        """Appends inside a `deciding` block."""
        _append(connection, event)

    def read(self, *, lenient: bool = False) -> list[Event]:
        """All events, oldest first. Raises RegistryError where the database is no registry.

        An unreadable row raises too, or, when `lenient`, has an empty body, which its hash then does not fit.
        """
        with self._connection(writing=False) as connection:
            return _read(connection, lenient=lenient)

    def recent(self, limit: int) -> tuple[list[Event], int]:
        """As `store.EventLog.recent`: the database leaves out what is not wanted, so that its text is not parsed."""
        first = sa.select(sa.func.min(events.c.seq).label("seq")).where(events.c.kind == "add").group_by(events.c.subject).subquery()
        newest = sa.select(first.c.seq).order_by(first.c.seq.desc()).limit(limit)
        wanted = events.c.kind.not_in(("add", "snapshot", "look")) | events.c.seq.in_(newest)
        with self._connection(writing=False) as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(first)).scalar_one()
            return _read(connection, wanted), count

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


def _read(connection: sa.Connection, wanted: sa.ColumnElement[bool] | None = None, *, lenient: bool = False) -> list[Event]:
    found, asked = [], sa.select(events).order_by(events.c.seq)
    for row in connection.execute(asked if wanted is None else asked.where(wanted)).mappings():
        try:
            body = parse_json(row["body"].encode())
            if not isinstance(body, dict):
                raise InputError("not a JSON object")
        except InputError as error:
            if not lenient:
                what = f"event {row['seq']} is unreadable: {error.what}"
                raise RegistryError(what, where="log", then="See what else is: selectune verify") from error
            body = {}
        found.append(Event(**{**row, "body": body}))
    return found
