"""Kills a process that fills a registry at every one of its points, looks at what is left, and goes on.

python tests/crash/kill_a_registry.py FOLDER [--sqlite 60] [--postgres 40] [--files 20] [--s3 10] [--seed 0]

One process imports torch and makes keys and deltas; every life of a registry is then a fork of it. Each registry is new, is killed once by
SIGKILL at a random passing of a point of `selectune.faults`, is looked at, and is then filled to its end by a second life. A life says
each step that it has behind it through a pipe before it goes on, so whoever looks knows what was acknowledged.

Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch

from database_fixtures import Server, team_url
from governance_fixtures import NAMES, Clock, make_deltas, make_keys, policy_of
from remotes_fixtures import s3_server
from selectune.delta import Delta
from selectune.delta.files import TEMPORARY
from selectune.errors import RegistryError
from selectune.faults import KILL_AT, passed
from selectune.governance import PrivateKey, SignedHead, Witness, seal
from selectune.registry import Registry, Update
from selectune.registry.events import Event, Head
from selectune.registry.places import exists

POINTS = (
    "file.made",
    "file.written",
    "file.synced",
    "file.renamed",
    "file.kept",
    "blob.chunk",
    "blob.copied",
    "blob.written",
    "event.begun",
    "event.appended",
    "event.committed",
    "head.written",
)
ELSEWHERE = {"blob.chunk", "blob.copied"}
"""Points that nobody passes who puts objects into a store."""
NEVER = "event.begun:999999"
MOVES = (("production", "promote", 0), ("candidate", "promote", 0), ("production", "promote", 1), ("production", "revert", 0))
"""In this order: the name, what happens to it, and the number of the update to which it then points."""
WITNESSED = {"policy", "approve", "promote", "revert"}
"""The kinds of event after which the head is kept."""
FILES = {"result.json": b'{"n": 1}', "samples.parquet": bytes(range(256)) * 4097}
"""The second is read in two pieces."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What all registries are filled with."""

    keys: Mapping[str, PrivateKey]
    deltas: list[Path]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A registry, perhaps begun, and where its head is kept."""

    url: str
    heads: Path
    made: Made

    @property
    def witness(self) -> Witness:
        """The admin's head."""
        return Witness(place=str(self.heads / "head.json"), key=self.made.keys["ada"])

    def steps(self) -> Iterator[str]:
        """Fills the registry from where it is, and says each step that it has behind it."""
        registry = Registry.open(self.url, create=True, clock=Clock(), witness=self.witness)
        yield "create"
        if registry.standing().policy is None:
            registry.set_policy(seal(policy_of(dict(self.made.keys)), self.made.keys["ada"]))
        yield "policy"
        ids: list[str] = []
        for number in range(2):
            update = Update(parent=ids[-1] if ids else None, skill=f"s{number}", verdict="passed")
            ids.append(registry.add(update, self.made.deltas[number], {**FILES, "number.txt": b"%d" % number}))
            yield f"add {number}"
            for role, who in (("author", "ann"), ("approver", "ben")):
                if not signed(registry, ids[-1], NAMES[who]):
                    registry.approve(ids[-1], self.made.keys[who], role=role)
                yield f"approve {number} {role}"
            for count, (name, kind, target) in enumerate(MOVES):
                if (count < 2) == (number == 0):
                    move(registry, count, name, kind, ids[target])
                    yield f"move {count}"
        registry.keep_head(self.witness)
        yield "head"

    def live(self, kill_at: str) -> tuple[int, list[str], Counter[str]]:
        """One process that fills the registry: its exit code, the steps that it said, and how often it passed each point."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os._exit(self._child(writer, kill_at))
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as stream:
            lines = stream.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL), (kill_at, code, "\n".join(lines))
        counts = Counter[str](json.loads(lines.pop())) if code == 0 else Counter[str]()
        return code, lines, counts

    def _child(self, writer: int, kill_at: str) -> int:
        os.environ[KILL_AT] = kill_at
        passed.clear()
        try:
            for step in self.steps():
                os.write(writer, f"{step}\n".encode())
        except BaseException:  # noqa: BLE001  # the fork must not go on as its parent would
            os.write(writer, traceback.format_exc().encode())
            return 3
        os.write(writer, json.dumps(passed).encode())
        return 0


def signed(registry: Registry, subject: str, actor: str) -> bool:
    """Whether somebody has signed that update."""
    return any((event.kind, event.subject, event.actor) == ("approve", subject, actor) for event in log(registry))


def log(registry: Registry) -> list[Event]:
    """Every event."""
    return registry._log.read()


def move(registry: Registry, count: int, name: str, kind: str, target: str) -> None:
    """The move of this number, if it was not made; where it is the name's last, a promotion is tried again and is told so."""
    done = len(registry.history(name))
    before = sum(one[0] == name for one in MOVES[:count])
    if kind == "revert":
        if done == before:
            registry.revert(name, "because", "ann")
    elif done == before:
        registry.promote(target, name, "because", "ann")
    elif done == before + 1:
        # It was committed, and its answer was lost.
        with pytest.raises(RegistryError, match="already points to"):
            registry.promote(target, name, "because", "ann")


def said(events: list[Event]) -> list[tuple[str, str | None, str | None]]:
    """What happened, without times."""
    return [(event.kind, event.name, event.subject) for event in events]


