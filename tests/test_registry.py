"""The registry: objects that never change, names that move, and a log that shows tampering."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from delta_fixtures import model_of, quick_disk, step_of, tied
from selectune.cli import app
from selectune.delta import Delta
from selectune.errors import DeltaError, EventMalformed, MissingPackage, NotYet, RegistryError, StorageError, VerifyFailed, WrongParent
from selectune.hashing import canonical, digest
from selectune.registry import Registry, Update
from selectune.registry.blobs import FolderBlobs
from selectune.registry.checking import _names
from selectune.registry.events import Event
from selectune.registry.kinds import check_event

PARTS = {"q.weight": ((0, 0, 4, 1),), "o.weight": None}


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="deltas", scope="module")
def _deltas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three deltas in sequence, as files."""
    folder, model, paths = tmp_path_factory.mktemp("deltas"), model_of(tied()), []
    for number in range(3):
        model, delta = step_of(model, PARTS, 0.1 * (number + 1))
        paths.append(folder / f"{number}.delta")
        delta.save(paths[-1])
    return paths


@pytest.fixture(name="registry")
def _registry(registry_url: str) -> Registry:
    return Registry.open(registry_url, create=True, clock=Clock())


@pytest.fixture(name="local")
def _local(tmp_path: Path) -> Registry:
    """One in a folder, for what is SQLite's."""
    return Registry.open(tmp_path / "registry", create=True, clock=Clock())


def _add_all(registry: Registry, deltas: list[Path]) -> list[str]:
    ids: list[str] = []
    for number, path in enumerate(deltas):
        update = Update(
            parent=ids[-1] if ids else None,
            skill=f"skill-{number}",
            recipe={"name": "demo", "seed": 0},
            verdict="passed",
            metrics={"learning": {"value": 0.25, "n": 100}},
            actor="ann",
        )
        ids.append(registry.add(update, path, {"result.json": b'{"n": %d}' % number}))
    return ids


def test_what_was_added_is_found_again_whole(registry: Registry, deltas: list[Path]) -> None:
    first, second, third = _add_all(registry, deltas)
    update = registry.show(second)
    assert (update.id, update.parent, update.skill, update.verdict, update.actor) == (second, first, "skill-1", "passed", "ann")
    assert (update.base, update.child) == (registry.show(first).child, registry.show(third).base)
    assert update.metrics == {"learning": {"value": 0.25, "n": 100}}
    assert update.created == "2026-11-24T12:03:00Z"
    assert registry.delta(second) == Delta.load(deltas[1])
    assert registry.attachment(second, "result.json") == b'{"n": 1}'
    assert registry.blob(update.delta).read_bytes() == deltas[1].read_bytes()


def test_the_log_is_newest_first_and_speaks_json(registry: Registry, deltas: list[Path]) -> None:
    ids = _add_all(registry, deltas)
    registry.promote(ids[1], "production", "better", "ann")
    log = registry.log()
    assert [update.id for update in log] == ids[::-1]
    document = json.loads(json.dumps({"updates": [update.to_json() for update in log]}))
    assert {"id", "parent", "skill", "verdict", "names", "created"} <= document["updates"][0].keys()
    assert [update["names"] for update in document["updates"]] == [[], ["production"], []]
    assert [update.id for update in registry.log("production")] == [ids[1], ids[0]]


def test_a_chain_leads_from_the_base_to_the_update(registry: Registry, deltas: list[Path]) -> None:
    ids = _add_all(registry, deltas)
    chain = registry.chain(ids[2])
    assert [delta.child for delta in chain] == [registry.show(id_).child for id_ in ids]
    assert chain[0].parent == model_of(tied()).id
    assert registry.chain(ids[0]) == chain[:1]


def test_adding_the_same_update_again_changes_nothing(registry: Registry, deltas: list[Path]) -> None:
    ids = _add_all(registry, deltas)
    head = registry.head()
    assert _add_all(registry, deltas) == ids
    assert registry.head() == head
    assert registry.show(ids[0]).created == "2026-11-24T12:02:00Z"


def test_an_id_covers_everything_but_who_and_when(registry: Registry, deltas: list[Path]) -> None:
    id_ = registry.add(Update(skill="a", actor="ann"), deltas[0])
    assert registry.add(Update(skill="a", actor="bob"), deltas[0]) == id_
    assert registry.add(Update(skill="b", actor="ann"), deltas[0]) != id_
    assert registry.add(Update(skill="a", verdict="failed"), deltas[0]) != id_
    assert registry.show(id_).id == digest("update", registry.show(id_).body())


