"""A registry's database: how it is connected to, what a transaction is there, and its errors in our words. SQLite or PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoSuchModuleError

from selectune.errors import MissingPackage, RegistryError, SelectuneError, StorageError
from selectune.faults import reach

__all__ = ["Database", "sqlite_url"]

BUSY_SECONDS = 60
"""How long a writer waits for another one; on PostgreSQL also how long one that has gone silent is waited for."""
SYNCHRONOUS = "FULL"
"""SQLite's word for: an event that was acknowledged survives a power cut."""
_CREATING = 7355608
"""The number of the lock under which PostgreSQL's tables are made."""
# A writer whose machine lost its power must not hold the log for ever, and a server that is told to be quick must still keep what it says.
_SETTINGS = f"""SELECT set_config('lock_timeout', '{BUSY_SECONDS}s', true),
  set_config('idle_in_transaction_session_timeout', '{BUSY_SECONDS}s', true),
  set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
    ELSE current_setting('synchronous_commit') END, true)"""


class Database:
    """One database."""

    def __init__(self, url: sa.URL) -> None:
        self.where = url.render_as_string(hide_password=True)
        self.backend = url.get_backend_name()
        options: dict[str, Any] = {"poolclass": sa.NullPool}
        if self.backend == "postgresql":
            options = {"pool_pre_ping": True, "isolation_level": "READ COMMITTED"}
        try:
            self._engine = sa.create_engine(url, **options)
        except NoSuchModuleError as error:
            raise RegistryError(
                f"{url.drivername!r} is no database that can be used", then="Use a folder, or a postgresql+psycopg:// URL."
            ) from error
        except ModuleNotFoundError as error:
            package = "'selectune[postgres]'" if error.name == "psycopg" else error.name
            raise MissingPackage(f"{url.drivername} needs the package {error.name!r}", then=f"pip install {package}") from error
        if self.backend == "sqlite":
            sa.event.listen(self._engine, "do_connect", _choose_mode)
            sa.event.listen(self._engine, "connect", _prepare)
            sa.event.listen(self._engine, "begin", _begin)
        self._process = os.getpid()
        weakref.finalize(self, _leave, self._engine, self._process)

    @contextmanager
    def transaction(self, *, writing: bool, creating: bool = False) -> Iterator[sa.Connection]:
        """One transaction; a writer holds the log alone, so that what it read still holds when it appends.

        With `creating` the tables may be missing. Raises RegistryError, StorageError: `_translated`.
        """
        if self._process != os.getpid():
            # A fork: the connections are its parent's, which goes on using them.
            self._engine.dispose(close=False)
            self._process = os.getpid()
        try:
            with self._engine.connect().execution_options(immediate=writing) as connection, connection.begin():
                if self.backend == "postgresql" and writing:
                    connection.exec_driver_sql(_SETTINGS)
                    locking = f"SELECT pg_advisory_xact_lock({_CREATING})" if creating else "LOCK TABLE events IN EXCLUSIVE MODE"
                    connection.exec_driver_sql(locking)
                if writing:
                    reach("event.begun")
                yield connection
            if writing:
                reach("event.committed")
        except DBAPIError as error:
            raise _translated(error, self.where) from error


def _leave(engine: sa.Engine, process: int) -> None:
    """Closes what is still connected, where it was connected."""
    if os.getpid() == process:
        engine.dispose()


def _translated(error: DBAPIError, where: str) -> SelectuneError:
    text, state = " ".join(str(error.orig).split()), getattr(error.orig, "sqlstate", None)
    if "no such table" in text or state == "42P01":
        return RegistryError("this is no registry", where=where, then="Record a run first: selectune run RECIPE --registry DIR")
    if "not a database" in text or "malformed" in text:
        return RegistryError(f"the database is damaged ({text})", where=where, then="Restore it from a copy.")
    if any(word in text for word in ("append-only", "must follow", "UNIQUE", "unique constraint")):
        return RegistryError(f"the log refused the event ({text})", where=where, then="See what is wrong: selectune verify")
    return StorageError(
        f"the database cannot be used ({text})", where=where, then="Is the disk full, locked by another program, read-only or not reached?"
    )


def _choose_mode(_: Any, __: Any, arguments: list[Any], ___: Any) -> None:
    """Lets a database on a disk that is mounted read-only be read: SQLite would want to make its files of shared memory there.

    Where a write-ahead log lies beside it there may be events in that one, and SQLite has to read both.
    """
    path = Path(unquote(arguments[0].partition("?")[0].removeprefix("file:")))
    try:
        frozen = os.statvfs(path).f_flag & os.ST_RDONLY and not path.with_name(f"{path.name}-wal").exists()
    except OSError:
        return  # SQLite says what is wrong with it
    if frozen:
        arguments[0] = f"file:{quote(str(path))}?mode=ro&immutable=1"


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