def examine(place: Place, steps: list[str], straight: list[tuple[str, str | None, str | None]]) -> None:
    """Raises AssertionError unless what a killed life left is whole, and what it said is there."""
    if not exists(place.url):
        assert not steps, steps
        with pytest.raises(RegistryError, match="this is no registry"):
            Registry.open(place.url)
        return
    registry = Registry.open(place.url)
    events = log(registry)
    report = registry.verify()
    assert report.ok, report.problems
    odd = [name for name in report.leftovers if not name.startswith(TEMPORARY) and registry._blobs.fault(name)]
    assert not odd, f"left, and neither unfinished nor whole: {odd}"
    # Exactly the beginning of what nobody interrupted: nothing twice, nothing left out, and at most one event more than was said.
    assert said(events) == straight[: len(events)], said(events)
    due = [step for step in steps if step != "head"]
    assert len(due) <= len(events) <= len(due) + 1, (due, said(events))
    for number, update in enumerate(registry.log()[::-1]):
        assert registry.delta(update.id) == Delta.load(place.made.deltas[number])
        wanted = {**FILES, "number.txt": b"%d" % number}
        assert {name: registry.attachment(update.id, name) for name in update.attachments} == wanted
    pointing = {event.name: event.subject for event in events if event.kind in ("promote", "revert")}
    assert registry.names() == pointing
    check_head(place, events, behind=1)


def check_head(place: Place, events: list[Event], *, behind: int) -> SignedHead | None:
    """The kept head lies on the log, at most so many kept events behind its end."""
    kept = place.witness.kept()
    count = kept.count if kept else 0
    if kept:
        assert Registry.open(place.url).verify(Head(count=kept.count, hash=kept.hash)).ok
        assert kept.registry == events[0].hash
    late = [event.kind for event in events[count:] if event.kind in WITNESSED]
    assert len(late) <= behind, f"the head is {late} behind"
    return kept


def finish(place: Place, straight: list[tuple[str, str | None, str | None]]) -> None:
    """Goes on without a kill: the registry is then as one that nobody touched, and nothing unfinished lies about."""
    code, _, _ = place.live(NEVER)
    assert code == 0
    registry = Registry.open(place.url)
    events = log(registry)
    assert said(events) == straight, said(events)
    report = registry.verify()
    assert report.ok, report.problems
    assert not report.leftovers, report.leftovers
    if place.url.startswith("file:"):
        assert not list(Path(place.url.removeprefix("file://")).rglob(f"{TEMPORARY}*"))
    kept = check_head(place, events, behind=0)
    assert kept is not None
    assert kept.count == len(events)
    assert [path.name for path in place.heads.iterdir()] == ["head.json"]


def passings(counts: Counter[str], kills: int, draw: random.Random) -> list[str]:
    """So many passings of points: each point at least once, the others anywhere."""
    known = sorted(counts)
    points = [*known, *draw.choices(known, k=kills - len(known))]
    draw.shuffle(points)
    return [f"{point}:{draw.randint(1, counts[point])}" for point in points]


def kill(new: Callable[[int], Place], kills: int, draw: random.Random) -> dict[str, Any]:
    """Kills so many registries of one kind; what happened."""
    began = time.monotonic()
    place = new(0)
    code, steps, counts = place.live(NEVER)
    assert code == 0
    straight = said(log(Registry.open(place.url)))
    assert len(steps) == len(straight) + 1, "every step but the last appends one event"
    expected = set(POINTS) - (ELSEWHERE if place.url.startswith("s3:") else set())
    assert set(counts) == expected, expected ^ set(counts)
    wanted = passings(counts, kills, draw)
    for number, kill_at in enumerate(wanted, start=1):
        place = new(number)
        try:
            code, steps, _ = place.live(kill_at)
            assert code == -signal.SIGKILL, "it was not killed"
            examine(place, steps, straight)
            finish(place, straight)
        except BaseException as error:
            error.add_note(f"killed at {kill_at}, {place.url}")
            raise
    hit = Counter(kill_at.partition(":")[0] for kill_at in wanted)
    return {"kills": len(wanted), "hit": hit, "passings": counts, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    """Every kind, in a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sqlite", type=int, default=60)
    parser.add_argument("--postgres", type=int, default=40)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--s3", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = options.folder.absolute()
    (root / "keys").mkdir(parents=True)
    (root / "deltas").mkdir()
    made = Made(keys=make_keys(root / "keys"), deltas=make_deltas(root / "deltas"))
    draw = random.Random(options.seed)

    def new(name: str, url: str) -> Place:
        heads = root / f"{name}-heads"
        heads.mkdir()
        return Place(url=url, heads=heads, made=made)

    found = {"sqlite": kill(lambda number: new(f"s{number}", str(root / f"s{number}")), options.sqlite, draw)}
    server = Server(durable=True)
    try:
        found["postgresql"] = kill(lambda number: new(f"p{number}", team_url(server, root / f"p{number}")), options.postgres, draw)
    finally:
        server.stop()
    found["files"] = kill(lambda number: new(f"f{number}", f"file://{root}/f{number}"), options.files, draw)
    with s3_server() as bucket:
        found["s3"] = kill(lambda number: new(f"o{number}", f"{bucket}/o{number}"), options.s3, draw)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
