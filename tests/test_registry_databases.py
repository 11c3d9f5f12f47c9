"""The two databases under a registry: what each refuses, what it keeps, and how an older one becomes a newer one."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from database_fixtures import Server, team_url
from delta_fixtures import quick_disk
from selectune.cli import app
from selectune.errors import MissingPackage, RegistryError, StorageError
from selectune.registry import Registry, Update, schema
from selectune.registry import database as database_module
from selectune.registry.database import Database
from selectune.registry.events import Log
from selectune.registry.upgrading import upgrade

ODD = "Ünïcode 漢字 🦊 \u202e right to left, 'quotes' \"too\", %s %(x)s :name, \\ back \t tab \x01 \x7f {braces} ; DROP TABLE events; --"


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="team")
def _team(postgres: Server, tmp_path: Path) -> str:
    """A new registry on PostgreSQL."""
    url = team_url(postgres, tmp_path / "objects")
    Registry.open(url, create=True)
    return url


def database_of(registry: Registry) -> Database:
    log = registry._log
    assert isinstance(log, Log)
    return log.database


def execute(url: str, statement: str) -> list[Any]:
    """What somebody with another client does."""
    engine = sa.create_engine(sa.make_url(url).difference_update_query(["blobs"]), poolclass=sa.NullPool)
    with engine.connect() as connection, connection.begin():
        done = connection.exec_driver_sql(statement)
        return [tuple(row) for row in done] if done.returns_rows else []


def fill(registry: Registry, deltas: list[Path]) -> list[str]:
    """Three updates, each promoted, and one revert."""
    ids: list[str] = []
    for number, path in enumerate(deltas):
        update = Update(parent=ids[-1] if ids else None, skill=f"s{number}", verdict="passed")
        ids.append(registry.add(update, path, {"result.json": b"{}"}))
        registry.promote(ids[-1], "production", f"why {number}", "ann")
    registry.revert("production", "worse", "bob")
    return ids


def rows(registry: Registry) -> list[tuple[Any, ...]]:
    with database_of(registry).transaction(writing=False) as connection:
        return [tuple(row) for row in connection.execute(sa.select(schema.events).order_by(schema.events.c.seq))]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE events SET actor = 'mallory' WHERE seq = 2", "append-only"),
        ("UPDATE events SET actor = 'mallory' WHERE seq = 99", None),
        ("DELETE FROM events WHERE seq = 8", "append-only"),
        ("DELETE FROM events", "append-only"),
        ("TRUNCATE events", "append-only"),
        ("TRUNCATE events CASCADE", "append-only"),
        ("INSERT INTO events SELECT seq + 100, utc, actor, kind, name, subject, body, 'x', 'y' FROM events WHERE seq = 2", "must follow"),
        ("INSERT INTO events SELECT 9, utc, actor, kind, name, subject, body, 'x', 'y' FROM events WHERE seq = 2", "must follow"),
        (
            (
                "INSERT INTO events SELECT 2, utc, 'mallory', kind, name, subject, body, prev, hash FROM events WHERE seq = 2 "
                "ON CONFLICT (seq) DO UPDATE SET actor = 'mallory'"
            ),
            "must follow",
        ),
        (
            "INSERT INTO events SELECT 9, utc, actor, kind, name, subject, body, hash, hash FROM events WHERE seq = 8",
            "unique constraint",
        ),
    ],
)
def test_postgresql_refuses_to_change_cut_or_skip_an_event(team: str, deltas: list[Path], statement: str, words: str | None) -> None:
    registry = Registry.open(team)
    fill(registry, deltas)
    before = rows(registry)
    assert len(before) == 8
    if words is None:
        execute(team, statement)
    else:
        with pytest.raises(sa.exc.DBAPIError, match=words):
            execute(team, statement)
    assert rows(registry) == before
    assert registry.verify().ok


def test_what_an_administrator_changes_all_the_same_shows(team: str, deltas: list[Path]) -> None:
    registry = Registry.open(team)
    fill(registry, deltas)
    head = registry.head()
    execute(team, "ALTER TABLE events DISABLE TRIGGER USER")
    execute(team, "UPDATE events SET actor = 'mallory' WHERE seq = 3")
    assert [(problem.kind, problem.subject) for problem in registry.verify().problems] == [("event", "3")]
    execute(team, "UPDATE events SET actor = 'ann' WHERE seq = 3")
    execute(team, "DELETE FROM events WHERE seq = 8")
    assert registry.verify().ok
    assert [problem.text for problem in registry.verify(head).problems] == ["the log was cut: 7 events are left"]


def test_the_views_say_what_the_log_says(registry_url: str, deltas: list[Path]) -> None:
    registry = Registry.open(registry_url, create=True)
    ids = fill(registry, deltas)
    registry.promote(ids[2], "candidate", "look at it", "ann")
    with database_of(registry).transaction(writing=False) as connection:
        names = connection.exec_driver_sql("SELECT name, id, actor, seq FROM names ORDER BY name").all()
        updates = connection.exec_driver_sql("SELECT id, seq FROM updates ORDER BY seq").all()
    assert names == [("candidate", ids[2], "ann", 9), ("production", ids[1], "bob", 8)]
    assert registry.names() == {"candidate": ids[2], "production": ids[1]}
    assert updates == [(ids[0], 2), (ids[1], 4), (ids[2], 6)]


def test_odd_characters_come_back_as_they_were(registry_url: str, deltas: list[Path]) -> None:
    registry = Registry.open(registry_url, create=True)
    id_ = registry.add(Update(skill=ODD, actor=ODD, meta={ODD: [ODD, "\0 is kept in JSON"]}), deltas[0], {"result.json": b"\0\xff"})
    registry.promote(id_, "production", ODD, ODD)
    again = Registry.open(registry_url)
    found = again.show("production")
    assert (found.skill, found.actor, found.meta) == (ODD, ODD, {ODD: [ODD, "\0 is kept in JSON"]})
    assert [(move.reason, move.actor) for move in again.history()] == [(ODD, ODD)]
    assert again.attachment(id_, "result.json") == b"\0\xff"
    assert again.verify().ok


def test_a_nul_in_a_name_of_somebody_is_refused_on_both(registry_url: str, deltas: list[Path]) -> None:
    registry = Registry.open(registry_url, create=True)
    with pytest.raises(RegistryError, match=r"the actor 'ann\\x00' has a NUL character"):
        registry.add(Update(actor="ann\0"), deltas[0])
    assert registry.log() == []


def test_sizes_beyond_32_bits_and_the_largest_whole_numbers_keep_their_value(registry_url: str, deltas: list[Path]) -> None:
    sizes = {"bytes": 5 << 40, "most": 2**53 - 1, "least": -(2**53 - 1), "real": 1e300}
    registry = Registry.open(registry_url, create=True)
    id_ = registry.add(Update(metrics=sizes), deltas[0])
    assert Registry.open(registry_url).show(id_).metrics == sizes
    assert registry.verify().ok


def test_events_are_numbered_beyond_32_bits(team: str) -> None:
    assert execute(team, "SELECT data_type FROM information_schema.columns WHERE table_name = 'events' AND column_name = 'seq'") == [
        ("bigint",)
    ]


def test_times_are_utc_whatever_the_server_and_the_clock_are_set_to(team: str, postgres: Server, deltas: list[Path]) -> None:
    name = sa.make_url(team).database
    postgres.execute(f"ALTER DATABASE {name} SET timezone TO 'Asia/Kathmandu'")
    postgres.execute(f"ALTER DATABASE {name} SET datestyle TO 'German'")
    here = timezone(timedelta(hours=-9, minutes=-30))
    registry = Registry.open(team, clock=lambda: datetime(2026, 11, 24, 23, 30, tzinfo=here))
    id_ = registry.add(Update(), deltas[0])
    assert registry.show(id_).created == "2026-11-25T09:00:00Z"
    assert registry.show(id_).created == datetime(2026, 11, 25, 9, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_server_told_to_be_quick_still_keeps_what_it_acknowledges(team: str, postgres: Server) -> None:
    name = sa.make_url(team).database
    for setting in ("synchronous_commit TO off", "default_transaction_isolation TO 'serializable'", "lock_timeout TO 0"):
        postgres.execute(f"ALTER DATABASE {name} SET {setting}")
    with database_of(Registry.open(team)).transaction(writing=True) as connection:
        wanted = ("synchronous_commit", "transaction_isolation", "lock_timeout", "idle_in_transaction_session_timeout")
        found = [connection.exec_driver_sql(f"SHOW {one}").scalar() for one in wanted]
    assert found == ["on", "read committed", "1min", "1min"]


def test_a_writer_that_waits_too_long_is_told(team: str, deltas: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_SETTINGS", "SELECT set_config('lock_timeout', '100ms', true)")
    registry = Registry.open(team)
    with database_of(Registry.open(team)).transaction(writing=True), pytest.raises(StorageError, match="lock timeout"):
        registry.add(Update(), deltas[0])
    assert registry.add(Update(), deltas[0])


def test_a_connection_that_the_server_has_ended_is_made_anew(team: str, postgres: Server, deltas: list[Path]) -> None:
    registry = Registry.open(team)
    registry.add(Update(skill="before"), deltas[0])
    name = sa.make_url(team).database
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()")
    registry.add(Update(skill="after"), deltas[0])
    assert [update.skill for update in registry.log()] == ["after", "before"]


def test_a_database_that_cannot_hold_every_letter_is_refused(postgres: Server, tmp_path: Path) -> None:
    url = postgres.new_database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with pytest.raises(RegistryError, match=r"encoding is LATIN1.*ENCODING 'UTF8'"):
        Registry.open(f"{url}&blobs={tmp_path}", create=True)
    assert execute(url, "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'") == [(0,)]


def test_an_empty_database_is_no_registry_and_a_missing_one_is_not_reached(postgres: Server, tmp_path: Path) -> None:
    url = postgres.new_database()
    with pytest.raises(RegistryError, match="this is no registry"):
        Registry.open(f"{url}&blobs={tmp_path}")
    with pytest.raises(StorageError, match=r"database .nowhere. does not exist"):
        Registry.open(f"postgresql+psycopg://tests:secret@/nowhere?host={postgres.folder}&blobs={tmp_path}")
    with pytest.raises(StorageError, match="not reached") as caught:
        Registry.open(f"postgresql+psycopg://tests:secret@/x?host={tmp_path}&blobs={tmp_path}")
    assert "secret" not in str(caught.value)


# What revision 1 was when it was released. A change of it would make two kinds of database that call themselves the same.
DIGESTS = {
    ("0001", "sqlite"): "6998ee6e2b421e6f43c6c96d6d30f3c4cbc94758184d8b7063f168ac0ee8a774",
    ("0001", "postgresql"): "8b2c64acf9f0a49fe4f90b53eae11ea6e1df52b3161ac2564985714314dad0f5",
    ("0002", "sqlite"): "2da598deef3b0a4a2af2738e90409de84bc7110825a5e683c4802a70db401732",
    ("0002", "postgresql"): "2da598deef3b0a4a2af2738e90409de84bc7110825a5e683c4802a70db401732",
}


@pytest.mark.parametrize(("revision", "backend"), list(DIGESTS))
def test_a_released_revision_is_what_it_was(revision: str, backend: str) -> None:
    text = "\n".join(schema.REVISIONS[revision][backend])
    assert sha256(text.encode()).hexdigest() == DIGESTS[revision, backend]


def tables(url: str) -> list[Any]:
    """Everything that a database consists of, as it describes itself."""
    if "://" not in url:
        with sqlite3.connect(Path(url) / "registry.sqlite") as connection:
            found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        connection.close()
        return [(*row[:3], " ".join(row[3].split()).replace("( ", "(").replace(" )", ")") if row[3] else None) for row in found]
    return [
        execute(
            url,
            "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY table_name, ordinal_position",
        ),
        execute(url, "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY viewname"),
        execute(url, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname"),
        execute(url, "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname"),
        execute(url, "SELECT proname, prosrc FROM pg_proc JOIN pg_namespace n ON pronamespace = n.oid WHERE nspname = 'public' ORDER BY 1"),
        execute(
            url,
            "SELECT conname, contype FROM pg_constraint JOIN pg_namespace n ON connamespace = n.oid "
            "WHERE nspname = 'public' ORDER BY conname",
        ),
    ]


@pytest.fixture(name="old")
def _old(registry_url: str, deltas: list[Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry as the first version made it, which did not say of which revision it was, with events in it."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "REVISIONS", {"0001": schema.REVISIONS["0001"]})
        registry = Registry.open(registry_url, create=True)
        with database_of(registry).transaction(writing=True) as connection:
            connection.exec_driver_sql("DROP TABLE alembic_version")
        fill(registry, deltas)
    return registry_url


def test_an_older_database_is_used_as_it_is(old: str, deltas: list[Path]) -> None:
    registry = Registry.open(old)
    assert registry.names() == {"production": registry.log()[1].id}
    registry.promote(registry.log()[2].id, "candidate", "why", "ann")
    assert registry.verify().ok


def test_an_upgrade_changes_nothing_of_the_chain(old: str, tmp_path: Path, postgres: Server) -> None:
    registry = Registry.open(old)
    before, names, head = rows(registry), registry.names(), registry.head()
    done = CliRunner().invoke(app, ["registry", "upgrade", "--registry", old])
    assert (done.exit_code, "revision 0001 → 0002" in done.output) == (0, True), done.output
    again = Registry.open(old)
    assert (rows(again), again.names(), again.head()) == (before, names, head)
    assert again.verify(head).demand().events == 8
    again.promote(again.log()[0].id, "production", "after all", "ann")
    assert rows(again)[:8] == before
    new = str(tmp_path / "new") if "://" not in old else team_url(postgres, tmp_path / "new")
    Registry.open(new, create=True)
    assert tables(old) == tables(new), "an upgraded database and a new one are the same"
    assert (upgrade(old).before, upgrade(old).after) == ("0002", "0002")


def test_an_upgrade_that_fails_leaves_the_old_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, before = tables(old), rows(Registry.open(old))
    backend = "postgresql" if "://" in old else "sqlite"
    broken = {
        **schema.REVISIONS,
        "0002": {backend: (*schema.REVISIONS["0002"][backend], "CREATE VIEW x AS SELECT 1 FROM nothing_there JOIN")},
    }
    monkeypatch.setattr("selectune.registry.schema.REVISIONS", broken)
    with pytest.raises(StorageError, match="cannot be used"):
        upgrade(old)
    monkeypatch.undo()
    assert tables(old) == shape
    assert rows(Registry.open(old)) == before


def newer(url: str) -> None:
    with database_of(Registry.open(url)).transaction(writing=True) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0009'")


@pytest.mark.parametrize(
    "use",
    [
        Registry.open,
        lambda url: Registry.open(url, create=True),
        upgrade,
    ],
    ids=["open", "create", "upgrade"],
)
def test_a_database_of_a_newer_revision_is_refused_with_what_to_do(registry_url: str, use: Callable[[str], Any]) -> None:
    Registry.open(registry_url, create=True)
    newer(registry_url)
    with pytest.raises(RegistryError, match=r"of revision 0009, and this version of selectune knows 0001 to 0002.*pip install --upgrade"):
        use(registry_url)


def test_a_program_that_runs_while_somebody_upgrades_beyond_it_writes_nothing_more(registry_url: str, deltas: list[Path]) -> None:
    registry = Registry.open(registry_url, create=True)
    registry.add(Update(), deltas[0])
    newer(registry_url)
    with pytest.raises(RegistryError, match="of revision 0009"):
        registry.add(Update(skill="too late"), deltas[0])


def test_an_upgrade_without_alembic_says_what_to_install(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(MissingPackage, match=r"pip install 'selectune\[postgres\]'"):
        upgrade(old)
    assert Registry.open(old).verify().ok


def test_a_registry_of_objects_has_nothing_to_upgrade(tmp_path: Path) -> None:
    Registry.open(f"file://{tmp_path}/r", create=True)
    with pytest.raises(RegistryError, match="nothing to upgrade"):
        upgrade(f"file://{tmp_path}/r")


def test_a_fork_uses_connections_of_its_own(team: str, deltas: list[Path]) -> None:
    registry = Registry.open(team)
    registry.add(Update(skill="parent"), deltas[0])
    child = os.fork()
    if child == 0:
        try:
            registry.add(Update(skill="child"), deltas[0])
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    registry.add(Update(skill="parent again"), deltas[0])
    assert [update.skill for update in registry.log()] == ["parent again", "child", "parent"]
