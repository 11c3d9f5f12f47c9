"""Push and pull between registries of every kind that needs no server, and what is refused of a stranger's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from delta_fixtures import quick_disk
from governance_fixtures import Clock, Governed, governed
from places_fixtures import KINDS
from remotes_fixtures import deltas_in, filled, move_at_once, poison
from selectune.cli import app
from selectune.delta import Delta
from selectune.errors import (
    BadSignature,
    ClockApart,
    Collected,
    DeltaError,
    EventEdited,
    EventMalformed,
    HistoriesDiffer,
    LogCut,
    MissingPackage,
    NotApproved,
    NotYet,
    ObjectDamaged,
    ObjectMissing,
    Oversize,
    Overtaken,
    PolicyRefused,
    RegistryError,
    RevokedVersion,
    StorageError,
    UnknownKind,
    VerifyFailed,
)
from selectune.governance import PrivateKey, Witness
from selectune.hashing import digest
from selectune.registry import Registry, Update
from selectune.registry.blobs import FolderBlobs
from selectune.registry.kinds import KINDS as EVENTS
from selectune.registry.places import exists
from selectune.registry.remote import RemoteBlobs

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="deltas", scope="module")
def _deltas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return deltas_in(tmp_path_factory.mktemp("deltas"))


@pytest.fixture(name="ours")
def _ours(tmp_path: Path, deltas: list[Path]) -> Registry:
    registry = Registry.open(tmp_path / "ours", create=True, clock=Clock())
    filled(registry, deltas)
    return registry


@pytest.fixture(name="stranger")
def _stranger(ours: Registry, tmp_path: Path) -> Path:
    """The folder of a remote registry that holds the same, for a test to poison."""
    ours.push(Registry.at(f"file://{tmp_path}/stranger"))
    return tmp_path / "stranger"


@pytest.fixture(name="people")
def _people(tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path]) -> Governed:
    return governed(tmp_path / "governed", keys, deltas)


def places(tmp_path: Path) -> list[str]:
    return [str(tmp_path / "folder"), f"file://{tmp_path}/shared", f"memory://{uuid4().hex}"]


@pytest.fixture(params=[*KINDS, "memory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_history_goes_to_every_kind_of_place_on_to_another_and_back_word_for_word(
    ours: Registry, place: str, another: str, tmp_path: Path
) -> None:
    there = Registry.at(place)
    sent = ours.push(there)
    assert (sent.objects, sent.skipped, sent.events, len(sent.updates), sent.done) == (6, 0, 5, 3, True)
    assert sent.bytes == sum(ours.blob(name).stat().st_size for name in _objects(ours))
    onward = Registry.open(place).push(Registry.at(another))
    assert (onward.objects, onward.bytes, onward.events) == (6, sent.bytes, 5)
    back = Registry.at(tmp_path / "back")
    assert back.pull(Registry.open(another)).events == 5
    for one in (Registry.open(place), Registry.open(another), back):
        assert one.verify().demand().leftovers == ()
        assert one.head() == ours.head()
        assert one.names() == ours.names()
        assert [delta.child for delta in one.chain("production")] == [delta.child for delta in ours.chain("production")]


def _objects(registry: Registry) -> list[str]:
    return [name for update in registry.log() for name in (update.delta, *update.attachments.values())]


def test_only_what_is_missing_travels(ours: Registry, deltas: list[Path], place: str) -> None:
    there = Registry.at(place)
    ours.push(there)
    again = ours.push(there)
    assert (again.objects, again.bytes, again.skipped, again.events) == (0, 0, 6, 0)
    id_ = ours.add(Update(skill="another", actor="ben"), deltas[0], {"note.txt": b"new"})
    more = ours.push(there)
    assert (more.objects, more.bytes, more.skipped, more.events, more.updates) == (1, 3, 6, 1, (id_,))


def test_an_object_that_is_lost_here_is_fetched_again(ours: Registry) -> None:
    there = Registry.at(f"memory://{uuid4().hex}")
    ours.push(there)
    ours.blob(ours.show("production").delta).unlink()
    done = ours.pull(there)
    assert (done.objects, done.events) == (1, 0)
    assert ours.verify().ok


def test_an_object_of_the_receiver_is_not_removed_where_the_sender_gives_its_bytes_for_another(
    ours: Registry, deltas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Registry.at(tmp_path / "there")
    ours.push(there)
    ours.add(Update(skill="more", actor="ann"), deltas[0], {"note.txt": b"new"})
    new, old, opened = hashlib.sha256(b"new").hexdigest(), ours.show("production").delta, FolderBlobs.open

    def swapped(self: FolderBlobs, name: str, **more: Any) -> Any:
        # As where somebody writes to the file between the look at its hash and the copy.
        return opened(self, old if name == new else name, **more)

    monkeypatch.setattr(FolderBlobs, "open", swapped)
    with pytest.raises(ObjectDamaged, match="changed on its way"):
        ours.push(there)
    assert there.verify().ok
    assert there._blobs.has(old)


def test_a_dry_run_tells_the_same_and_makes_nothing(ours: Registry, place: str) -> None:
    there = Registry.at(place)
    told = ours.push(there, dry_run=True)
    assert (told.objects, told.events, told.done) == (6, 5, False)
    assert not exists(place)
    done = ours.push(there)
    assert {**told.to_json(), "done": True} == done.to_json()


def test_a_database_that_a_crash_left_empty_is_filled(ours: Registry, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "registry.sqlite").touch()
    there = Registry.at(tmp_path / "there")
    assert ours.push(there).events == 5
    assert there.head() == ours.head()


def test_progress_goes_up_to_the_bytes_that_travel(ours: Registry) -> None:
    heard: list[tuple[int, int]] = []
    sent = ours.push(Registry.at(f"memory://{uuid4().hex}"), progress=lambda now, all_: heard.append((now, all_)))
    assert heard[-1] == (sent.bytes, sent.bytes)
    assert heard == sorted(heard)
    assert len(heard) >= sent.objects


def test_who_is_behind_takes_nothing_and_is_told(ours: Registry, place: str) -> None:
    there = Registry.at(place)
    ours.push(there)
    ours.promote(ours.log()[1].id, "production", "back", "ann")
    done = ours.pull(there)
    assert (done.objects, done.events, done.behind) == (0, 0, 1)
    assert there.pull(ours).events == 1


def test_histories_that_differ_are_refused_with_the_event_and_the_way_out(ours: Registry, deltas: list[Path], place: str) -> None:
    there = Registry.at(place, clock=Clock())
    ours.push(there)
    there.add(Update(skill="theirs", actor="ben"), deltas[0])
    ours.promote(ours.log()[1].id, "production", "other", "ann")
    before = ours.head()
    with pytest.raises(HistoriesDiffer, match=r"differ from event 6 on: promote by ann at .*, add by ben at .*--update ID"):
        ours.pull(there)
    assert ours.head() == before


def test_one_update_is_added_with_its_ancestors_as_an_event_of_ours(ours: Registry, place: str) -> None:
    third, second, first = (update.id for update in ours.log())
    there = Registry.open(place, create=True)
    done = there.pull(ours, update=second[:8])
    assert (done.updates, done.objects, done.events) == ((first, second), 4, 2)
    assert [update.id for update in there.log()] == [second, first]
    assert there.names() == {}
    assert there.verify().ok
    named = there.pull(ours, update="production")
    assert (named.updates, named.objects) == ((third,), 2)
    assert there.show(third).actor == "ann"
    assert there.pull(ours, update="production").events == 0


def test_one_update_wants_a_registry_to_be_added_to(ours: Registry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"there is no registry here.*without --update"):
        Registry.at(tmp_path / "none").pull(ours, update="production")
    assert not (tmp_path / "none").exists()


def test_approvals_stay_provable_where_they_are_taken_to(people: Governed, tmp_path: Path) -> None:
    people.release(0)
    people.release(1)
    there = Registry.at(f"memory://{uuid4().hex}", clock=people.clock)
    people.registry.push(there)
    assert there.verify().ok
    assert there.admit("production").notes == people.registry.admit("production").notes
    assert there.standing().policy == people.registry.standing().policy


def test_a_revocation_travels_and_the_version_is_not_loaded_there(people: Governed, tmp_path: Path) -> None:
    people.release(0)
    there = Registry.at(tmp_path / "there", clock=people.clock)
    people.registry.push(there)
    people.registry.revoke("production", "leaks", "ben", people.keys["ben"])
    assert there.pull(people.registry).events == 1
    with pytest.raises(RevokedVersion):
        there.admit("production")


def test_a_registry_in_an_object_store_knows_every_verb(people: Governed, deltas: list[Path]) -> None:
    registry = Registry.open(f"memory://{uuid4().hex}", create=True, clock=Clock())
    ids = filled(registry, deltas)
    registry.promote(ids[0], "production", "older", "ben")
    registry.revert("production", "newer again", "ben")
    registry.tag(ids[1], "v1.0", "release", "ann")
    registry.revoke(ids[0], "bad", "ann")
    assert registry.show("production").id == ids[2]
    assert registry.add(Update(skill="skill-0", verdict="passed", actor="zoe"), deltas[0], {"result.json": b'{"n": 0}'}) == ids[0]
    assert registry.attachment(ids[0], "result.json") == b'{"n": 0}'
    assert [update.id for update in registry.log()] == ids[::-1]
    report = registry.verify().demand()
    assert (report.events, report.objects) == (9, 6)
    with pytest.raises(RevokedVersion):
        registry.admit(ids[0])


def test_an_event_that_is_there_is_never_written_over(tmp_path: Path, deltas: list[Path]) -> None:
    for url in places(tmp_path)[1:]:
        one, two = Registry.open(url, create=True), Registry.open(url, create=True)
        ids = filled(one, deltas)
        two.promote(ids[0], "staging", "two's", "ben")
        assert one.promote(ids[1], "staging", "one's", "ann").previous == ids[0]
        assert [move.actor for move in two.history("staging")] == ["ben", "ann"]
        assert two.verify().ok


def test_a_decision_that_was_overtaken_is_taken_again_from_what_is_there_then(tmp_path: Path, deltas: list[Path]) -> None:
    for url in places(tmp_path)[1:]:
        ids = filled(Registry.open(url, create=True), deltas)
        move_at_once(url, ids, writers=4, moves=5)


def test_a_writer_who_is_always_too_late_gives_up(tmp_path: Path, deltas: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.open(f"file://{tmp_path}/shared", create=True)
    ids = filled(registry, deltas)
    monkeypatch.setattr("selectune.registry.store._PAUSE", 0.0)
    monkeypatch.setattr("selectune.registry.shelves.FolderShelf.create", lambda *_: False)
    with pytest.raises(Overtaken, match="event 6 was written by somebody else first"):
        registry.promote(ids[0], "staging", "late", "ann")


def test_a_store_that_writes_over_what_is_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectune.registry.shelves.FolderShelf.create", lambda *_: True)
    with pytest.raises(RegistryError, match="lets an object be written twice"):
        Registry.open(f"file://{tmp_path}/shared", create=True)


def test_an_event_that_the_store_took_without_saying_so_counts_once(
    tmp_path: Path, deltas: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from selectune.registry.shelves import FolderShelf

    registry = Registry.open(f"file://{tmp_path}/shared", create=True)
    ids = filled(registry, deltas)
    create = FolderShelf.create
    # As when the answer to a write is lost and the driver asks a second time.
    monkeypatch.setattr(FolderShelf, "create", lambda self, name, data: create(self, name, data) and create(self, name, data))
    registry.promote(ids[0], "staging", "once", "ann")
    assert len(Registry.open(f"file://{tmp_path}/shared").history("staging")) == 1


def test_events_that_this_process_has_seen_cannot_vanish(tmp_path: Path, deltas: list[Path]) -> None:
    registry = Registry.open(f"file://{tmp_path}/shared", create=True)
    filled(registry, deltas)
    (tmp_path / "shared" / "events" / "00000005.json").unlink()
    with pytest.raises(LogCut, match="5 events were here, 4 are left"):
        registry.log()
    assert len(Registry.open(f"file://{tmp_path}/shared").log()) == 3


def test_a_hole_and_a_half_event_are_told_and_found_by_verify(stranger: Path, tmp_path: Path) -> None:
    url, third = f"file://{stranger}", stranger / "events" / "00000003.json"

    def said(kind: type[Exception], words: str) -> list[str]:
        with pytest.raises(kind, match=words):
            Registry.open(url).log()
        with pytest.raises(kind, match=words):
            Registry.at(tmp_path / "new").pull(Registry.open(url))
        return [problem.subject for problem in Registry.open(url).verify().problems if problem.kind == "event"]

    third.write_bytes(third.read_bytes()[:40])
    assert "3" in said(EventMalformed, "event 3 is unreadable: not strict JSON")
    third.unlink()
    assert "4" in said(LogCut, "event 3 is missing")
    shutil.copy(stranger / "events" / "00000004.json", third)
    assert "4" in said(EventEdited, "event 4 lies where event 3 should be")


def test_files_that_are_no_events_are_left_alone(stranger: Path) -> None:
    for name in (".partial-x-1-2", "notes.txt", "0000006.json", "00000006.json.bak"):
        (stranger / "events" / name).write_bytes(b"{}")
    assert Registry.open(f"file://{stranger}").verify().ok


# What is refused of a stranger's registry, each by its own error. `edit` gets the events as rows and the folder of its objects.
Edit = Callable[[list[Row], Path], None]


def _body(number: int, change: Callable[[Row], Any]) -> Edit:
    """Changes the body of event `number`; an update gets the id that fits it."""

    def edit(rows: list[Row], _: Path) -> None:
        row = rows[number - 1]
        change(row["body"])
        if row["kind"] == "add":
            row["subject"] = digest("update", row["body"])

    return edit


def _add(**event: Any) -> Edit:
    """One event more."""

    def edit(rows: list[Row], _: Path) -> None:
        rows.append({**rows[-1], "name": None, "subject": None, "body": {}, **event})

    return edit


def _object(change: Callable[[Path], Any], field: str = "delta") -> Edit:
    """Changes an object of the first update."""

    def edit(rows: list[Row], objects: Path) -> None:
        body = rows[1]["body"]
        change(objects / (body["delta"] if field == "delta" else body["attachments"]["result.json"]))

    return edit


def _other_delta(rows: list[Row], objects: Path) -> None:
    """The last update claims the first one's delta; both are whole."""
    row = rows[3]
    row["body"]["delta"] = rows[1]["body"]["delta"]
    row["subject"] = digest("update", row["body"])
    rows[4]["subject"] = row["subject"]