def test_the_beginning_of_an_id_is_enough_where_it_is_unique(registry: Registry, deltas: list[Path]) -> None:
    (id_, *_) = _add_all(registry, deltas)
    assert registry.show(id_[:10]).id == id_
    assert registry.show(id_[:10].upper()).id == id_
    with pytest.raises(RegistryError, match="is no name and no id"):
        registry.show(id_[:3])


def test_an_ambiguous_beginning_lists_what_it_could_be(registry: Registry, deltas: list[Path]) -> None:
    seen: dict[str, str] = {}
    for number in range(4000):
        candidate = replace(registry_update(deltas[0]), skill=f"s{number}").computed_id()
        if candidate[:4] in seen:
            break
        seen[candidate[:4]] = f"s{number}"
    for skill in (seen[candidate[:4]], f"s{number}"):
        registry.add(Update(skill=skill), deltas[0])
    with pytest.raises(RegistryError, match=rf'"{candidate[:4]}" is the beginning of 2 ids.*Give more digits: {candidate[:4]}'):
        registry.show(candidate[:4])


def registry_update(path: Path) -> Update:
    """What the registry makes of an update without words."""
    from selectune.hashing import file_digest

    delta = Delta.load(path)
    return Update(base=delta.parent, child=delta.child, delta=file_digest(path))


def test_an_unknown_name_or_id_is_told_with_near_matches(registry: Registry, deltas: list[Path]) -> None:
    (id_, *_) = _add_all(registry, deltas)
    registry.promote(id_, "production", "first", "ann")
    with pytest.raises(RegistryError, match=r'"prodution" is no name .* Did you mean production\?'):
        registry.show("prodution")
    wrong = id_[:5] + ("0" if id_[5] != "0" else "1") + id_[6:12]
    with pytest.raises(RegistryError, match=f"Did you mean {id_[:12]}"):
        registry.show(wrong)
    with pytest.raises(RegistryError, match=r'"prod" is no name\. Did you mean production'):
        registry.revert("prod", "oops", "ann")


def test_names_move_with_a_reason_and_an_actor_and_go_back(registry: Registry, deltas: list[Path]) -> None:
    one, two, three = _add_all(registry, deltas)
    for id_ in (one, two, three):
        registry.promote(id_, "production", f"because {id_[:4]}", "ann")
    assert registry.names() == {"production": three}
    move = registry.revert("production", "complaints", "bob")
    assert (move.update, move.previous, move.kind) == (two, three, "revert")
    assert registry.revert("production", "more of them", "bob").update == one
    assert registry.names() == {"production": one}
    with pytest.raises(RegistryError, match="no earlier update to go back to"):
        registry.revert("production", "again", "bob")
    registry.promote(three, "production", "fixed", "ann")
    assert registry.revert("production", "not fixed", "bob").update == one
    assert [(move.kind, move.actor, move.reason) for move in registry.history("production")][3:5] == [
        ("revert", "bob", "complaints"),
        ("revert", "bob", "more of them"),
    ]
    assert registry.verify().ok


def test_moves_that_make_no_sense_are_refused(registry: Registry, deltas: list[Path]) -> None:
    id_, *_ = _add_all(registry, deltas)
    registry.promote(id_[:8], "production", "first", "ann")
    for arguments, words in (
        ((id_, "production", "again", "ann"), "production already points to"),
        ((id_, "abcd", "hex", "ann"), "'abcd' cannot be a name"),
        ((id_, "../x", "path", "ann"), "'../x' cannot be a name"),
        ((id_, "candidate", " ", "ann"), "the reason or the actor is empty"),
        ((id_, "candidate", "why", ""), "the reason or the actor is empty"),
        (("0" * 64, "candidate", "why", "ann"), "is no name and no id"),
    ):
        with pytest.raises(RegistryError, match=words):
            registry.promote(*arguments)
    with pytest.raises(RegistryError, match='"candidate" is no name'):
        registry.revert("candidate", "why", "ann")
    assert len(registry.history()) == 1


def test_updates_that_do_not_follow_are_refused(registry: Registry, deltas: list[Path], tmp_path: Path) -> None:
    one, *_ = _add_all(registry, deltas[:1])
    head = registry.head()
    with pytest.raises(WrongParent, match=f"update {one[:12]} leads to model"):
        registry.add(Update(parent=one), deltas[2])
    with pytest.raises(WrongParent, match="the update's base is 000000000000"):
        registry.add(Update(base="0" * 64), deltas[0])
    with pytest.raises(RegistryError, match="is no name and no id"):
        registry.add(Update(parent="f" * 64), deltas[1])
    (tmp_path / "bad.delta").write_bytes(deltas[0].read_bytes()[:-1])
    with pytest.raises(DeltaError, match=r"bad\.delta"):
        registry.add(Update(), tmp_path / "bad.delta")
    with pytest.raises(StorageError, match="cannot be read"):
        registry.add(Update(), tmp_path / "none.delta")
    with pytest.raises(RegistryError, match="cannot be the name of an attachment"):
        registry.add(Update(), deltas[0], {"../report.html": b""})
    assert registry.head() == head


