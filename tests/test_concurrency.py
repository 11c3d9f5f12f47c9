"""Many processes at one registry at once, and hosts whose clocks differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from collecting_processes import TODAY
from delta_fixtures import quick_disk
from governance_fixtures import Clock, governed, make_keys
from places_fixtures import new_place
from selectune.delta.files import TEMPORARY
from selectune.errors import ClockApart, SelectuneError
from selectune.registry import Registry, Update
from selectune.registry.lineage import collected, condemned, moves

PROCESSES = 16
ROUNDS = 3

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


def at_once(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work` returns in each of the processes, forks of this one that start together."""
    folder.mkdir()
    ready, go = os.pipe()
    children = []
    for number in range(PROCESSES):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(go)
                os.read(ready, 1)  # returns in all of them once the parent has closed its end
                (folder / str(number)).write_text(json.dumps(work(number)))
                code = 0
            except BaseException as error:  # noqa: BLE001  # a fork must not go on as a second pytest
                (folder / str(number)).write_text(repr(error))
            finally:
                os._exit(code)
        children.append(child)
    os.close(ready)
    os.close(go)
    codes = [os.waitpid(child, 0)[1] for child in children]
    texts = [(folder / str(number)).read_text() for number in range(PROCESSES)]
    assert codes == [0] * PROCESSES, [text for text, code in zip(texts, codes, strict=True) if code]
    return [json.loads(text) for text in texts]


def test_sixteen_processes_that_commit_and_promote_lose_and_double_nothing(registry_url: str, deltas: list[Path], tmp_path: Path) -> None:
    Registry.open(registry_url, create=True)

    def work(number: int) -> dict[str, Any]:
        registry = Registry.open(registry_url)
        ids, moved, refused = [], [], 0
        for count in range(ROUNDS):
            ids.append(registry.add(Update(skill=f"{number}-{count}"), deltas[0], {"result.json": b'{"n":%d}' % number}))
            ids.append(registry.add(Update(skill="the same of all"), deltas[0]))
            for id_, name in ((ids[-2], "production"), (ids[-1], "shared")):
                try:
                    move = registry.promote(id_, name, f"{number}-{count}", f"p{number}")
                except SelectuneError as error:
                    # Only one of them can be the first to point the name there.
                    assert "already points to" in str(error), error  # noqa: PT017
                    refused += 1
                else:
                    moved.append([move.seq, move.name, move.update, move.reason, move.actor])
        return {"ids": ids, "moved": moved, "refused": refused}

    told = at_once(work, tmp_path / "told")
    registry = Registry.open(registry_url)
    events = registry._log.read()
    adds = Counter(event.subject for event in events if event.kind == "add")
    assert adds == Counter({id_ for one in told for id_ in one["ids"]}), "each commit is there, once"
    assert len(adds) == PROCESSES * ROUNDS + 1
    reported = sorted(tuple(move) for one in told for move in one["moved"])
    assert [(move.seq, move.name, move.update, move.reason, move.actor) for move in moves(events)] == reported
    assert Counter(name for _, name, *_ in reported) == {"production": PROCESSES * ROUNDS, "shared": 1}
    assert sum(one["refused"] for one in told) == PROCESSES * ROUNDS - 1
    # Each move says where the name pointed before: nobody decided on a log that was no longer the last.
    production = [move for move in moves(events) if move.name == "production"]
    assert [move.previous for move in production] == [None, *(move.update for move in production[:-1])]
    assert [event.seq for event in events] == list(range(1, 2 + len(adds) + len(reported)))
    assert [event.prev for event in events[1:]] == [event.hash for event in events[:-1]]
    assert registry.names() == {"production": production[-1].update, "shared": told[0]["ids"][1]}
    report = registry.verify(registry.head()).demand()
    assert report.events == len(events)


def test_sixteen_processes_that_make_one_registry_make_one(registry_url: str, deltas: list[Path], tmp_path: Path) -> None:
    told = at_once(lambda number: Registry.open(registry_url, create=True).add(Update(skill=str(number)), deltas[0]), tmp_path / "told")
    registry = Registry.open(registry_url)
    assert sorted(update.id for update in registry.log()) == sorted(told)
    assert [event.kind for event in registry._log.read()] == ["create"] + ["add"] * PROCESSES
    assert registry.verify().ok


