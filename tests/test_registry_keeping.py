"""Tags, retirement, holds, gc and fsck: what stays, what goes, and what is mended."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from delta_fixtures import model_of, quick_disk, step_of, tied
from selectune.cli import app
from selectune.errors import Collected, Overtaken, RegistryError, StorageError, VerifyFailed
from selectune.registry import Registry, Update, claims
from selectune.registry.blobs import FolderBlobs
from selectune.registry.collecting import Keep
from selectune.registry.kinds import check_event
from selectune.registry.lineage import condemned, references
from selectune.registry.remote import FetchedBlobs

NOW = Keep(days=0, candidate_days=0)
FOREVER = Keep(days=365_000, candidate_days=365_000)


class Clock:
    """A clock that stands where it is set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, days: float) -> None:
        self.now += timedelta(days=days)


class Line:
    """A registry with a line of three updates, and one beside the third."""

    def __init__(self, place: Path | str, deltas: list[Path]) -> None:
        self.clock, self.deltas, self.place = Clock(), deltas, place
        self.registry = Registry.open(place, create=True, clock=self.clock)
        self.ids: list[str] = []
        for number in range(3):
            self.ids.append(self.add(number, f"skill-{number}", self.ids[-1] if self.ids else None))
        self.beside = self.add(2, "beside", self.ids[1])

    def add(self, number: int, skill: str, parent: str | None) -> str:
        update = Update(parent=parent, skill=skill, verdict="passed", actor="ann")
        return self.registry.add(update, self.deltas[number], {"result.json": skill.encode()})

    def files(self) -> set[str]:
        return set(self.registry._blobs.names())

    def damage(self, name: str) -> None:
        """What a broken disk does to an object."""
        blobs = self.registry._blobs
        if isinstance(blobs, FetchedBlobs):
            shelf: Any = blobs._shelf
            shelf.fs.pipe_file(shelf.path(name), b"damaged")
        else:
            blobs.path(name).write_bytes(b"damaged")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="deltas", scope="module")
def _deltas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, model, paths = tmp_path_factory.mktemp("deltas"), model_of(tied()), []
    for number in range(3):
        model, delta = step_of(model, {"o.weight": None}, 0.1 * (number + 1))
        paths.append(folder / f"{number}.delta")
        delta.save(paths[-1])
    return paths


@pytest.fixture(name="line")
def _line(tmp_path: Path, deltas: list[Path]) -> Line:
    return Line(tmp_path / "registry", deltas)


@pytest.fixture(name="anywhere")
def _anywhere(place: str, deltas: list[Path]) -> Line:
    """The same in a place of each kind."""
    return Line(place, deltas)


def run(line: Line, *words: str) -> Any:
    """A verb with --json."""
    result = CliRunner().invoke(app, [*words, "--json", "--registry", str(line.place)])
    return result.exit_code, json.loads(result.stdout)


def test_a_tag_never_moves_and_finds_its_update(line: Line) -> None:
    one, two, _ = line.ids
    line.registry.tag(one, "v1", "first release", "ann")
    assert line.registry.show("v1").id == one
    assert line.registry.show(one).tags == ("v1",)
    assert line.registry.tags() == {"v1": one}
    with pytest.raises(RegistryError, match=r"v1 is the tag of .* never moves"):
        line.registry.tag(two, "v1", "", "ann")
    with pytest.raises(RegistryError, match="v1 is a tag"):
        line.registry.promote(two, "v1", "why", "ann")
    line.registry.promote(two, "production", "why", "ann")
    with pytest.raises(RegistryError, match="production is a name that moves"):
        line.registry.tag(one, "production", "", "ann")
    assert line.registry.verify().ok


def test_a_retired_update_is_promoted_no_more_but_loaded_and_reverted_to(line: Line) -> None:
    one, two, _ = line.ids
    line.registry.promote(one, "production", "first", "ann")
    line.registry.promote(two, "production", "second", "ann")
    line.registry.retire(one, "superseded", "bob")
    with pytest.raises(RegistryError, match=r"was retired by bob at .*: superseded"):
        line.registry.promote(one, "canary", "again", "ann")
    with pytest.raises(RegistryError, match="was retired"):
        line.registry.retire(one, "again", "bob")
    assert any("retired by bob" in note for note in line.registry.admit(one).notes)
    assert line.registry.revert("production", "second was bad", "ann").update == one


