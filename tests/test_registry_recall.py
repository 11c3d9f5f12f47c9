"""A decision reads of the log what is new; what it is decided on is what the whole log says, and a log that was changed is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delta_fixtures import quick_disk
from governance_fixtures import Clock, Governed, governed, policy_of, rewrite
from selectune.errors import InputError, LogCut, RegistryError, SelectuneError, VerifyFailed
from selectune.governance import PrivateKey, Witness, approve, revoke, seal
from selectune.hashing import canonical, digest
from selectune.registry import Look, Registry, Update
from selectune.registry import events as log_events
from selectune.registry.checking import Chain, chained, check_chain
from selectune.registry.events import Event, Text, extended
from selectune.registry.folding import Folded
from selectune.registry.lineage import moves, pointers, stacks, updates
from selectune.registry.looks import looks
from selectune.registry.marks import tags
from selectune.registry.objects import ObjectLog, as_object
from selectune.registry.places import locate
from selectune.registry.shelves import FolderShelf, RemoteShelf
from selectune.registry.signatures import target_of
from selectune.registry.snapshots import snapshots
from selectune.registry.standing import Standing, standing
from selectune.registry.tally import Tally, tallied

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
UTC_TEXT = "2026-11-24T12:00:00Z"
DATABASES = ("sqlite", "postgresql")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="ours")
def _ours(place: str, keys: dict[str, PrivateKey], deltas: list[Path]) -> Governed:
    return governed(place, keys, deltas)


# What a log adds up to, event by event and at once.


def hexed(number: int) -> str:
    return f"{number:064x}"


def sayings(keys: dict[str, PrivateKey]) -> list[dict[str, Any]]:
    """Things that can happen to three updates and two names, in any order, some of them forbidden."""
    whole = [Update(base=hexed(n), child=hexed(n + 1), delta=hexed(n + 9), skill=f"s{n}", verdict="passed") for n in range(3)]
    made = [replace(one, id=one.computed_id()) for one in whole]
    ids = [one.id for one in made]
    first = policy_of(keys)
    second = policy_of(keys, first, revoked=[keys["ben"].public.id], signed_moves=True)

    def said(kind: str, subject: str | None = None, name: str | None = None, **body: Any) -> dict[str, Any]:
        return {"utc": UTC_TEXT, "actor": "ann", "kind": kind, "name": name, "subject": subject, "body": body}

    def signed(kind: str, envelope: Any, subject: str | None = None) -> dict[str, Any]:
        return said(kind, subject, signed=envelope.to_json())

    found = [said("add", one.id, **one.body()) for one in made]
    found += [said(kind, id_, name, previous=None, reason="r") for kind in ("promote", "revert") for id_ in ids[:2] for name in ("a", "b")]
    found += [said("tag", id_, name, reason="") for id_ in ids[:2] for name in ("v1", "v2")]
    found += [said("retire", ids[0], reason="old"), said("retire", ids[0], reason="older")]
    found += [said("hold", ids[1], until=day, reason="r") for day in ("2027-01-01", "2028-01-01")] + [said("release", ids[1], reason="r")]
    found += [said("gc", updates=[ids[0]], objects=[], leftovers=[]), said("gc", updates=ids[1:], objects=[], leftovers=[])]
    found += [said("gc", finished=[2]), said("snapshot", ids[0], snapshot=hexed(77)), said("snapshot", ids[1], snapshot=hexed(78))]
    found += [said("look", hexed(n), sets={"t": "d"}, alpha=0.01, total=0.05, recipe="") for n in range(2)]
    for policy, who in ((first, "ada"), (second, "ada"), (second, "ben")):
        found.append(signed("policy", seal(policy, keys[who]), policy.digest))
    for one in made[:2]:
        for who, role in (("ann", "author"), ("ben", "approver"), ("cy", "approver"), ("mallory", "approver")):
            found.append(signed("approve", approve(first, keys[who], (role, "a"), target_of(one), NOW), one.id))
        found.append(signed("revoke", revoke(first, keys["ben"], "broken", target_of(one), NOW), one.id))
    return [*found, said("revoke", ids[2], reason="unsigned"), said("approve", hexed(5), signed={}), said("verify")]


def told(found: Standing) -> dict[str, Any]:
    """A standing as values that can be compared; errors are compared by their words."""
    return {
        "policies": [(seq, policy.digest) for seq, policy in found.policies],
        "given": {id_: [(one.seq, one.to_json()) for one in ours] for id_, ours in found.given.items()},
        "forged": found.forged,
        "moved": {name: one.seq for name, one in found.moved.items()},
        "faults": [(one.seq, one.kind, type(one.error), str(one.error)) for one in found.faults],
        **{name: dict(getattr(found, name)) for name in ("revoked", "retired", "held", "collected")},
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_tally_that_grew_is_what_the_whole_log_adds_up_to(data: st.DataObject, keys: dict[str, PrivateKey]) -> None:
    everything = sayings(keys)
    chosen = data.draw(st.lists(st.integers(0, len(everything) - 1), max_size=30))
    log = extended([], [everything[number] for number in chosen])
    ends = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=5)))
    lazy = [replace(event, body=Text(event.seq, canonical(dict(event.body)).decode())) for event in log]
    kept, looked = Folded(Tally(), tallied), Folded(list[Look](), looks)
    for end in [*ends, len(log)]:
        sofar, tally = log[:end], kept.of(lazy[:end])
        found = updates(sofar)
        assert list(tally.updates.values()) == found
        assert told(tally.standing) == told(standing(sofar, found))
        assert (dict(tally.names), dict(tally.tags)) == (pointers(sofar), tags(sofar))
        assert dict(tally.snapshots) == snapshots(sofar)
        assert dict(tally.stacks) == {name: list(stacks(moves(sofar, name)))[-1] for name in pointers(sofar)}
        assert looked.of(lazy[:end]) == looks(sofar)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_chain_that_grew_has_the_problems_of_the_whole_chain(data: st.DataObject, keys: dict[str, PrivateKey]) -> None:
    everything = sayings(keys)
    log = extended([], [everything[n] for n in data.draw(st.lists(st.integers(0, len(everything) - 1), min_size=1, max_size=12))])
    changes: list[dict[str, Any]] = [{}, {"actor": "eve"}, {"body": {"x": 1}}, {"hash": hexed(1)}, {"seq": 99}, {"prev": hexed(2)}]
    log = [replace(event, **data.draw(st.sampled_from(changes))) for event in log]
    lazy = [replace(event, body=Text(event.seq, canonical(dict(event.body)).decode())) for event in log]
    kept = Folded(Chain(), chained)
    kept.of(lazy[: data.draw(st.integers(0, len(log)))])
    assert list(kept.of(lazy).problems) == check_chain(log, None)


WORDS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
JSON = st.recursive(
    st.one_of(WORDS, st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    name=WORDS, subject=WORDS, actor=st.text(st.characters(exclude_categories=["Cs"])), body=st.dictionaries(st.text('aé"\\\n\x7f'), JSON)
)
def test_the_hash_of_an_events_text_is_the_hash_of_the_event(name: str, subject: str, actor: str, body: dict[str, Any]) -> None:
    made = Event(seq=2**53 - 1, utc=UTC_TEXT, actor=actor, kind="verify", name=name, subject=subject, body=body, prev=hexed(3), hash="")
    whole = replace(made, hash=made.computed_hash())
    asked: list[str] = []

    class Watched(Text):
        def read(self) -> dict[str, Any]:
            asked.append(self.text)
            return super().read()

    text = replace(whole, body=Watched(1, canonical(body).decode()))
    assert text.computed_hash() == whole.hash
    assert not asked, "the text was enough"
    assert replace(text, actor=actor + "x").computed_hash() == replace(made, actor=actor + "x").computed_hash() != whole.hash
    spaced = json.dumps(body, indent=1, ensure_ascii=False)
    assert replace(whole, body=Text(1, spaced)).computed_hash() == whole.hash, "as in a log whose texts were written with spaces"


def test_a_value_is_made_anew_of_a_log_that_is_shorter_or_another() -> None:
    log = extended([], [{"utc": UTC_TEXT, "actor": "a", "kind": "verify", "name": None, "subject": str(n), "body": {}} for n in range(4)])
    folded: list[list[int]] = []

    def count(new: Sequence[Event], before: int) -> int:
        folded.append([event.seq for event in new])
        return before + len(new)

    kept = Folded(0, count)
    assert [kept.of(log[:2]), kept.of(log), kept.of(log)] == [2, 4, 4]
    assert folded == [[1, 2], [3, 4]]
    assert kept.of(log[:3]) == 3
    assert kept.of([*log[:2], replace(log[2])]) == 3
    assert folded[2:] == [[1, 2, 3], [1, 2, 3]]


def test_what_cannot_be_folded_leaves_the_value_as_it_was() -> None:
    log = extended([], [{"utc": UTC_TEXT, "actor": "a", "kind": "look", "name": None, "subject": None, "body": {}}])
    kept = Folded(list[Look](), looks)
    assert kept.of([]) == []
    for _ in range(2):
        with pytest.raises(RegistryError, match="event 1 is no look"):
            kept.of(log)


# Logs of every kind.


def said(subject: str, kind: str = "verify", **body: Any) -> dict[str, Any]:
    return {"utc": UTC_TEXT, "actor": "a", "kind": kind, "name": None, "subject": subject, "body": body}


def new_log(place: str) -> Any:
    """A log that is not there yet."""
    found = locate(place, create=True)
    found.blobs.create()
    return found.log


def test_a_log_is_recalled_as_it_is_read_with_what_others_have_appended(place: str) -> None:
    ours, theirs = new_log(place), new_log(place)
    ours.create(said("1"))
    for number in range(2, 6):
        (ours, theirs)[number % 2].append(said(str(number), list=["é", 1.5]))
        assert ours.recall() == ours.read() == theirs.recall()
        assert [event.subject for event in ours.recall()] == [str(n) for n in range(1, number + 1)]


def test_a_list_that_was_recalled_is_the_callers_own(place: str) -> None:
    log = new_log(place)
    log.create(said("1"))
    log.append(said("2", list=[1]))
    recalled = log.recall()
    assert check_chain(recalled, None) == []
    recalled.clear()
    assert [event.subject for event in log.recall()] == ["1", "2"]


@pytest.mark.parametrize("kind", DATABASES, indirect=True)
def test_only_the_last_row_and_those_after_it_are_read_again(kind: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = new_log(place)
    log.create(said("1"))
    for number in range(2, 6):
        log.append(said(str(number)))
    first: list[int] = []
    later = log_events._later
    monkeypatch.setattr(log_events, "_later", lambda connection, start: first.append(start) or later(connection, start))
    known = log.recall()
    with log.deciding() as (found, connection):
        log.append_to(connection, said("6"))
    assert first == [1, 5]
    assert all(one is other for one, other in zip(found, known, strict=True))
    assert [event.subject for event in log.recall()][-1] == "6"
    log.recall()
    assert first == [1, 5, 5, 6], "an append is no change"


@pytest.mark.parametrize("kind", ["file"], indirect=True)
def test_only_the_last_object_and_those_after_it_are_fetched_again(kind: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = new_log(place)
    log.create(said("1"))
    for number in range(2, 5):
        log.append(said(str(number)))
    log.recall()
    asked: list[str] = []
    get = FolderShelf.get
    monkeypatch.setattr(FolderShelf, "get", lambda self, name, limit: asked.append(name) or get(self, name, limit))
    monkeypatch.setattr(FolderShelf, "sizes", lambda self: pytest.fail("the folder was listed"))
    log.append(said("5"))
    assert asked == ["00000004.json", "00000005.json"]


@pytest.mark.parametrize("kind", DATABASES, indirect=True)
def test_a_body_that_is_no_object_is_refused_where_it_is_looked_at(kind: str, place: str) -> None:
    log = new_log(place)
    log.create(said("1"))
    for number, text in enumerate(("[]", "{", '{"a":1,"a":2}'), start=2):
        with log.database.transaction(writing=True) as connection:
            last = log.recall()[-1]
            row = {**said(str(number)), "body": text, "seq": number, "prev": last.hash, "hash": hexed(number)}
            connection.execute(log_events.events.insert(), row)
        found = log.recall()[-1]
        with pytest.raises(RegistryError, match=f"event {number} is unreadable"):
            found.body.get("x")
        with pytest.raises(RegistryError, match="event 2 is unreadable"):
            check_chain(log.recall(), None)
        with pytest.raises(InputError):
            log.read()


# Decisions.


def change(place: str, seq: int, edit: Callable[[dict[str, Any]], None] | None) -> None:
    """Edits an event, or removes it, as an administrator of the place can; hashes stay as they were."""
    log: Any = locate(place, create=False).log
    if isinstance(log, ObjectLog):
        _change_object(log, seq, edit)
        return
    with log.database.transaction(writing=True) as connection:
        table = " ON events" if connection.dialect.name == "postgresql" else ""
        names = ["events_no_change"] if table else ["events_no_update", "events_no_delete"]
        for name in names:
            connection.exec_driver_sql(f"DROP TRIGGER {name}{table}")
        row = log_events.events.c.seq == seq
        if edit is None:
            connection.execute(log_events.events.delete().where(row))
        else:
            found = dict(connection.execute(log_events.events.select().where(row)).mappings().one())
            body = json.loads(found["body"])
            edit(body)
            connection.execute(log_events.events.update().where(row).values(body=canonical(body).decode()))


def _change_object(log: ObjectLog, seq: int, edit: Callable[[dict[str, Any]], None] | None) -> None:
    event = log.read()[seq - 1]
    body = json.loads(json.dumps(dict(event.body)))
    if edit is not None:
        edit(body)
    name, data = as_object(replace(event, body=body))
    shelf = log._shelf
    if isinstance(shelf, FolderShelf):
        path = shelf.folder / name
        path.unlink() if edit is None else path.write_bytes(data)
    else:
        assert isinstance(shelf, RemoteShelf)
        shelf.fs.rm_file(shelf.path(name)) if edit is None else shelf.fs.pipe_file(shelf.path(name), data)


def pass_it(body: dict[str, Any]) -> None:
    body["verdict"] = "passed, really"


@pytest.mark.parametrize("kind", DATABASES, indirect=True)
def test_an_earlier_event_that_was_edited_between_two_decisions_is_refused(kind: str, place: str, ours: Governed) -> None:
    ours.submit(0)
    change(place, 2, pass_it)
    with pytest.raises(VerifyFailed, match="event 2: was edited"):
        ours.approve(0)
    assert not ours.registry.verify().ok


@pytest.mark.parametrize("kind", ["file", "s3"], indirect=True)
def test_an_earlier_object_that_was_edited_changes_no_decision_and_verify_finds_it(kind: str, place: str, ours: Governed) -> None:
    ours.submit(2)
    ours.approve(2)
    change(place, 4, pass_it)
    with pytest.raises(SelectuneError, match="the gate's word is failed"):
        ours.promote(2)
    assert any("was edited" in problem.text for problem in ours.registry.verify().problems)
    with pytest.raises(VerifyFailed, match="event 4: was edited"):
        Registry.open(place, clock=ours.clock).promote(ours.ids[0], "other", "because", "ann")


def test_a_log_that_was_cut_between_two_decisions_is_refused(place: str, ours: Governed) -> None:
    ours.submit(0)
    ours.registry.looks()
    count = len(ours.registry._log.recall())
    change(place, count, None)
    for _ in range(2):
        with pytest.raises(LogCut, match=f"the log was cut: event {count}"):
            ours.approve(0)
    assert len(Registry.open(place)._log.read()) == count - 1, "nothing was appended"


def test_a_last_event_that_was_edited_between_two_decisions_is_refused(place: str, ours: Governed) -> None:
    count = len(ours.registry._log.recall())
    change(place, count, lambda body: body.update(more="x"))
    with pytest.raises(VerifyFailed, match=f"event {count}"):
        ours.registry.tag(ours.ids[0], "v1", "because", "ann")


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_log_whose_hashes_were_all_made_anew_is_refused_by_who_has_read_it_before(kind: str, ours: Governed) -> None:
    ours.submit(0)
    rewrite(ours.registry, lambda rows: rows[1].update(actor="mallory"))
    with pytest.raises(LogCut, match="the log was rewritten: event"):
        ours.approve(0)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_row_that_was_put_in_the_place_of_an_earlier_one_is_refused(kind: str, ours: Governed) -> None:
    ours.submit(0)
    log: Any = Registry.open(ours.registry.where)._log
    last = log.recall()[-1]
    other = log.recall()[1]
    with log.database.transaction(writing=True) as connection:
        connection.exec_driver_sql("PRAGMA recursive_triggers = OFF")
        said_ = (
            "INSERT OR REPLACE INTO events VALUES (?, ?, 'eve', 'verify', NULL, NULL, '{}', ?, ?)",
            (last.seq + 1, UTC_TEXT, last.hash, other.hash),
        )
        connection.exec_driver_sql(*said_)
    with pytest.raises(VerifyFailed, match="number 2 was expected"):
        ours.promote(1, "other")


def test_what_another_process_did_counts_in_the_next_decision(place: str, ours: Governed) -> None:
    ours.release(0)
    other = Registry.open(place, clock=ours.clock)
    other.retire(ours.ids[1], "broken", "ben")
    with pytest.raises(RegistryError, match="was retired by ben"):
        ours.promote(1, "other")
    other.promote(ours.ids[2], "beside", "because", "ann")
    with pytest.raises(RegistryError, match="beside is a name that moves"):
        ours.registry.tag(ours.ids[0], "beside")
    assert [move.name for move in ours.registry.history()] == ["production", "beside"]


SCRIPT = """
import sys
from selectune.registry import Registry
Registry.open(sys.argv[1]).promote(sys.argv[2], "beside", "because", "somebody else")
"""


@pytest.mark.parametrize("kind", ["sqlite", "file"], indirect=True)
def test_a_program_of_its_own_appends_between_two_decisions(kind: str, place: str, deltas: list[Path]) -> None:
    registry = Registry.open(place, create=True)
    first = registry.add(Update(skill="s"), deltas[0])
    registry.tag(first, "v1")
    subprocess.run([sys.executable, "-c", SCRIPT, place, first], check=True)
    with pytest.raises(RegistryError, match="beside already points to"):
        registry.promote(first, "beside", "because", "ann")


def test_what_a_decision_returns_is_the_callers_own(place: str, deltas: list[Path]) -> None:
    registry = Registry.open(place, create=True)
    first = registry.add(Update(skill="s", metrics={"accuracy": [1]}), deltas[0])
    given_ = registry.tag(first, "v1")
    given_.metrics["accuracy"].append("mine")
    assert registry.tag(first, "v2").metrics == {"accuracy": [1]}


def test_threads_that_decide_at_once_lose_nothing(place: str, deltas: list[Path]) -> None:
    registry = Registry.open(place, create=True)
    first = registry.add(Update(skill="s"), deltas[0])
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(3):
                registry.promote(first, f"n{number}-{step}", "because", "ann")
        except BaseException as error:  # noqa: BLE001  # a thread's error must not be lost
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not faults
    assert len(registry.names()) == 12
    assert registry.verify().ok
    assert check_chain(registry._log.recall(), None) == []


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_head_is_kept_of_what_was_appended_and_a_cut_before_it_is_found(
    kind: str, place: str, ours: Governed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = str(tmp_path / "head")
    watched = ours.witnessed(head)
    watched.tag(ours.ids[0], "v1", "because", "ann")
    monkeypatch.setattr(watched._log, "read", lambda **_: pytest.fail("the whole log was read"))
    watched.tag(ours.ids[0], "v2", "because", "ann")
    kept = Witness(place=head, key=ours.keys["ada"]).kept()
    assert kept is not None
    assert (kept.count, kept.hash) == (ours.registry.head().count, ours.registry.head().hash)
    change(place, kept.count, None)
    with pytest.raises(VerifyFailed, match="the log was cut"):
        ours.witnessed(head).tag(ours.ids[0], "v3", "because", "ann")


def test_a_policy_that_another_process_put_in_force_counts(place: str, ours: Governed) -> None:
    ours.submit(0)
    ours.approve(0)
    Registry.open(place, clock=Clock()).set_policy(
        seal(policy_of(ours.keys, ours.policy, revoked=[ours.keys["ben"].public.id]), ours.keys["ada"])
    )
    with pytest.raises(SelectuneError, match="was revoked"):
        ours.promote(0)


def test_the_same_statement_has_the_same_digest_by_value_and_by_text() -> None:
    assert digest("event", {"b": 1, "a": [1.0]}) == log_events.text_digest("event", b'{"a":[1],"b":1}')
