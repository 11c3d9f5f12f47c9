"""The event log: rows that can only be appended, each chained by hash to the one before. SQLite or PostgreSQL.

The triggers stop accidents and honest programs. An administrator can drop them and edit a row; the chain then shows where. Only a head
(count and last hash) kept elsewhere shows that the tail was cut.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoSuchModuleError

from selectune.errors import InputError, MissingPackage, RegistryError, SelectuneError, StorageError
from selectune.hashing import canonical, digest, parse_json

__all__ = ["GENESIS", "Event", "Head", "Log"]

GENESIS = "0" * 64
"""What the first event calls the hash of the one before."""
BUSY_SECONDS = 60
SYNCHRONOUS = "FULL"
"""SQLite's word for: an event that was acknowledged survives a power cut."""

metadata = sa.MetaData()
events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("utc", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text),
    sa.Column("subject", sa.Text),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("prev", sa.Text, nullable=False, unique=True),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sqlite_strict=True,
)

# A name points where its last move put it; an update is what an `add` event holds. Both are views: nothing is stored twice.
VIEWS = (
    """CREATE VIEW names AS SELECT name, subject AS id, utc, actor, seq FROM events AS e
       WHERE kind IN ('promote', 'revert') AND seq = (SELECT max(seq) FROM events WHERE name = e.name AND kind IN ('promote', 'revert'))""",
    "CREATE VIEW updates AS SELECT subject AS id, body, utc, actor, seq FROM events WHERE kind = 'add'",
)
TRIGGERS: Mapping[str, Sequence[str]] = {
    "sqlite": (
        "CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
        "CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
        f"""CREATE TRIGGER events_chained BEFORE INSERT ON events
            WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM events)
              OR NEW.prev IS NOT coalesce((SELECT hash FROM events ORDER BY seq DESC LIMIT 1), '{GENESIS}')
            BEGIN SELECT RAISE(ABORT, 'an event must follow the last one'); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION events_refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$""",
        "CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION events_refuse()",
        "CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events EXECUTE FUNCTION events_refuse()",
        f"""CREATE FUNCTION events_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF NEW.seq IS DISTINCT FROM (SELECT coalesce(max(seq), 0) + 1 FROM events)
                 OR NEW.prev IS DISTINCT FROM coalesce((SELECT hash FROM events ORDER BY seq DESC LIMIT 1), '{GENESIS}')
              THEN RAISE EXCEPTION 'an event must follow the last one'; END IF;
              RETURN NEW; END $$""",
        "CREATE TRIGGER events_chained BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION events_follow()",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened."""

    seq: int
    """From 1, without gaps."""
    utc: str
    actor: str
    kind: str
    """create, add, promote, revert, look, policy, approve or revoke."""
    name: str | None
    subject: str | None
    """The update's id; of a look, the model's; of a policy, its digest."""
    body: Mapping[str, Any]
    prev: str
    """The hash of the event before; 64 zeros for the first."""
    hash: str

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
    """The events of one database."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        try:
            self._engine = sa.create_engine(url, **({"poolclass": sa.NullPool} if url.get_backend_name() == "sqlite" else {}))
        except NoSuchModuleError as error:
            raise RegistryError(
                f"{url.drivername!r} is no database that can be used", then="Use a folder, or a postgresql+psycopg:// URL."
            ) from error
        except ModuleNotFoundError as error:
            raise MissingPackage(f"{url.drivername} needs the package {error.name!r}", then=f"pip install {error.name}") from error
        if url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare)
            sa.event.listen(self._engine, "begin", _begin)

    @contextmanager
    def _connection(self, *, writing: bool) -> Iterator[sa.Connection]:
        """One transaction; a writer holds the log alone, so that what it read still holds when it appends."""
        try:
            with self._engine.connect().execution_options(immediate=writing) as connection, connection.begin():
                if writing and self.url.get_backend_name() == "postgresql":
                    connection.exec_driver_sql("LOCK TABLE events IN EXCLUSIVE MODE")
                yield connection
        except DBAPIError as error:
            raise _translated(error, self.url) from error

    def create(self, first: Mapping[str, Any]) -> None:
        """Tables, triggers and views, if they are not there, and the first event. Two processes may do so at once."""
        try:
            with self._engine.connect().execution_options(immediate=True) as connection, connection.begin():
                if self.url.get_backend_name() == "postgresql":
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7355608)")
                if not sa.inspect(connection).has_table("events"):
                    metadata.create_all(connection)
                    for statement in (*TRIGGERS[self.url.get_backend_name()], *VIEWS):
                        connection.exec_driver_sql(statement)
                    _append(connection, first)
        except DBAPIError as error:
            raise _translated(error, self.url) from error

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

    def names(self) -> dict[str, str]:
        """Where each name points, from the view."""
        with self._connection(writing=False) as connection:
            return {row.name: row.id for row in connection.execute(sa.text("SELECT name, id FROM names ORDER BY name"))}