def test_an_actor_is_never_empty(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "carol")
    id_ = line.registry.add(Update(skill="nobody said who"), line.deltas[0])
    assert line.registry.show(id_).actor == "carol"
    assert all(event.actor for event in line.registry._log.read())


def test_what_never_had_a_name_goes_when_its_time_is_over(anywhere: Line) -> None:
    line = anywhere
    line.registry.promote(line.ids[2], "production", "best", "ann")
    assert line.registry.gc().updates == ()
    line.clock.forward(31)
    found = line.registry.gc()
    assert [update.id for update in found.updates] == [line.beside]
    assert not found.deleted
    assert found.bytes == len(b"beside")  # its delta is that of the third update, which stays
    before = line.files()
    assert line.registry.gc(delete=True, actor="bob").updates == found.updates
    assert before - line.files() == {line.registry.show(line.beside).attachments["result.json"]}
    assert line.registry.verify().ok
    assert line.registry.gc(delete=True).updates == ()


def test_a_collected_update_is_known_and_refused_by_an_error_of_its_own(line: Line) -> None:
    line.registry.tag(line.ids[1], "v1", "", "ann")
    line.clock.forward(31)
    line.registry.gc(delete=True, actor="bob")
    assert [update.id for update in line.registry.log()] == [line.beside, *line.ids[::-1]]
    for read in (line.registry.admit, line.registry.delta, line.registry.chain):
        with pytest.raises(Collected, match=r"was collected \(event \d+\)"):
            read(line.beside)
    with pytest.raises(Collected):
        line.registry.promote(line.beside, "production", "why", "ann")
    with pytest.raises(Collected):
        line.registry.hold(line.beside, date(2036, 1, 1), "why", "ann")
    assert any("its bytes are gone" in note for note in line.registry.standing().notes(line.beside))
    assert line.registry.admit("v1").update.id == line.ids[1]


def test_a_collected_update_that_is_added_again_is_whole_again(anywhere: Line) -> None:
    line = anywhere
    line.registry.tag(line.ids[1], "v1", "", "ann")
    line.clock.forward(31)
    line.registry.gc(delete=True)
    assert line.add(2, "beside", line.ids[1]) == line.beside
    assert line.registry.admit(line.beside).update.id == line.beside
    assert len(line.registry.log()) == 4
    assert line.registry.verify().ok
    line.clock.forward(30)
    assert line.registry.gc(delete=True).updates == (), "its 30 days begin anew"
    line.clock.forward(1)
    assert [update.id for update in line.registry.gc().updates] == [line.beside]


def test_nothing_that_ever_had_a_name_goes_before_its_date(line: Line) -> None:
    line.registry.promote(line.beside, "production", "first", "ann")
    line.clock.forward(100)
    line.registry.promote(line.ids[0], "production", "second", "ann")
    line.clock.forward(3650)
    assert line.registry.gc().kept[line.beside].startswith("had the name production until 2027-03-04")
    line.clock.forward(1)
    assert line.beside in [update.id for update in line.registry.gc().updates]


def test_ancestors_of_what_stays_stay(line: Line) -> None:
    line.registry.tag(line.ids[2], "v3", "", "ann")
    kept = line.registry.gc(keep=NOW).kept
    line.clock.forward(1)
    assert set(line.registry.gc(keep=NOW).kept) == set(line.ids)
    assert set(kept) == {*line.ids, line.beside}  # today is not over yet


