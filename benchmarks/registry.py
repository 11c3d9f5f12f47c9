"""How fast a registry is, and how small: a delta's commit and apply, what it weighs, `verify`, and what a user waits for at the shell.

    python benchmarks/registry.py                     # a minute or two; prints, and writes results/registry.json
    python benchmarks/registry.py --quick --json      # seconds, on a toy; prints JSON alone

Every rate is of the selection's raw bytes, as a share of what a plain copy of the same bytes, flushed to the disk, and one sha256 pass
take in the same round; medians of five rounds, in which everything takes its turn. The tensors are as many bytes as
`attention` of a model of 1 GB in bf16, and what moves them is Gaussian noise: the delta's share of bytes says nothing of a real training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from surroundings import machine

from selectune.components import Component, Selection
from selectune.delta import apply, extract, revert, snapshot
from selectune.hashing import canonical, dtype_name, manifest
from selectune.models import Model
from selectune.network import state
from selectune.registry import Event, Look, Registry, Update
from selectune.registry.database import sqlite_url
from selectune.registry.events import Log, events

ROUNDS = 5
GOALS = {"commit": 0.7, "apply": 0.7, "verify": 0.8, "import_s": 0.1, "log_s": 0.5, "promotion_s": 0.01}
COMMIT = ("extract", "save", "add")
"""What a commit is made of, one after the other."""
VERSIONS = 10_000
STEP = 3e-5
"""The standard deviation of what moves; the weights' own is 0.02."""


