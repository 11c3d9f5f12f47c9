"""Kills a real run of two skills over and over, goes on each time, and compares what comes out with a run that nobody touched.

python tests/crash/kill_and_resume.py FOLDER [--kills 50] [--seed 0]

One process imports torch and runs once, so that all that is loaded late is loaded; every life of a run is then a fork of it. Half of
the lives are killed by SIGKILL at a random time, half at a random one of their steps to the disk: before a file is opened for writing,
renamed, removed or cut, before a folder is made, before a statement or a commit of the registry, and in the middle of a line of
events.jsonl. Nothing in the product knows of it. Then the same with SIGTERM, with a disk that fills up, and with folders that cannot be
written.

Prints what it does, and at the end one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TQDM_DISABLE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import sqlalchemy as sa
import torch

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model, write_recipe
from selectune.errors import SelectuneError
from selectune.pipeline import resume, run
from selectune.recipe import Recipe, read_recipe
from selectune.registry import Registry

TIMEOUT = 60.0
"""Seconds after which a life counts as hung."""
MOST = 6
"""Kills of one run before it is let through."""
WRITES = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "shutil.rmtree"}


@dataclass
class Steps:
    """Counts a life's steps to the disk, and at one of them does something. For a fork only, as an audit hook cannot be removed."""

    folder: Path
    at: int = 0
    do: Callable[[str], None] = lambda path: None
    count: int = 0

    def install(self) -> None:
        """From now on."""
        sys.addaudithook(self._look)
        sa.event.listen(sa.engine.Engine, "before_cursor_execute", lambda *args: self._step("registry: " + str(args[2])[:30]))
        sa.event.listen(sa.engine.Engine, "commit", lambda *args: self._step("registry: commit"))

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event in WRITES or (event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
        if writes and isinstance(args[0], str | bytes | os.PathLike) and os.fsdecode(args[0]).startswith(str(self.folder)):
            self._step(os.fsdecode(args[0]))

    def _step(self, path: str) -> None:
        self.count += 1
        if self.count == self.at:
            self.do(path)


def kill_here(path: str) -> None:
    """SIGKILL to this process; before an event is appended, with half a line of it written."""
    if path.endswith("events.jsonl"):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b'{"at": "2026-11-2')
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Life:
    """How one process ended."""

    code: int
    """Its exit code; minus the signal's number."""
    seconds: float
    said: str


class Place:
    """A folder with a run in it, perhaps begun."""

    def __init__(self, path: Path, recipe: Recipe, *, log: Path | None = None) -> None:
        self.path, self.recipe = path, recipe
        self.log = log or path.with_suffix(".log")
        path.mkdir(parents=True, exist_ok=True)

    @property
    def runs(self) -> list[Path]:
        """The folders of runs."""
        return sorted(path.parent for path in (self.path / "runs").glob("*/run.json"))

    def go(self) -> None:
        """Begins the run or goes on with it."""
        if self.runs:
            resume(self.runs[0])
        else:
            run(self.recipe, registry=str(self.path / "registry"), out=self.path / "runs")

    def live(self, *, prepare: Callable[[], None] = lambda: None, after: float | None = None, send: int = signal.SIGKILL) -> Life:
        """One process that goes on with the run; it gets a signal `after` seconds. `prepare` is called in it first."""
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(prepare))
        code = None
        while code is None:
            done, status = os.waitpid(pid, os.WNOHANG)
            passed = time.monotonic() - started
            if done:
                code = os.waitstatus_to_exitcode(status)
            elif after is not None and passed >= after:
                os.kill(pid, send)
                after = None
            elif passed > TIMEOUT:
                os.kill(pid, signal.SIGKILL)
                raise SystemExit(f"hung for {TIMEOUT} s: {self.log}\n{self.log.read_text()}")
            else:
                time.sleep(0.003)
        return Life(code=code, seconds=time.monotonic() - started, said=self.log.read_text())

    def _child(self, prepare: Callable[[], None]) -> int:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        try:
            prepare()
            self.go()
        except SelectuneError as error:
            os.write(1, f"{type(error).__name__}: {error}\n".encode())
            return error.exit_code
        except BaseException:  # noqa: BLE001  # the fork must not go on as its parent would
            os.write(1, traceback.format_exc().encode())
            return 3
        return 0

    def found(self) -> dict[str, Any]:
        """What must be the same however often a run was killed. Raises AssertionError where something is left half-written."""
        (path,) = self.runs
        result = json.loads((path / "result.json").read_text())
        registry = Registry.open(self.path / "registry")
        report = registry.verify()
        assert report.ok, report.problems
        assert not report.leftovers, report.leftovers
        hidden = [str(one) for one in self.path.rglob(".*")]
        assert not hidden, hidden
        assert sorted(one.name for one in (self.path / "runs").iterdir()) == ["measurements", path.name]
        there = {one.name for one in path.iterdir()}
        due = {"events.jsonl", "inputs.json", "recipe.yaml", "report.html", "result.json", "run.json", "samples", "stages"}
        assert there == due, there ^ due
        events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
        steps = {(event["stage"], event["n"]): (event["loss"], event["grad_norm"]) for event in events if event["event"] == "step"}
        return {
            "updates": [update["id"] for update in result["updates"]],
            "log": [update.id for update in registry.log()[::-1]],
            "deltas": [registry.delta(update.id).digest for update in registry.log()[::-1]],
            "matrix": result["matrix"],
            "metrics": result["metrics"],
            "verdicts": result["verdicts"],
            "losses": [[step["loss"] for step in phase["steps"]] for phase in result["phases"]],
            "quick": [phase["quick"] for phase in result["phases"]],
            "steps": sorted(f"{stage} {n}: {values}" for (stage, n), values in steps.items()),
        }