def test_a_hold_keeps_until_its_day_is_over_or_it_is_released(line: Line) -> None:
    line.registry.hold(line.beside, date(2026, 12, 31), "legal", "ann")
    line.registry.hold(line.beside, date(2026, 12, 1), "shorter, so it ends nothing", "ann")
    line.clock.now = datetime(2026, 12, 31, 23, 0, tzinfo=UTC)
    assert line.registry.gc(keep=NOW).kept[line.beside] == "held until 2026-12-31: legal"
    line.clock.forward(1)
    assert line.beside not in line.registry.gc(keep=NOW).kept
    with pytest.raises(RegistryError, match="2026-12-31 is past"):
        line.registry.hold(line.beside, date(2026, 12, 31), "again", "ann")
    line.registry.hold(line.beside, date(2030, 1, 1), "again", "ann")
    line.registry.release(line.beside, "settled", "ann")
    assert line.beside not in line.registry.gc(keep=NOW).kept
    with pytest.raises(RegistryError, match="is not held"):
        line.registry.release(line.beside, "again", "ann")


def test_leftovers_go_when_they_are_a_day_old(line: Line) -> None:
    folder = Path(line.place) / "blobs" / "sha256"
    young, old = line.registry._blobs.put(b"young"), line.registry._blobs.put(b"old")
    (folder / "notes.txt").write_bytes(b"somebody else's")
    stamp = line.clock.now.timestamp()
    os.utime(folder / young, (stamp, stamp))
    os.utime(folder / old, (stamp - 90_000, stamp - 90_000))
    assert [item.name for item in line.registry.gc(delete=True).leftovers] == [old]
    assert {young, "notes.txt"} <= line.files()


def test_what_was_never_recorded_goes_when_it_is_a_day_old(anywhere: Line) -> None:
    line = anywhere
    lost = line.registry._blobs.put(b"never recorded")
    line.clock.now = datetime.now(UTC)
    assert line.registry.gc(keep=FOREVER, delete=True).leftovers == ()
    line.clock.forward(1.1)
    told = line.registry.gc(keep=FOREVER)
    assert [(item.name, item.bytes) for item in told.leftovers] == [(lost, 14)]
    assert lost in line.files()
    assert line.registry.gc(keep=FOREVER, delete=True).leftovers == told.leftovers
    assert lost not in line.files()
    assert line.registry.verify().ok