def test_reading_never_makes_a_registry(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="there is no registry here"):
        Registry.open(tmp_path / "none")
    assert os.listdir(tmp_path) == []


def test_another_database_is_no_registry(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_bytes(b"something else entirely" * 50)
    with pytest.raises(RegistryError, match="database is damaged"):
        Registry.open(tmp_path)
    (tmp_path / "registry.sqlite").unlink()
    sqlite3.connect(tmp_path / "registry.sqlite").close()
    with pytest.raises(RegistryError, match="this is no registry"):
        Registry.open(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"):
        Registry.open(tmp_path / "file" / "registry", create=True)


def test_a_folder_with_odd_letters_is_a_folder(tmp_path: Path, deltas: list[Path]) -> None:
    registry = Registry.open(tmp_path / "a b?mode=memory#%20é", create=True)
    _add_all(registry, deltas)
    assert len(Registry.open(tmp_path / "a b?mode=memory#%20é").log()) == 3


def test_opening_twice_with_create_keeps_what_is_there(registry: Registry, deltas: list[Path]) -> None:
    ids = _add_all(registry, deltas)
    again = Registry.open(registry.where, create=True)
    assert [update.id for update in again.log()] == ids[::-1]
    assert again.head() == registry.head()


def _objects(registry: Registry) -> Path:
    """The folder of its objects."""
    blobs = registry._blobs
    assert isinstance(blobs, FolderBlobs)
    return blobs.folder


def _sql(registry: Registry) -> sqlite3.Connection:
    return sqlite3.connect(Path(registry.where) / "registry.sqlite", isolation_level=None)


def test_what_was_acknowledged_is_on_the_disk(tmp_path: Path, deltas: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    registry, flushed = Registry.open(tmp_path / "r", create=True), []
    fsync = os.fsync
    monkeypatch.setattr("os.fsync", lambda descriptor: (flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve()), fsync(descriptor)))
    registry.add(Update(), deltas[0])
    folder = tmp_path.resolve() / "r" / "blobs" / "sha256"
    assert [path.parent for path in flushed] == [folder, folder.parent], "the object, then its folder"
    with registry._log._connection(writing=True) as connection:
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "foreign_keys", "journal_mode")}
    assert found == {"synchronous": 2, "foreign_keys": 1, "journal_mode": "wal"}


def test_the_database_refuses_to_change_or_skip_an_event(local: Registry, deltas: list[Path]) -> None:
    _add_all(local, deltas)
    connection = _sql(local)
    for statement in (
        "UPDATE events SET actor = 'mallory' WHERE seq = 2",
        "DELETE FROM events WHERE seq = 4",
        "INSERT OR REPLACE INTO events SELECT seq, utc, 'mallory', kind, name, subject, body, prev, hash FROM events WHERE seq = 2",
        "INSERT INTO events SELECT seq + 4, utc, actor, kind, name, subject, body, 'x', 'y' FROM events WHERE seq = 2",
        "INSERT INTO events SELECT 5, utc, actor, kind, name, subject, body, 'x', 'y' FROM events WHERE seq = 2",
    ):
        with pytest.raises(sqlite3.IntegrityError, match=r"append-only|must follow"):
            connection.execute(statement)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert local.verify().ok


def test_large_and_whole_numbers_in_metrics_keep_the_hashes(registry: Registry, deltas: list[Path]) -> None:
    registry.add(Update(metrics={"perplexity": 1e16, "whole": 2.0, "tiny": 1e-300}), deltas[0])
    assert registry.verify().demand().ok


def _writer(folder: str, path: str, barrier: Any) -> None:
    barrier.wait(30)
    registry = Registry.open(folder, create=True)
    for number in range(5):
        registry.add(Update(skill=f"skill-{number}", actor=str(os.getpid())), path, {"result.json": b"{}"})


