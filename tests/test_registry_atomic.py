"""Kills: a line of updates comes in whole or not at all, from a file and from another registry; and what a `gc` began is ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from delta_fixtures import quick_disk
from governance_fixtures import Clock, Governed, governed
from selectune.faults import KILL_AT, passed
from selectune.governance import PrivateKey, seal
from selectune.registry import Registry, Update
from selectune.registry.lineage import collected, condemned

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
POINTS = ("event.begun:1", "event.appended:1", "event.appended:2", "event.appended:4", "event.committed:1")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="ours")
def _ours(tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path]) -> Governed:
    made = governed(tmp_path / "ours", keys, deltas)
    made.release(1)
    return made


def killed(work: Callable[[], object], at: str) -> int:
    """How a fork of this process ends that is killed there while it does that."""
    child = os.fork()
    if child == 0:
        try:
            os.environ[KILL_AT] = at
            passed.clear()
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said(registry: Registry) -> list[tuple[str, str | None]]:
    return [(event.kind, event.subject) for event in registry._log.read()]


def arrived(ours: Governed) -> list[tuple[str, str | None]]:
    """What an import of `production` appends."""
    return [("add", ours.ids[0]), ("add", ours.ids[1]), ("approve", ours.ids[1]), ("approve", ours.ids[1]), ("import", ours.ids[1])]


def receiver(place: str, ours: Governed) -> Registry:
    """A registry with the same policy, so that approvals count there."""
    registry = Registry.open(place, create=True, clock=Clock())
    registry.set_policy(seal(ours.policy, ours.keys["ada"]))
    return registry


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("at", POINTS)
def test_an_import_that_is_killed_takes_all_or_nothing_and_a_second_one_ends_whole(
    at: str, place: str, ours: Governed, tmp_path: Path
) -> None:
    file = tmp_path / "version"
    ours.registry.export("production", file, "ann")
    before = said(receiver(place, ours))
    assert killed(lambda: Registry.open(place, clock=Clock()).import_pack(file, "zoe"), at) == -signal.SIGKILL
    registry = Registry.open(place, clock=Clock())
    wanted = arrived(ours)
    assert said(registry) == (before + wanted if at.startswith("event.committed") else before)
    assert registry.verify().ok
    registry.import_pack(file, "zoe")
    assert said(registry) == before + wanted
    assert registry.verify().demand().leftovers == ()
    registry.promote(ours.ids[1], "production", "approved elsewhere", "zoe")
    assert registry.admit("production").update.id == ours.ids[1]


@pytest.mark.parametrize("kind", ["file"], indirect=True)
@pytest.mark.parametrize("at", ["event.begun:1", "event.appended:1", "event.appended:3"])
def test_where_each_event_is_a_file_a_second_import_brings_what_a_kill_left_out(
    at: str, place: str, ours: Governed, tmp_path: Path
) -> None:
    file = tmp_path / "version"
    ours.registry.export("production", file, "ann")
    before = said(receiver(place, ours))
    assert killed(lambda: Registry.open(place, clock=Clock()).import_pack(file, "zoe"), at) == -signal.SIGKILL
    registry = Registry.open(place, clock=Clock())
    assert registry.verify().ok
    registry.import_pack(file, "zoe")
    wanted = arrived(ours)
    assert said(registry) == before + wanted
    assert registry.verify().demand().leftovers == ()
    registry.promote(ours.ids[1], "production", "approved elsewhere", "zoe")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "file"], indirect=True)
@pytest.mark.parametrize("at", ["blob.written:2", "event.appended:2"])
def test_a_pull_of_one_line_that_is_killed_takes_all_or_what_the_next_one_goes_on_with(
    at: str, kind: str, place: str, ours: Governed
) -> None:
    before = said(Registry.open(place, create=True))
    assert killed(lambda: Registry.open(place).pull(ours.registry, update=ours.ids[2]), at) == -signal.SIGKILL
    registry = Registry.open(place)
    assert len(said(registry)) == len(before) + (2 if kind == "file" and at == "event.appended:2" else 0)
    assert registry.verify().ok
    done = registry.pull(ours.registry, update=ours.ids[2])
    assert done.objects == 0 if at.startswith("event") else 0 < done.objects < 6, "what was there is not sent again"
    assert said(registry) == [*before, *(("add", id_) for id_ in ours.ids)]
    assert registry.verify().demand().leftovers == ()


@pytest.mark.parametrize("kind", ["sqlite", "file"], indirect=True)
@pytest.mark.parametrize("at", ["event.appended:2", "event.committed:1"])
def test_a_pull_of_a_history_that_is_killed_goes_on_word_for_word(at: str, place: str, ours: Governed) -> None:
    assert killed(lambda: Registry.at(place, clock=Clock()).pull(ours.registry), at) == -signal.SIGKILL
    there = Registry.at(place, clock=Clock())
    assert there.pull(ours.registry).events >= len(said(ours.registry)) - 3
    assert there.head() == ours.registry.head()
    assert there.verify().demand().leftovers == ()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "file"], indirect=True)
@pytest.mark.parametrize("at", ["event.appended:1", "event.begun:3", "event.begun:4", "event.appended:2"])
def test_a_gc_that_is_killed_is_ended_by_the_next_one_at_once(at: str, place: str, deltas: list[Path]) -> None:
    early = Registry.open(place, create=True, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    kept = early.add(Update(skill="kept"), deltas[0], {"result.json": b"kept"})
    early.promote(kept, "production", "because", "ann")
    gone = early.add(Update(skill="due"), deltas[0], {"result.json": b"due"})

    def late() -> Registry:
        return Registry.open(place, clock=lambda: datetime(2026, 3, 1, tzinfo=UTC))

    assert killed(lambda: late().gc(delete=True, actor="zoe"), at) == -signal.SIGKILL
    registry = late()
    assert registry.verify().ok
    assert registry.attachment(kept, "result.json") == b"kept"
    done = registry.gc(delete=True, actor="ann")
    assert done.busy == 0
    events = registry._log.read()
    assert (collected(events).keys(), condemned(events)) == ({gone}, {})
    assert registry.verify().demand().leftovers == ()
    assert registry.add(Update(skill="due"), deltas[0], {"result.json": b"due"}) == gone
    assert registry.attachment(gone, "result.json") == b"due"