def _append(connection: sa.Connection, event: Mapping[str, Any]) -> None:
    last = connection.execute(sa.select(events.c.seq, events.c.hash).order_by(events.c.seq.desc()).limit(1)).first()
    seq, prev = (last.seq + 1, last.hash) if last else (1, GENESIS)
    made = Event(seq=seq, prev=prev, hash="", **event)
    row = {**event, "body": canonical(event["body"]).decode(), "seq": seq, "prev": prev, "hash": made.computed_hash()}
    connection.execute(sa.insert(events).values(row))


def _read(connection: sa.Connection, *, lenient: bool = False) -> list[Event]:
    found = []
    for row in connection.execute(sa.select(events).order_by(events.c.seq)).mappings():
        try:
            body = parse_json(row["body"].encode())
            if not isinstance(body, dict):
                raise InputError("not a JSON object")
        except InputError as error:
            if not lenient:
                raise RegistryError(f"event {row['seq']} is unreadable: {error.what}", then="See what else is: selectune verify") from error
            body = {}
        found.append(Event(**{**row, "body": body}))
    return found


def _translated(error: DBAPIError, url: sa.URL) -> SelectuneError:
    text, where = str(error.orig), url.render_as_string(hide_password=True)
    if "no such table" in text or "does not exist" in text:
        return RegistryError("this is no registry", where=where, then="Record a run first: selectune run RECIPE --registry DIR")
    if "not a database" in text or "malformed" in text:
        return RegistryError(f"the database is damaged ({text})", where=where, then="Restore it from a copy.")
    if "append-only" in text or "must follow" in text or "UNIQUE" in text:
        return RegistryError(f"the log refused the event ({text})", where=where, then="See what is wrong: selectune verify")
    return StorageError(
        f"the database cannot be used ({text})", where=where, then="Is the disk full, locked by another program, or read-only?"
    )


def _prepare(connection: Any, _: Any) -> None:
    # The driver must not open transactions by itself: BEGIN IMMEDIATE is ours.
    connection.isolation_level = None
    settings = {
        "busy_timeout": BUSY_SECONDS * 1000,
        "foreign_keys": "ON",
        "synchronous": SYNCHRONOUS,
        "recursive_triggers": "ON",
    }
    for name, value in settings.items():
        connection.execute(f"PRAGMA {name} = {value}")
    _use_wal(connection)


def _use_wal(connection: Any) -> None:
    """Turns a new database to write-ahead logging; two processes that make it at once take turns.

    SQLite does not let the second one wait at this statement, whatever busy_timeout says: it is told "locked" at once.
    """
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("immediate") else "BEGIN")


def sqlite_url(path: Path, *, create: bool) -> sa.URL:
    """The URL of a SQLite file that is opened, and made only with `create`."""
    mode = "rwc" if create else "rw"
    return sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": mode, "uri": "true"})