def killed(root: Path, recipe: Recipe, expected: dict[str, Any], *, kills: int, draw: random.Random) -> list[str]:
    """Kills runs until there were so many; returns where each was."""
    straight = Place(root / "straight", recipe)
    steps = int((root / "steps").read_text())
    seconds, points, number = straight_seconds(straight), list[str](), 0
    while len(points) < kills:
        number += 1
        place = Place(root / f"killed-{number}", recipe)
        mine = 0
        while True:
            let = mine >= MOST or len(points) >= kills
            if let:
                life, what = place.live(), ""
            elif draw.random() < 0.5:
                moment = draw.uniform(0.0, seconds)
                life, what = place.live(after=moment), f"after {moment:.3f} s"
            else:
                counter = Steps(folder=place.path, at=draw.randint(1, steps), do=kill_here)
                life, what = place.live(prepare=counter.install), f"at step {counter.at} to the disk"
            if life.code == 0:
                break
            if life.code != -signal.SIGKILL:
                raise SystemExit(f"{place.path}: {what}: exit code {life.code}\n{life.said}")
            mine += 1
            points.append(f"run {number}, {what}")
        same(place, expected)
        print(f"run {number}: {mine} kills, then through: the same", flush=True)
    return points


def straight_seconds(place: Place) -> float:
    """How long the run that nobody touched took."""
    return float((place.path.parent / "seconds").read_text())


def same(place: Place, expected: dict[str, Any]) -> None:
    """Raises AssertionError, with what differs, unless the run came out as it should."""
    found = json.loads(json.dumps(place.found()))
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, {name: (expected[name], found[name]) for name in different}


def terminated(root: Path, recipe: Recipe, expected: dict[str, Any], *, times: int, draw: random.Random) -> int:
    """SIGTERM at random times: the run says how to go on, and does. Returns how often it did."""
    stopped = number = 0
    while stopped < times:
        number += 1
        place = Place(root / f"terminated-{number}", recipe)
        life = place.live(after=draw.uniform(0.1, 0.5) * straight_seconds(place), send=signal.SIGTERM)
        while life.code:
            # Before the run takes signals and after it has left off, they act as always.
            assert life.code in (130, -signal.SIGTERM), (life.code, life.said)
            if life.code == 130:
                assert "Go on with: selectune run " in life.said, life.said
                stopped += 1
            life = place.live(after=draw.random() * straight_seconds(place), send=signal.SIGTERM)
        same(place, expected)
    return stopped


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Callable[[str], None] | None]:
    """A disk of its own at `path`, with a function that mounts it again with other options; None where this user may not mount."""
    path.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", path], check=True) and None
    finally:
        subprocess.run(["umount", path], check=False)