class Ahead(Clock):
    """A clock that is an hour fast."""

    def __init__(self) -> None:
        super().__init__()
        self.now += timedelta(hours=1)


def test_with_clocks_an_hour_apart_the_order_is_that_of_the_log(registry_url: str, deltas: list[Path]) -> None:
    slow = Registry.open(registry_url, create=True, clock=Clock())
    fast = Registry.open(registry_url, clock=Ahead())
    ids = []
    for number in range(4):
        host = (fast, slow)[number % 2]
        ids.append(host.add(Update(skill=str(number)), deltas[0]))
        host.promote(ids[-1], "production", str(number), "ann")
    assert [update.id for update in slow.log()] == ids[::-1]
    assert [update.created[11:13] for update in slow.log()] == ["12", "13", "12", "13"], "the times go back, the order does not"
    assert [(move.seq, move.update) for move in fast.history("production")] == [(3 + 2 * n, id_) for n, id_ in enumerate(ids)]
    assert slow.names() == {"production": ids[3]}
    assert fast.revert("production", "worse", "ann").update == ids[2]
    assert slow.verify().ok


def test_a_policy_refuses_a_move_by_a_host_whose_clock_is_an_hour_behind_the_log(deltas: list[Path], tmp_path: Path) -> None:
    there = governed(tmp_path / "registry", make_keys(tmp_path), deltas)
    fast = Registry.open(tmp_path / "registry", clock=Ahead())
    fast.promote(there.ids[0], "candidate", "because", "ann")
    before = there.registry._log.read()
    with pytest.raises(ClockApart, match=r"more than 10 minutes apart.*Set the clocks"):
        there.promote(1, "candidate")
    assert there.registry._log.read() == before
    there.clock.now += timedelta(hours=1)
    there.promote(1, "candidate")
    assert fast.names() == {"candidate": there.ids[1]}
    assert fast.verify().ok


def test_a_policy_that_allows_an_hour_and_a_half_lets_both_hosts_move(deltas: list[Path], tmp_path: Path) -> None:
    there = governed(tmp_path / "registry", make_keys(tmp_path), deltas, clock_minutes=90)
    fast = Registry.open(tmp_path / "registry", clock=Ahead())
    fast.promote(there.ids[0], "candidate", "because", "ann")
    there.promote(1, "candidate")
    assert [move.update for move in fast.history("candidate")] == there.ids[:2]
    assert fast.verify().ok


@pytest.mark.parametrize(("kind", "rounds"), [("postgresql", 8), ("file", 8), ("s3", 4)])
def test_processes_that_add_and_collect_at_once_lose_no_object(
    kind: str, rounds: int, request: pytest.FixtureRequest, deltas: list[Path], tmp_path: Path
) -> None:
    url = new_place(kind, request, tmp_path / "place")
    # What stays for good, so that the delta of all does.
    Registry.open(url, create=True, clock=lambda: TODAY).add(Update(skill="first"), deltas[0])
    script = Path(__file__).with_name("collecting_processes.py")
    commands = [[sys.executable, str(script), what, url, str(deltas[0]), str(rounds), "2"] for what in ("add", "add", "collect", "collect")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    told = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0] * 4, "\n".join(error[-2000:] for _, error in told)
    found = [json.loads(output) for output, _ in told]
    registry = Registry.open(url)
    events = registry._log.read()
    stay = [id_ for one in found for id_ in one["stay"]]
    assert sum(one["gone"] for one in found) == 2 * rounds == len(collected(events))
    assert condemned(events) == {}
    report = registry.verify().demand()
    assert (report.updates, report.objects, report.leftovers) == (1 + 4 * rounds, 1 + 2 * rounds, ())
    assert [registry.admit(id_).update.id for id_ in stay] == stay
    assert len(set(stay)) == 2 * rounds
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))
