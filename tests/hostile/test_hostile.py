"""Everything that a stranger can send, made by code: each refused by its own error, in time.

Nothing is written, and nothing live is printed.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

import deltas as of_deltas
import folders as of_folders
import logs as of_logs
import people as of_people
import texts as of_texts
from cases import Case, Room

from delta_fixtures import model_of, quick_disk, tied
from governance_fixtures import Governed, governed
from selectune.delta import apply
from selectune.errors import ObjectDamaged, SelectuneError
from selectune.governance import PrivateKey
from selectune.registry import Registry, Update

CASES = [case for part in (of_folders, of_deltas, of_texts, of_people, of_logs) for case in part.cases()]
SECONDS = 2.0


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="room")
def _room(tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path], prepared: Governed) -> Room:
    def govern(folder: Path) -> Governed:
        shutil.copytree(prepared.registry.where, folder)
        clock = type(prepared.clock)()
        clock.now = prepared.clock.now
        registry = Registry.open(folder, clock=clock)
        return Governed(registry=registry, keys=keys, clock=clock, policy=prepared.policy, ids=list(prepared.ids))

    return Room(path=tmp_path, keys=keys, deltas=deltas, govern=govern)


@pytest.fixture(name="prepared", scope="module")
def _prepared(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, PrivateKey], deltas: list[Path]) -> Iterator[Governed]:
    with pytest.MonkeyPatch.context() as patch:
        quick_disk(patch)
        yield governed(tmp_path_factory.mktemp("governed") / "registry", keys, deltas)


@contextmanager
def _in_time(name: str) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{name} takes more than {SECONDS} s")

    # Of this process's own time, which a busy machine does not spend; and of the clock, for what waits for ever.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 15 * SECONDS))
    before = [signal.signal(number, late) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _state(folder: Path) -> dict[str, str]:
    """Every file with its bytes' hash; of a database, its events."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".sqlite":
            connection = sqlite3.connect(path)
            try:
                found[name] = str(connection.execute("SELECT count(*), max(hash) FROM events").fetchall())
            except sqlite3.DatabaseError as error:
                found[name] = str(error)
            connection.close()
        elif not name.endswith(("-wal", "-shm")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    return found


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_a_hostile_thing_is_refused_by_its_own_error(case: Case, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(room.path)
    given = case.make(room)
    before = _state(room.path)
    with _in_time(case.id), pytest.raises(SelectuneError) as caught:
        case.act(given)
    error = caught.value
    assert type(error) is case.error, f"{type(error).__name__}: {error}"
    assert case.words in str(error), str(error)
    assert error.what, "what is wrong"
    assert error.where or "x.yaml: " in error.what, f"where it is: {error}"
    assert error.then, f"what to do next: {error}"
    assert str(error).replace("\n", "").isprintable()
    assert len(str(error)) < 2000
    assert _state(room.path) == before, "something was written"


def test_what_was_checked_is_what_is_used_though_the_file_is_swapped_in_between(room: Room) -> None:
    ours = room.govern(room.path / "registry")
    ours.release(0)
    admitted = ours.registry.admit("production")
    path = ours.registry.blob(admitted.update.delta)
    path.unlink()
    path.write_bytes(room.deltas[1].read_bytes())
    assert apply(model_of(tied()), admitted.deltas[0]).id == admitted.update.child
    with pytest.raises(ObjectDamaged):
        ours.registry.admit("production")


def test_an_object_that_is_swapped_while_it_is_open_gives_the_bytes_that_were_hashed(room: Room) -> None:
    ours = room.govern(room.path / "registry")
    update = ours.registry.show(ours.ids[0])
    path, whole = ours.registry.blob(update.delta), room.deltas[0].read_bytes()
    with ours.registry._blobs.open(update.delta) as file:
        path.rename(room.path / "away")
        path.write_bytes(b"something else")
        assert file.read() == whole
    with pytest.raises(ObjectDamaged), ours.registry._blobs.open(update.delta):
        pass


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x1b]0;title\x07", "\u202eturned", "\x9b2J", "[bold]x[/bold]", "[link=http://x]y[/link]"])
def test_what_a_registry_says_is_printed_as_text_alone(text: str, room: Room) -> None:
    from typer.testing import CliRunner

    from selectune.cli import app

    where = room.path / "registry"
    registry = Registry.open(where, create=True)
    id_ = registry.add(Update(skill=text, verdict="passed", actor=text), room.deltas[0])
    registry.promote(id_, "production", text, text)
    for arguments in (["log"], ["show", id_], ["verify"], ["log", "--json"], ["show", text]):
        result = CliRunner().invoke(app, [*arguments, "--registry", str(where)])
        shown = result.stdout + result.stderr
        # U+202F is ours: the narrow space between a size and its unit.
        assert shown.replace("\n", "").replace("\u202f", "").isprintable(), repr(shown)


def test_there_are_at_least_200_cases_of_every_threat(capsys: pytest.CaptureFixture[str]) -> None:
    counts = Counter(case.threat for case in CASES)
    table = Table("threat", "cases", "errors")
    for threat in sorted(counts, key=lambda one: int(one[1:])):
        kinds = sorted({case.error.__name__ for case in CASES if case.threat == threat})
        table.add_row(threat, str(counts[threat]), ", ".join(kinds))
    with capsys.disabled():
        Console(width=160).print(table, f"{len(CASES)} cases")
    assert len({case.id for case in CASES}) == len(CASES)
    assert len(CASES) >= 200
    assert set(counts) >= {"T1", "T2", "T3", "T4", "T5", "T6", "T11", "T12", "T13", "T17", "T19"}