def test_two_writers_that_add_the_same_leave_one(tmp_path: Path, deltas: list[Path]) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=_writer, args=(str(tmp_path / "r"), str(deltas[0]), barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    registry = Registry.open(tmp_path / "r")
    assert sorted(update.skill for update in registry.log()) == [f"skill-{number}" for number in range(5)]
    report = registry.verify().demand()
    assert (report.events, report.updates, report.objects, report.leftovers) == (6, 5, 2, ())


def test_a_crash_before_the_event_leaves_a_registry_that_is_whole(registry: Registry, deltas: list[Path]) -> None:
    blobs = _objects(registry)
    (blobs / ".partial-0123").write_bytes(b"half")
    (blobs / digest("x", 1)).write_bytes(b"an object without an event")
    _add_all(registry, deltas)
    report = registry.verify()
    assert report.ok
    assert report.leftovers == tuple(sorted([".partial-0123", digest("x", 1)]))


def test_adding_again_heals_a_damaged_object(registry: Registry, deltas: list[Path]) -> None:
    ids = _add_all(registry, deltas)
    path = registry.blob(registry.show(ids[0]).delta)
    path.write_bytes(b"damaged")
    assert not registry.verify().ok
    with pytest.raises(RegistryError, match="is damaged"):
        registry.delta(ids[0])
    _add_all(registry, deltas)
    assert registry.verify().ok


def test_a_full_disk_leaves_no_event(registry: Registry, deltas: list[Path]) -> None:
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from selectune.errors import StorageError
from selectune.registry import Registry, Update
from selectune.registry.blobs import FolderBlobs
registry = Registry.open({registry.where!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    registry.add(Update(skill="x"), {str(deltas[0])!r})
except StorageError as error:
    print(error)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "cannot be written" in done.stdout
    assert registry.log() == []
    assert registry.verify().leftovers == ()


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("mysql://host/x", (NotYet, RegistryError), "a registry at mysql://"),
        ("postgresql+psycopg://host/x", RegistryError, r"End it with \?blobs=FOLDER"),
        ("postgresql+psycopg://host/x?blobs=gs://bucket", (NotYet, RegistryError), "a registry at gs://"),
        ("s3://key:secret@bucket/x", RegistryError, r"s3://bucket/x.* is no plain address"),
        ("nothing://", (NotYet, RegistryError), "a registry at nothing://|no URL of a database"),
    ],
)
def test_urls_that_cannot_be_used_are_told(url: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Registry.open(url)


def test_a_missing_database_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingPackage, match=r"pip install .selectune\[postgres\]."):
        Registry.open("postgresql+psycopg://host/x?blobs=/tmp")


def test_a_broken_report_names_every_problem(registry: Registry, deltas: list[Path]) -> None:
    ids = _add_all(registry, deltas)
    registry.blob(registry.show(ids[0]).delta).unlink()
    registry.blob(registry.show(ids[1]).attachments["result.json"]).write_bytes(b"{}")
    with pytest.raises(VerifyFailed, match=r"2 problems:(\n  object [0-9a-f]{64}: (missing|damaged)){2}") as caught:
        registry.verify().demand()
    assert caught.value.exit_code == 1


def test_an_event_holds_canonical_text(local: Registry, deltas: list[Path]) -> None:
    _add_all(local, deltas)
    for (body,) in _sql(local).execute("SELECT body FROM events"):
        assert canonical(json.loads(body)).decode() == body


def test_no_two_registries_begin_alike_and_older_ones_without_an_id_are_read(tmp_path: Path) -> None:
    heads = {Registry.open(tmp_path / name, create=True, clock=Clock()).verify().head.hash for name in "ab"}
    assert len(heads) == 2
    (first,) = Registry.open(tmp_path / "a")._log.read()
    assert re.fullmatch(r"[0-9a-f]{32}", first.body["id"])
    check_event(first, "here")
    check_event(replace(first, body={"format": 1}), "here")
    for id_ in ("ff", "F" * 32, None):
        with pytest.raises(EventMalformed, match="id"):
            check_event(replace(first, body={"format": 1, "id": id_}), "here")


def test_checking_a_name_that_moved_ten_thousand_times_is_quick() -> None:
    """Quadratic, it took a minute."""
    ids = [f"{number:064x}" for number in range(10_000)]
    log = [
        Event(
            seq=number + 1,
            utc="2026-11-24T12:00:00Z",
            actor="ann",
            kind="promote",
            name="production",
            subject=id_,
            body={"previous": ids[number - 1] if number else None, "reason": "next"},
            prev="",
            hash="",
        )
        for number, id_ in enumerate(ids)
    ]
    began = time.process_time()
    assert list(_names(log, set(ids))) == []
    assert time.process_time() - began < 2
    log[5000] = replace(log[5000], kind="revert")
    assert [problem.text for problem in _names(log, set(ids))] == ["event 5001 does not follow the move before it"]


def test_the_log_prints_sizes_with_their_units(local: Registry, deltas: list[Path]) -> None:
    _add_all(local, deltas)
    printed = CliRunner().invoke(app, ["log", "--registry", str(local.where)]).stdout
    assert "\\u" not in printed
    assert len(re.findall(r"[0-9]\N{NARROW NO-BREAK SPACE}k?B", printed)) == 3
