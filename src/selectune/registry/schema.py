"""The tables of a registry's database, revision by revision: what a new one is made of, and what Alembic brings an older one to.

A revision that was released is never changed: another follows it. None touches a row of `events`, so every hash stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import sqlalchemy as sa

from selectune.errors import MissingPackage, RegistryError

__all__ = ["GENESIS", "NEWEST", "REVISIONS", "check_revision", "create", "events", "upgrade"]

GENESIS = "0" * 64
"""What the first event calls the hash of the one before."""

events = sa.table("events", *(sa.column(name) for name in ("seq", "utc", "actor", "kind", "name", "subject", "body", "prev", "hash")))

_COLUMNS = """CREATE TABLE events (seq {whole} NOT NULL, utc TEXT NOT NULL, actor TEXT NOT NULL, kind TEXT NOT NULL, name TEXT,
  subject TEXT, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (seq), UNIQUE (prev), UNIQUE (hash)){ending}"""
# A name points where its last move put it; an update is what an `add` event holds. Both are views: nothing is stored twice.
_NAMES = """CREATE VIEW names AS SELECT name, subject AS id, utc, actor, seq FROM events AS e
  WHERE kind IN ('promote', 'revert') AND seq = (SELECT max(seq) FROM events WHERE name = e.name AND kind IN ('promote', 'revert'))"""
_UPDATES = "CREATE VIEW updates AS SELECT subject AS id, body, utc, actor, seq FROM events WHERE kind = 'add'"
# In SQLite, at 10,000 events of which half are moves, names take 0.5 ms instead of 8, and to find a subject 0.02 instead of 1.6.
_QUICK = (
    "DROP VIEW names",
    """CREATE VIEW names AS SELECT name, subject AS id, utc, actor, seq FROM events
  WHERE seq IN (SELECT max(seq) FROM events WHERE kind IN ('promote', 'revert') GROUP BY name)""",
    "CREATE INDEX events_moves ON events (name, seq) WHERE kind IN ('promote', 'revert')",
    "CREATE INDEX events_subjects ON events (subject, kind)",
)

REVISIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "0001": {
        "sqlite": (
            _COLUMNS.format(whole="INTEGER", ending=" STRICT"),
            "CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
            "CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
            f"""CREATE TRIGGER events_chained BEFORE INSERT ON events
  WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM events)
    OR NEW.prev IS NOT coalesce((SELECT hash FROM events ORDER BY seq DESC LIMIT 1), '{GENESIS}')
  BEGIN SELECT RAISE(ABORT, 'an event must follow the last one'); END""",
            _NAMES,
            _UPDATES,
        ),
        "postgresql": (
            _COLUMNS.format(whole="BIGINT", ending=""),
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
            _NAMES,
            _UPDATES,
        ),
    },
    "0002": {"sqlite": _QUICK, "postgresql": _QUICK},
}
"""What each revision does to the one before, by the kind of database. All of them can be read and written."""
FIRST, NEWEST = min(REVISIONS), max(REVISIONS)

_VERSION = "alembic_version"
# As Alembic makes it, so that a database can be made without that package.
_VERSIONED = f"CREATE TABLE {_VERSION} (version_num VARCHAR(32) NOT NULL, CONSTRAINT {_VERSION}_pkc PRIMARY KEY (version_num))"
_FOUND = {
    "sqlite": f"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{_VERSION}'",
    "postgresql": f"SELECT 1 WHERE to_regclass('{_VERSION}') IS NOT NULL",
}


def create(connection: sa.Connection) -> None:
    """The newest revision, in an empty database. Raises RegistryError for a PostgreSQL database that cannot hold every letter."""
    backend = connection.dialect.name
    if backend == "postgresql" and (encoding := connection.exec_driver_sql("SHOW server_encoding").scalar()) != "UTF8":
        raise RegistryError(
            f"the database's encoding is {encoding}, which cannot hold every name and reason",
            where="registry",
            then="Make another one: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )
    for revision in REVISIONS.values():
        for statement in revision[backend]:
            connection.exec_driver_sql(statement)
    connection.exec_driver_sql(_VERSIONED)
    connection.exec_driver_sql(f"INSERT INTO {_VERSION} VALUES ('{NEWEST}')")


def revision_of(connection: sa.Connection) -> str:
    """The database's revision; one that does not say, as the first ones did not, is of the first."""
    if connection.exec_driver_sql(_FOUND[connection.dialect.name]).first() is None:
        return FIRST
    return str(connection.exec_driver_sql(f"SELECT version_num FROM {_VERSION}").scalar())


def check_revision(connection: sa.Connection, where: str) -> str:
    """The database's revision. Raises RegistryError for one that this version of the program does not know."""
    found = revision_of(connection)
    if found not in REVISIONS:
        raise RegistryError(
            f"the database is of revision {found[:32]}, and this version of selectune knows {FIRST} to {NEWEST}",
            where=where,
            then="Use the version of selectune that made it, or a newer one: pip install --upgrade selectune",
        )
    return found


def upgrade(connection: sa.Connection, where: str) -> tuple[str, str]:
    """Brings a database to the newest revision by Alembic, inside the caller's transaction; the revisions before and after.

    Raises RegistryError for an unknown revision, MissingPackage without Alembic.
    """
    try:
        from alembic import command
        from alembic.config import Config
    except ImportError as error:
        raise MissingPackage("upgrading a database needs the package 'alembic'", then="pip install 'selectune[postgres]'") from error
    config = Config()
    # "%" begins a reference in Alembic's options.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    before = check_revision(connection, where)
    if connection.exec_driver_sql(_FOUND[connection.dialect.name]).first() is None:
        command.stamp(config, FIRST)
    command.upgrade(config, "head")
    return before, revision_of(connection)