class Attention(nn.Module):
    """Square matrices as a model's attention has them."""

    def __init__(self, matrices: int, width: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        for number in range(matrices):
            self.register_buffer(f"m{number:03d}", (torch.randn(width, width, generator=random) * 0.02).bfloat16())


def timed(job: Callable[[], Any]) -> float:
    """Seconds that the job takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _selection(net: nn.Module) -> Selection:
    tensors = state(net)
    components = tuple(
        Component(
            name=name,
            parameter=name,
            slice=None,
            shape=tuple(one.shape),
            elements=one.numel(),
            tied=(),
            dtype=dtype_name(one.dtype),
        )
        for name, one in tensors.items()
    )
    return Selection(patterns=("attention",), components=components, full_shapes={name: tuple(one.shape) for name, one in tensors.items()})


def _copied(source: Path, target: Path) -> None:
    """A plain copy that survives a power cut, and one pass of sha256 over it."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
        hashlib.file_digest(file, "sha256")


def measure(matrices: int, width: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Rates as shares of copy and sha256, and what the delta weighs."""
    net = Attention(matrices, width)
    model = Model(name="shape", net=cast(Any, net), processor=None, map=cast(Any, None), manifest=manifest(net))
    selection = _selection(net)
    before = snapshot(model, selection, known=model.manifest)
    random = torch.Generator().manual_seed(1)
    for tensor in state(net).values():
        tensor.copy_((tensor.float() + torch.randn(tensor.shape, generator=random) * STEP).bfloat16())
    raw = sum(tensor.nbytes for tensor in state(net).values())
    plain = folder / "plain"
    plain.write_bytes(b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in state(net).values()))
    delta = extract(model, before, selection)
    child = model.updated(manifest(net))
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *COMMIT, "commit", "apply", "sha256", "verify")}
    for number in range(rounds):
        registry = Registry.open(folder / f"registry-{number}", create=True)
        update = Update(skill=f"s{number}", actor="benchmark")
        seconds["plain"].append(timed(lambda: _copied(plain, folder / "copy")))
        parts: tuple[Callable[[], Any], ...] = (
            lambda: extract(model, before, selection),
            lambda: delta.save(folder / "one.delta"),
            lambda registry=registry, update=update: registry.add(update, folder / "one.delta"),
        )
        for name, part in zip(COMMIT, parts, strict=True):
            seconds[name].append(timed(part))
        seconds["commit"].append(sum(seconds[name][-1] for name in COMMIT))
        blob = registry.blob(registry.log()[0].delta)
        seconds["sha256"].append(timed(lambda blob=blob: hashlib.sha256(blob.read_bytes()).hexdigest()))
        seconds["verify"].append(timed(lambda registry=registry: registry.verify().demand()))
        parent = revert(child, delta)
        seconds["apply"].append(timed(lambda parent=parent: apply(parent, delta)))
        shutil.rmtree(folder / f"registry-{number}")
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "raw_bytes": raw,
        "delta_bytes": delta.nbytes,
        "delta_share": delta.nbytes / raw,
        "seconds": seconds,
        "commit": middle["plain"] / middle["commit"],
        "apply": middle["plain"] / middle["apply"],
        "verify": middle["sha256"] / middle["verify"],
    }


def starts(rounds: int) -> dict[str, float]:
    """Seconds to import the package, in a process of its own, beyond what an empty one takes."""
    empty, imported = (
        [timed(lambda code=code: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(rounds)]
        for code in ("pass", "import selectune")
    )
    return {"import_s": statistics.median(imported) - statistics.median(empty)}


def _filled(place: Path, versions: int) -> Registry:
    """A registry of one line of updates, whose events are written in one step; each body has about as many bytes as a run's."""
    registry = Registry.open(place, create=True)
    log = Log(sqlite_url((place / "registry.sqlite").absolute(), create=False))
    last, parent, rows = log.read()[-1], None, []
    for number in range(versions):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        update = Update(parent=parent, base=digest, child=digest, skill=f"skill {number}", delta=digest, meta={"notes": ["x" * 100] * 50})
        if number >= versions - 50:
            (place / "blobs" / "sha256" / digest).write_bytes(b"x" * 1000)
        parent, body = update.computed_id(), update.body()
        said = {"utc": "2026-11-24T13:05:00Z", "actor": "benchmark", "kind": "add", "name": None, "subject": parent, "body": body}
        last = Event.following(last.seq, last.hash, said)
        rows.append({**said, "body": canonical(body).decode(), "seq": last.seq, "prev": last.prev, "hash": last.hash})
    with log.database.transaction(writing=True) as connection:
        connection.execute(sa.insert(events), rows)
    return registry


COLD = """
import sys, time
from selectune.registry import Registry
start = time.perf_counter()
Registry.open(sys.argv[1]).promote(sys.argv[2], "production", "the next", "benchmark")
print(time.perf_counter() - start)
"""


def _cold(place: Path, update: Update) -> float:
    """Seconds of a promotion in a process that has read nothing of the log yet, its start left out."""
    done = subprocess.run([sys.executable, "-c", COLD, str(place), update.id], check=True, capture_output=True, text=True)
    return float(done.stdout)


def history(versions: int, rounds: int, folder: Path) -> dict[str, float]:
    """Seconds of the shell's `log`, start included, and of an event's decision, in a registry of so many versions.

    A promotion, and the look by which a gate spends its error rate, in a process that has read the log once; and a promotion in one that
    has not, without its start.
    """
    place = folder / "long"
    registry = _filled(place, versions)
    newest, *others = registry.log()[: 2 * rounds + 1]
    registry.promote(newest.id, "production", "the first", "benchmark")
    registry.look(Look(model=newest.child, sets={"task": newest.child}, alpha=0.001, total=0.05))
    seconds: dict[str, list[float]] = {name: [] for name in ("log_s", "log_json_s", "promotion_s", "look_s", "cold_promotion_s")}
    shell = [sys.executable, "-m", "selectune", "log", "--registry", str(place)]
    for one, other in zip(others[::2], others[1::2], strict=True):
        look = Look(model=one.child, sets={"task": newest.child}, alpha=0.001, total=0.05)
        seconds["promotion_s"].append(timed(lambda one=one: registry.promote(one.id, "production", "the next", "benchmark")))
        seconds["look_s"].append(timed(lambda look=look: registry.look(look)))
        seconds["cold_promotion_s"].append(_cold(place, other))
        seconds["log_s"].append(timed(lambda: subprocess.run(shell, check=True, capture_output=True)))
    seconds["log_json_s"].append(timed(lambda: subprocess.run([*shell, "--json"], check=True, capture_output=True)))
    return {"versions": versions, **{name: statistics.median(found) for name, found in seconds.items()}}


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a toy, one round, and nothing is written")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "registry.json"), help="'' to write nothing")
    options = parser.parse_args(arguments)
    matrices, width, rounds = (4, 64, 1) if options.quick else (16, 3072, ROUNDS)
    versions = 60 if options.quick else VERSIONS
    with tempfile.TemporaryDirectory() as folder:
        measured = {**measure(matrices, width, rounds, Path(folder)), **starts(rounds), **history(versions, rounds, Path(folder))}
        result = {"machine": machine(), "goals": GOALS, **measured}
    if options.out and not options.quick:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if options.json:
        print(json.dumps(result))
        return
    print(f"delta: {result['delta_share']:.1%} of {result['raw_bytes'] / 1e6:.0f} MB")
    print("commit: " + ", ".join(f"{name} {statistics.median(result['seconds'][name]):.3f} s" for name in COMMIT))
    for name, goal in GOALS.items():
        print(f"{name}: {result[name]:.2f} (goal {'≤' if name.endswith('_s') else '≥'} {goal})")


if __name__ == "__main__":
    main()