def test_a_gc_that_was_interrupted_is_finished_by_the_next(anywhere: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line = anywhere
    line.registry.tag(line.ids[1], "v1", "", "ann")
    line.clock.forward(31)

    def killed(self: Any, name: str) -> None:
        raise StorageError("killed", where=name)

    with monkeypatch.context() as patch:
        patch.setattr(type(line.registry._blobs), "delete", killed)
        with pytest.raises(StorageError, match="killed"):
            line.registry.gc(delete=True)
    going = condemned(line.registry._log.read())
    assert going.keys() <= line.files()
    assert line.registry.verify().ok
    line.registry.gc(delete=True)
    assert not going.keys() & line.files()
    assert condemned(line.registry._log.read()) == {}


def test_an_update_that_is_added_while_a_gc_runs_waits_for_its_objects_and_loses_nothing(
    anywhere: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = anywhere
    line.registry.tag(line.ids[1], "v1", "", "ann")
    line.clock.forward(31)
    delta, order = line.registry.show(line.ids[2]).delta, list[str]()
    blobs: Any = type(line.registry._blobs)
    delete = blobs.delete

    def add_again() -> None:
        other = Registry.open(line.place, clock=line.clock)
        other.add(Update(parent=line.ids[1], skill="new"), line.deltas[2])
        order.append("added")

    thread = threading.Thread(target=add_again)

    def slow(self: Any, name: str) -> None:
        if name == delta:
            thread.start()
            thread.join(0.3)
            assert thread.is_alive(), "it waits"
        delete(self, name)
        order.append("removed")

    monkeypatch.setattr(blobs, "delete", slow)
    line.registry.gc(delete=True)
    thread.join()
    assert order[-1] == "added"
    assert "new" in [update.skill for update in line.registry.log()]
    assert references(line.registry._log.read()).keys() <= line.files()
    assert line.registry.verify().ok


def test_two_who_collect_at_once_take_each_what_they_named(anywhere: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line = anywhere
    line.registry.tag(line.ids[1], "v1", "", "ann")
    line.clock.forward(31)
    blobs: Any = type(line.registry._blobs)
    delete, found = blobs.delete, list[Any]()

    def beside(self: Any, name: str) -> None:
        if not found:
            found.append(None)
            found[0] = Registry.open(line.place, clock=line.clock).gc(delete=True, actor="bob")
        delete(self, name)

    monkeypatch.setattr(blobs, "delete", beside)
    done = line.registry.gc(delete=True, actor="ann")
    assert [update.id for update in done.updates] == [line.beside, line.ids[2]]
    assert (found[0].updates, found[0].busy, done.busy) == ((), len(done.objects), 0)
    events = line.registry._log.read()
    assert [event.actor for event in events if event.kind == "gc"] == ["ann", "ann"]
    assert condemned(events) == {}
    assert line.registry.verify().ok


def lose_a_machine(line: Line, patch: pytest.MonkeyPatch) -> None:
    """Ann's `gc` on another machine, for whose processes nobody here can ask, ends when it has named what it removes."""

    def lost(self: Any, name: str) -> None:
        raise StorageError("the machine is gone", where=name)

    with patch.context() as there:
        there.setattr(claims, "process_name", lambda: "00000000-77")
        there.setattr(type(line.registry._blobs), "delete", lost)
        with pytest.raises(StorageError, match="the machine is gone"):
            line.registry.gc(delete=True, actor="ann")


def test_what_a_machine_that_is_gone_was_removing_is_taken_over_after_half_an_hour(anywhere: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line = anywhere
    line.registry.tag(line.ids[1], "v1", "", "ann")
    line.clock.forward(31)
    lose_a_machine(line, monkeypatch)
    going = condemned(line.registry._log.read())
    line.clock.now += timedelta(minutes=29)
    assert line.registry.gc(delete=True, actor="bob").busy == len(going)
    assert going.keys() <= line.files()
    with monkeypatch.context() as patch:
        patch.setattr("selectune.registry.store.time.sleep", lambda _: None)
        with pytest.raises(Overtaken, match=r"a gc by ann is removing an object of this since 2026-12-25T12:00:00Z.*30 minutes later"):
            line.add(2, "beside", line.ids[1])
    line.clock.now += timedelta(minutes=2)
    assert line.add(2, "beside", line.ids[1]) == line.beside, "nobody is at it any more"
    line.registry.gc(delete=True, actor="bob")
    kept = line.registry.show(line.beside)
    assert going.keys() & line.files() == {kept.delta, *kept.attachments.values()}
    events = line.registry._log.read()
    assert [(event.actor, *(event.body.keys() & {"objects", "taken", "finished"})) for event in events if event.kind == "gc"] == [
        ("ann", "objects"),
        ("bob", "taken"),
        ("bob", "finished"),
    ]
    assert line.registry.verify().ok
    for event in events:
        check_event(event, "log")


def test_a_gc_that_was_believed_gone_removes_nothing_more(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.registry.tag(line.ids[1], "v1", "", "ann")
    line.clock.forward(31)
    delta, delete = line.registry.show(line.ids[2]).delta, FolderBlobs.delete
    names, asleep = list[str](), threading.Event()
    name_of = claims.process_name

    def slept(self: Any, name: str) -> None:
        names.append(name)
        delete(self, name)
        if not asleep.is_set():
            # The machine sleeps for an hour after it removed the first object; meanwhile another one takes over, and an update comes again.
            asleep.set()
            monkeypatch.setattr(claims, "process_name", lambda: "00000000-77")
            line.clock.now += timedelta(hours=1)
            other = Registry.open(line.place, clock=line.clock)
            other.gc(delete=True, actor="bob")
            line.add(2, "beside", line.ids[1])
            monkeypatch.setattr(claims, "process_name", name_of)
            names.clear()

    monkeypatch.setattr(FolderBlobs, "delete", slept)
    line.registry.gc(delete=True, actor="ann")
    assert names == []
    assert delta in line.files()
    assert condemned(line.registry._log.read()) == {}
    assert line.registry.verify().ok


def test_a_gc_that_takes_long_says_again_that_it_is_at_work(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.registry.tag(line.ids[1], "v1", "", "ann")
    line.clock.forward(31)
    delete, names = FolderBlobs.delete, list[str]()

    def slow(self: Any, name: str) -> None:
        names.append(name)
        delete(self, name)
        line.clock.now += timedelta(minutes=6)

    monkeypatch.setattr(FolderBlobs, "delete", slow)
    done = line.registry.gc(delete=True, actor="ann")
    events = [event for event in line.registry._log.read() if event.kind == "gc"]
    assert sorted(names) == sorted(item.name for item in done.objects), "each was removed once"
    assert [next(iter(event.body.keys() & {"objects", "taken", "finished"})) for event in events] == ["objects", "taken", "finished"]
    assert line.registry.verify().ok


def test_nothing_is_collected_from_a_log_that_was_edited(line: Line) -> None:
    with line.registry._log._connection(writing=True) as connection:  # type: ignore[attr-defined]
        connection.exec_driver_sql("DROP TRIGGER events_no_update")
        connection.exec_driver_sql("UPDATE events SET actor = 'mallory' WHERE seq = 2")
    with pytest.raises(VerifyFailed, match="was edited"):
        line.registry.gc(keep=NOW)


def test_fsck_mends_from_another_registry_and_says_what_it_cannot(anywhere: Line, another: str, deltas: list[Path]) -> None:
    line, other = anywhere, Line(another, deltas)
    broken = line.registry.show(line.ids[0])
    line.damage(broken.delta)
    line.registry._blobs.delete(broken.attachments["result.json"])
    alone = line.registry.fsck()
    assert (alone.ok, [one.fault for one in alone.repairs if one.of.startswith("the delta")]) == (False, ["damaged"])
    other.damage(broken.attachments["result.json"])
    found = line.registry.fsck(other.registry)
    assert {one.of.split(" of ")[0]: one.mended for one in found.repairs} == {"the delta": True, "result.json": False}
    assert "damaged" in next(one.why for one in found.repairs if not one.mended)
    assert [problem.text for problem in found.report.problems] == ["missing"]
    line.registry.add(Update(skill="skill-0", verdict="passed"), deltas[0], {"result.json": b"skill-0"})
    assert line.registry.fsck(other.registry).ok


def test_the_verbs_speak_json(line: Line, tmp_path: Path) -> None:
    assert run(line, "tag", line.ids[0], "v1") == (0, {"update": line.ids[0], "tag": "v1"})
    assert run(line, "hold", "v1", "--until", "2999-01-01", "--reason", "legal") == (0, {"update": line.ids[0], "until": "2999-01-01"})
    assert run(line, "hold", "v1", "--release", "--reason", "done") == (0, {"update": line.ids[0], "until": None})
    assert run(line, "hold", "v1", "--until", "soon", "--reason", "x")[0] == 2
    assert run(line, "hold", "v1", "--reason", "x")[1]["error"]["kind"] == "InputError"
    assert run(line, "retire", "v1", "--reason", "old") == (0, {"update": line.ids[0], "retired": "old"})
    assert run(line, "gc")[1]["deleted"] is False
    assert run(line, "fsck")[1]["ok"] is True
    line.registry.blob(line.registry.show("v1").delta).unlink()
    assert run(line, "fsck", "--repair", str(line.place))[0] == 1


def test_the_log_of_a_name_shows_every_model_that_served_under_it(line: Line) -> None:
    for id_, reason in zip(line.ids, ("first", "second", "third"), strict=True):
        line.registry.promote(id_, "production", reason, "ann")
    line.registry.revert("production", "complaints", "bob")
    code, document = run(line, "log", "production")
    assert code == 0
    assert [update["id"] for update in document["updates"]] == line.ids[1::-1]
    told = [(move["update"], move["kind"], move["actor"], move["reason"], move["verdict"]) for move in document["history"]]
    assert told[0] == (line.ids[1], "revert", "bob", "complaints", "passed")
    assert [row[0] for row in told[1:]] == line.ids[::-1]
    text = CliRunner().invoke(app, ["log", "production", "--registry", str(line.place)]).stdout
    assert "complaints" in text
    assert line.ids[2][:12] in text  # it served, though it is none of the updates that production stands on now