def lock(disk: Path) -> None:
    """From now on nothing can be written there."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=False)


def full(root: Path, recipe: Recipe, expected: dict[str, Any], *, draw: random.Random) -> dict[str, int]:
    """A disk that is full at several sizes, and files that may not grow: StorageError, and the run goes on when there is room."""
    count = {"disk": 0, "quota": 0, "read-only": 0, "read-only at once": 0}
    steps = int((root / "steps").read_text())
    for kib in (16, 64, 160, 320):
        with small_disk(root / f"disk-{kib}", f"{kib}k") as remount:
            if remount is None:
                break
            place = Place(root / f"disk-{kib}" / "place", recipe, log=root / f"disk-{kib}.log")
            life = place.live()
            if life.code:
                assert life.code == 2, life.said
                assert "StorageError" in life.said, life.said
                assert any(words in life.said for words in ("No space left", "disk I/O error", "disk is full")), life.said
                count["disk"] += 1
            remount("size=64m")
            # In the middle of a run, from one step to the disk to the next; then for all of a life.
            turn = Steps(folder=place.path, at=draw.randint(1, steps), do=lambda path, disk=place.path.parent: lock(disk))
            for what, prepare in (("read-only", turn.install), ("read-only at once", lambda: None)):
                life = place.live(prepare=prepare)
                if life.code:
                    assert life.code == 2, life.said
                    assert "StorageError" in life.said, life.said
                    count[what] += 1
                remount("ro" if what == "read-only" else "rw")
            life = place.live()
            assert life.code == 0, life.said
            same(place, expected)
    for kib in (1, 8, 24):

        def limit(kib: int = kib) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, kib << 10))

        place = Place(root / f"quota-{kib}", recipe)
        life = place.live(prepare=limit)
        if life.code:
            assert life.code == 2, life.said
            assert "StorageError" in life.said, life.said
            count["quota"] += 1
        life = place.live()
        assert life.code == 0, life.said
        same(place, expected)
    return count


def forbidden(root: Path, recipe: Recipe) -> list[str]:
    """Folders that may not be written to, by a user who is not root: one clear error each, and nothing is begun."""
    said = []
    for name in ("runs", "registry"):
        place = Place(root / f"forbidden-{name}", recipe)
        place.path.chmod(0o777)
        (place.path / name).mkdir()
        (place.path / name).chmod(0o555)

        def become_nobody() -> None:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)

        life = place.live(prepare=become_nobody)
        assert life.code == 2, life.said
        assert "StorageError" in life.said, life.said
        assert "Permission denied" in life.said or "readonly" in life.said or "unable to open" in life.said, life.said
        assert not list((place.path / name).iterdir())
        said.append(life.said.strip())
    return said


def main() -> None:
    """Everything, in a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, root = time.monotonic(), options.folder.absolute()
    root.mkdir(parents=True)
    root.chmod(0o755)
    model = save_model(tiny.llama(), root / "model")
    optim = {"lr": 0.05, "batch": 8, "max_steps": 8, "warmup": 0.0, "save_every": 2, "keep_checkpoints": 2}
    recipe = read_recipe(write_recipe(root, model, optim=optim, probe={"quick_every": 4, "quick_n": 3}))
    warm = Place(root / "warm", recipe)
    warm.go()
    straight = Place(root / "straight", recipe)
    life = straight.live()
    assert life.code == 0, life.said
    expected = json.loads(json.dumps(straight.found()))
    same(warm, expected)
    (root / "seconds").write_text(str(life.seconds))
    (root / "steps").write_text(str(counted(Place(root / "counted", recipe))))
    print(f"straight through: {life.seconds:.2f} s, {(root / 'steps').read_text()} steps to the disk, {expected['updates']}", flush=True)
    draw = random.Random(options.seed)
    points = killed(root, recipe, expected, kills=options.kills, draw=draw)
    stopped = terminated(root, recipe, expected, times=5, draw=draw)
    print(f"SIGTERM: {stopped} times", flush=True)
    disks = full(root, recipe, expected, draw=draw)
    print(f"full and read-only disks: {disks}", flush=True)
    refused = forbidden(root, recipe)
    document = {
        "kills": len(points),
        "points": points,
        "sigterm": stopped,
        "disks": disks,
        "refused": refused,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(document))


def counted(place: Place) -> int:
    """How many steps to the disk a run has."""
    steps, said = Steps(folder=place.path), place.path.parent / "counted.txt"
    own = place.go

    def go() -> None:
        own()
        said.write_text(str(steps.count))

    place.go = go  # type: ignore[method-assign]
    life = place.live(prepare=steps.install)
    assert life.code == 0, life.said
    return int(said.read_text())


if __name__ == "__main__":
    main()