def _no_delta(rows: list[Row], objects: Path) -> None:
    """The last update's delta is something else, with the name that fits it."""
    data = b"no delta at all"
    name = hashlib.sha256(data).hexdigest()
    (objects / name).write_bytes(data)
    row = rows[3]
    row["body"]["delta"] = name
    row["subject"] = rows[4]["subject"] = digest("update", row["body"])


REFUSED: dict[str, tuple[Edit, type[Exception], str]] = {
    "a swapped object": (_object(lambda path: path.write_bytes(bytes(path.stat().st_size))), ObjectDamaged, "is damaged"),
    "a swapped report": (_object(lambda path: path.write_bytes(b'{"n": 9}'), "file"), ObjectDamaged, "is damaged"),
    "a longer object": (_object(lambda path: path.write_bytes(path.read_bytes() + b"x")), ObjectDamaged, "is damaged"),
    "a missing object": (_object(Path.unlink), ObjectMissing, "is missing"),
    "a folder as object": (_object(lambda path: (path.unlink(), path.mkdir())), ObjectMissing, "is missing"),
    "another update's delta": (_other_delta, ObjectDamaged, "between other models"),
    "something else as delta": (_no_delta, DeltaError, "no delta file"),
    "an attachment's name that is a path": (
        _body(2, lambda body: body["attachments"].update({"../../x": "0" * 64})),
        EventMalformed,
        "cannot be the name of an attachment",
    ),
    "a digest that is a path": (_body(2, lambda body: body.update(delta="../../x")), EventMalformed, "no sha256"),
    "an attachment's digest that is a path": (
        _body(2, lambda body: body["attachments"].update({"result.json": "../../../etc/passwd"})),
        EventMalformed,
        "no sha256",
    ),
    "a name that is a path": (_add(kind="tag", name="../../x", subject="0" * 64, body={"reason": ""}), EventMalformed, "cannot be a name"),
    "a name in markup": (_add(kind="tag", name="<b>", subject="0" * 64, body={"reason": ""}), EventMalformed, "cannot be a name"),
    "a name where none belongs": (_add(kind="verify", name="production"), EventMalformed, "has the name 'production'"),
    "a subject that is a path": (_add(kind="retire", subject="../../x", body={"reason": ""}), EventMalformed, "no update's id"),
    "a field too many": (_body(5, lambda body: body.update(extra=1)), EventMalformed, "extra: Extra inputs are not permitted"),
    "a field too few": (_body(5, lambda body: body.pop("reason")), EventMalformed, "reason: Field required"),
    "a number for a text": (_body(5, lambda body: body.update(reason=7)), EventMalformed, "reason: Input should be a valid string"),
    "an update with a field too many": (_body(2, lambda body: body.update(pickle="x")), EventMalformed, "unknown or missing fields"),
    "a time that is none": (_add(kind="verify", utc="tomorrow"), EventMalformed, "utc: String should match pattern"),
    "an actor without end": (_add(kind="verify", actor="x" * 1001), EventMalformed, "at most 1000 characters"),
    "a format of the future": (_body(1, lambda body: body.update(format=2)), EventMalformed, "format: Input should be 1"),
    "a second beginning": (_add(kind="create", body={"format": 1}), EventMalformed, "begins with one event"),
    "an unknown kind": (_add(kind="execute", body={"command": "x"}), UnknownKind, "'execute' is not known"),
    "a kind in capitals": (_add(kind="ADD"), EventMalformed, "kind: String should match pattern"),
    "a name on nothing": (
        _add(kind="promote", name="staging", subject="0" * 64, body={"previous": None, "reason": "", "verdict": ""}),
        VerifyFailed,
        "points to an unknown update",
    ),
    "a move from elsewhere": (_body(5, lambda body: body.update(previous="0" * 64)), VerifyFailed, "does not follow the move before"),
    "an id that fits nothing": (lambda rows, _: rows[1].update(subject="0" * 64), VerifyFailed, "its id does not fit its text"),
    "an update twice": (lambda rows, _: rows.append(dict(rows[3])), VerifyFailed, "was added twice"),
    "a parent that is unknown": (lambda rows, _: rows.pop(1), VerifyFailed, "was not added before it"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_stranger_made_up_is_refused_and_nothing_is_taken(what: str, stranger: Path, ours: Registry, tmp_path: Path) -> None:
    edit, kind, words = REFUSED[what]
    poison(stranger, lambda rows: edit(rows, stranger / "blobs" / "sha256"))
    there = Registry.open(f"file://{stranger}")
    new = Registry.at(tmp_path / "new")
    with pytest.raises(kind, match=words) as caught:
        new.pull(there)
    assert type(caught.value) is kind
    assert not (tmp_path / "new" / "registry.sqlite").exists()
    before, names = ours.head(), set(_stored(ours))
    with pytest.raises((kind, HistoriesDiffer)) if "object" not in what and "report" not in what else _nothing():
        ours.pull(there)
    assert (ours.head(), set(_stored(ours))) == (before, names)
    assert not (tmp_path / "x").exists()


class _nothing:  # noqa: N801
    """What we have is not fetched: a stranger's damage to it does not reach us."""

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


def _stored(registry: Registry) -> list[str]:
    return os.listdir(Path(registry.where) / "blobs" / "sha256")


def test_an_edited_event_is_refused(stranger: Path, tmp_path: Path) -> None:
    poison(stranger, lambda rows: rows[4].update(actor="mallory"), chained=False)
    with pytest.raises(EventEdited, match="event 5 was edited: its hash does not fit its text"):
        Registry.at(tmp_path / "new").pull(Registry.open(f"file://{stranger}"))
    poison(stranger, lambda rows: rows[4].update(prev="0" * 64), chained=False)
    with pytest.raises(EventEdited, match="event 5 does not follow the event before it"):
        Registry.at(tmp_path / "new").pull(Registry.open(f"file://{stranger}"))


def test_an_oversize_object_is_refused_before_it_is_fetched(stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectune.registry.carrying.OBJECT_LIMIT", 100)
    with pytest.raises(Oversize, match=r"has \d+ bytes, over the limit of 100"):
        Registry.at(tmp_path / "new").pull(Registry.open(f"file://{stranger}"))
    assert not (tmp_path / "new").exists()


def test_a_single_fetch_has_the_same_limit(ours: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{uuid4().hex}"
    ours.push(Registry.at(url))
    monkeypatch.setattr("selectune.registry.remote.OBJECT_LIMIT", 100)
    with pytest.raises(Oversize):
        Registry.open(url).delta("production")


def test_an_oversize_event_and_a_log_without_end_are_refused(stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Registry.open(f"file://{stranger}")
    monkeypatch.setattr("selectune.registry.trusting.EVENTS_LIMIT", 4)
    with pytest.raises(Oversize, match="5 events, over the limit of 4"):
        Registry.at(tmp_path / "new").pull(there)
    monkeypatch.setattr("selectune.registry.objects.EVENT_LIMIT", 1000)
    (stranger / "events" / "00000006.json").write_bytes(b" " * 1001)
    with pytest.raises(Oversize, match="an event of 1001 bytes"):
        Registry.open(f"file://{stranger}")


def test_a_cut_log_is_refused_by_the_head_that_the_receiver_keeps(people: Governed, keys: dict[str, PrivateKey], tmp_path: Path) -> None:
    place = f"file://{tmp_path}/remote"
    people.registry.push(Registry.at(place, clock=people.clock))
    witness = Witness(place=str(tmp_path / "head"), key=keys["ada"])
    there = Registry.at(tmp_path / "here", clock=people.clock, witness=witness)
    there.pull(Registry.open(place))
    kept = witness.kept()
    assert kept is not None
    assert kept.count == people.registry.head().count
    shutil.rmtree(tmp_path / "here")
    shutil.copytree(tmp_path / "remote", tmp_path / "whole")
    (tmp_path / "remote" / "events" / "00000005.json").unlink()
    with pytest.raises(LogCut, match=r"it has 4 events, and the head that is kept says 5"):
        Registry.at(tmp_path / "here", clock=people.clock, witness=witness).pull(Registry.open(place))
    poison(tmp_path / "whole", lambda rows: rows[2].update(actor="mallory"))
    with pytest.raises(LogCut, match="event 5 is another than the head"):
        Registry.at(tmp_path / "here", clock=people.clock, witness=witness).pull(Registry.open(f"file://{tmp_path}/whole"))
    poison(tmp_path / "whole", lambda rows: rows[0].update(actor="mallory"))
    with pytest.raises(LogCut, match="of another registry"):
        Registry.at(tmp_path / "here", clock=people.clock, witness=witness).pull(Registry.open(f"file://{tmp_path}/whole"))
    assert not (tmp_path / "here").exists()


FORGED: dict[str, tuple[Callable[[list[Row]], Any], type[Exception]]] = {
    "an approval of other bytes": (lambda rows: _signed(rows, "approve").update(payload=_flipped(_signed(rows, "approve"))), BadSignature),
    "an approval that was taken out": (lambda rows: rows.pop(_at(rows, "approve")), NotApproved),
    "a policy of one's own": (lambda rows: rows.insert(_at(rows, "approve"), dict(rows[_at(rows, "policy")])), PolicyRefused),
}


def _at(rows: list[Row], kind: str) -> int:
    return max(number for number, row in enumerate(rows) if row["kind"] == kind)


def _signed(rows: list[Row], kind: str) -> Row:
    signed: Row = rows[_at(rows, kind)]["body"]["signed"]
    return signed


def _flipped(signed: Row) -> str:
    import base64

    said = base64.b64decode(signed["payload"]).replace(b"Ben Boss", b"Cy Second")
    return base64.b64encode(said).decode()


@pytest.mark.parametrize("what", FORGED)
def test_what_people_signed_is_checked_as_verify_does(what: str, people: Governed, tmp_path: Path) -> None:
    people.release(0)
    place = tmp_path / "remote"
    people.registry.push(Registry.at(f"file://{place}", clock=people.clock))
    edit, kind = FORGED[what]
    poison(place, edit)
    with pytest.raises(kind) as caught:
        Registry.at(tmp_path / "new", clock=people.clock).pull(Registry.open(f"file://{place}"))
    assert type(caught.value) is kind
    assert not (tmp_path / "new").exists()


def test_a_name_that_went_back_to_a_revoked_version_is_refused(people: Governed, tmp_path: Path) -> None:
    people.release(0)
    people.registry.revoke(people.ids[0], "leaks", "ben", people.keys["ben"])
    place = tmp_path / "remote"
    people.registry.push(Registry.at(f"file://{place}", clock=people.clock))

    def downgrade(rows: list[Row]) -> None:
        move = dict(rows[_at(rows, "promote")])
        rows.append({**move, "utc": rows[-1]["utc"], "kind": "promote", "body": {**move["body"], "previous": people.ids[0]}})

    poison(place, downgrade)
    with pytest.raises(RevokedVersion):
        Registry.at(tmp_path / "new", clock=people.clock).pull(Registry.open(f"file://{place}"))


def test_a_revoked_or_collected_update_is_not_taken_alone(ours: Registry, deltas: list[Path], tmp_path: Path) -> None:
    third, second, first = (update.id for update in ours.log())
    here = Registry.open(tmp_path / "here", create=True)
    here.add(Update(skill="skill-0", verdict="passed", actor="ann"), deltas[0], {"result.json": b'{"n": 0}'})
    here.revoke(first, "known to be bad", "ben")
    with pytest.raises(RevokedVersion, match="known to be bad"):
        here.pull(ours, update=second)
    ours.revoke(third, "leaks", "ann")
    with pytest.raises(RevokedVersion, match="leaks"):
        Registry.open(tmp_path / "other", create=True).pull(ours, update=third)
    ours._log.append(
        {**ours._event("gc", "ann"), "body": {"updates": [second], "objects": [], "leftovers": [], "keep_days": 0, "candidate_days": 0}}
    )
    with pytest.raises(Collected):
        Registry.open(tmp_path / "other").pull(ours, update=second)


def test_a_log_from_the_future_is_refused(people: Governed, tmp_path: Path) -> None:
    slow = Clock()
    slow.now = slow.now.replace(year=2025)
    with pytest.raises(ClockApart):
        Registry.at(tmp_path / "new", clock=slow).pull(people.registry)


def test_a_delta_that_is_here_already_is_checked_against_a_new_update(ours: Registry, stranger: Path) -> None:
    def claim(rows: list[Row]) -> None:
        body = {**rows[3]["body"], "delta": rows[1]["body"]["delta"], "skill": "claims"}
        rows.append({**rows[3], "subject": digest("update", body), "body": body})

    poison(stranger, claim)
    before = ours.head()
    with pytest.raises(ObjectDamaged, match="between other models"):
        ours.pull(Registry.open(f"file://{stranger}"))
    assert ours.head() == before


def test_a_transfer_that_was_interrupted_leaves_no_event_and_sends_nothing_twice(
    ours: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selectune.registry.blobs import FolderBlobs

    put, seen = FolderBlobs.put, []

    def interrupted(self: FolderBlobs, source: Path | bytes, **more: Any) -> str:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(source)
        return put(self, source, **more)

    monkeypatch.setattr("selectune.registry.carrying._THREADS", 1)
    monkeypatch.setattr(FolderBlobs, "put", interrupted)
    there = Registry.at(tmp_path / "there")
    with pytest.raises(KeyboardInterrupt):
        ours.push(there)
    assert not (tmp_path / "there" / "registry.sqlite").exists()
    monkeypatch.setattr(FolderBlobs, "put", put)
    done = ours.push(Registry.at(tmp_path / "there"))
    assert (done.objects, done.skipped, done.events) == (3, 3, 5)


def test_places_that_cannot_be_are_told(tmp_path: Path) -> None:
    for url, kind, words in (
        ("gs://bucket/x", NotYet, "a registry at gs://"),
        ("s3://key:secret@bucket/x", RegistryError, r"s3://bucket/x.* is no plain address"),
        ("memory://a/../b", RegistryError, "no plain address"),
        ("memory://", RegistryError, "names no bucket|no URL"),
        (f"memory://{uuid4().hex}", RegistryError, "this is no registry"),
        (f"file://{tmp_path}/none", RegistryError, "this is no registry"),
    ):
        with pytest.raises(kind, match=words):
            Registry.open(url)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot be (used|made)"):
        Registry.open(f"file://{tmp_path}/file", create=True)


def test_a_missing_driver_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def gone(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", gone)
    with pytest.raises(MissingPackage, match=r"pip install 'selectune\[s3\]'"):
        Registry.open("s3://bucket/x")


def test_an_object_fetched_is_kept_and_hashed_again_when_it_is_opened(deltas: list[Path]) -> None:
    blobs = RemoteBlobs(f"memory://{uuid4().hex}")
    name = blobs.put(deltas[0])
    with blobs.open(name) as file:
        assert file.fileno() > 0
        assert file.read() == deltas[0].read_bytes()
    blobs.path(name).write_bytes(b"somebody was here")
    with pytest.raises(ObjectDamaged), blobs.open(name):
        pass
    assert blobs.read(name) == deltas[0].read_bytes()
    blobs.delete(name)
    with pytest.raises(ObjectMissing):
        blobs.read(name)
    with pytest.raises(RegistryError, match="no sha256"):
        blobs.has("../../x")
    assert blobs.fault("../../x") == "missing"


def test_room_is_made_for_what_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = RemoteBlobs(f"memory://{uuid4().hex}")
    names = [blobs.put(bytes([number]) * 1000) for number in range(4)]
    monkeypatch.setattr("selectune.registry.remote._CACHE", 2500)
    for name in names:
        assert len(blobs.read(name)) == 1000
    folder = blobs.path(names[-1]).parent
    assert sum(path.stat().st_size for path in folder.iterdir() if path.name[-64:] in names) <= 2500
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1000, 999, 1))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="does not fit"):
        blobs.read(names[0])


def test_every_kind_that_is_written_is_known() -> None:
    from selectune.registry.events import Event

    said = (Event.__doc__ or "") + (Path(__file__).parents[1] / "src/selectune/registry/events.py").read_text()
    line = next(line for line in said.splitlines() if line.strip().startswith('"""create, add'))
    assert set(line.strip().strip('"').rstrip(".").replace(" or ", ", ").split(", ")) == EVENTS.keys()


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def test_push_and_pull_on_the_command_line(ours: Registry, tmp_path: Path) -> None:
    remote = f"file://{tmp_path}/remote"
    assert "would travel: 6 objects" in call("push", remote, "--registry", ours.where, "--dry-run")
    document = json.loads(call("push", remote, "--registry", ours.where, "--json"))
    assert (document["objects"], document["events"], document["done"], len(document["updates"])) == (6, 5, True, 3)
    assert "0 objects, 0 bytes; 6 there already; 0 events" in call("push", remote, "--registry", ours.where)
    assert "5 events" in call("pull", remote, "--registry", tmp_path / "new")
    assert Registry.open(tmp_path / "new").head() == ours.head()
    ours.promote(ours.log()[-1].id, "staging", "x", "ann")
    assert "1 events of" in call("pull", remote, "--registry", ours.where)
    Registry.open(tmp_path / "apart", create=True)
    failed = json.loads(call("pull", remote, "--registry", tmp_path / "apart", "--json", code=2))
    assert failed["error"]["kind"] == "HistoriesDiffer"
    assert "new there: update" in call("pull", remote, "--registry", tmp_path / "apart", "--update", "production")
    call("pull", tmp_path / "nowhere", "--registry", tmp_path / "apart", code=2)


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    yield
    import fsspec

    fsspec.filesystem("memory").store.clear()


def test_a_delta_from_elsewhere_is_the_very_delta(ours: Registry, deltas: list[Path]) -> None:
    there = Registry.at(f"memory://{uuid4().hex}")
    ours.push(there)
    assert there.delta("production") == Delta.load(deltas[2])
