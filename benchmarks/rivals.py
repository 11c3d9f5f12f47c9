"""What a real `attention` update weighs, and one history kept by selectune and by others: bytes, seconds, and whether it comes back exact.

    python benchmarks/rivals.py --updates FOLDER       # minutes: trains what is not in the folder yet; writes results/rivals.json
    python benchmarks/rivals.py --quick --json         # seconds, on a toy; prints JSON alone

The updates are the embedded model's: three skills one after the other, one epoch each, with the study's settings (rate 5e-6, batch 32,
cosine) and again at the demo's rate. An epoch has 30 to 40 steps here; the study's last task had 360, so that one more update has as many
(several epochs). Each store then commits the base and the updates of one rate, version after version, all stores in
turn. After each commit and restore everything is flushed to the disk, and what that took is kept beside it. Every restored tensor is held
against the trained one by sha256. At the end one bit of each store's newest version is flipped, and both its check and a restore are asked.

A tool that is not there is left out by name. Git LFS: `apt install git-lfs`. git-theta is no dependency of selectune and wants a virtual
environment of its own, whose programs are found on the PATH:

    python -m venv /tmp/theta && /tmp/theta/bin/pip install git-theta==0.2.0 safetensors
    PATH=$PATH:/tmp/theta/bin python benchmarks/rivals.py --updates FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from components import qwen2_5_vl
from stores import STORES, WEIGHTS, Store, Theta, Trained, Version, damage, digests, nbytes, newest, settings, widened
from surroundings import machine
from transformers.utils.logging import disable_progress_bar

from selectune import models
from selectune.components import Selection, map_model
from selectune.delta import Delta, apply, extract, revert, snapshot
from selectune.errors import SelectuneError
from selectune.models import Model
from selectune.recipe import Data, Optim
from selectune.records import Records, read_records
from selectune.registry import Registry, Update
from selectune.training import FeatureCache, Session, train

STUDY, DEMO = Optim().lr, 2e-4
"""Peak rates: the study's for attention, and the demo recipes'."""
STEPS = 360
"""Of the study's task TimeClock, by the name of its checkpoint."""
SKILLS = ("digits", "counting", "flags")
GOALS = {"of_selection": 0.30, "of_7b": 0.04}
"""The most that an update at the study's rate may weigh, of its selection's raw bytes and of a whole model of 7B."""
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained."""

    model: Model
    selection: Selection
    records: dict[str, Records]
    """By skill, in the order of training."""
    optims: dict[str, Optim]
    """By a name for it, the study's first."""
    longest: tuple[str, Optim]
    """For the first skill alone."""


def embedded() -> Case:
    """The embedded model and three of its skills."""
    model = models.load("embedded")
    return Case(
        model=model,
        selection=model.map.select(("attention",)),
        records={skill: read_records(Data(source=f"embedded:{skill}", split="train")) for skill in SKILLS},
        optims={f"{rate:g}": Optim(lr=rate) for rate in (STUDY, DEMO)},
        longest=(f"{STUDY:g}, {STEPS} steps", Optim(epochs=STEPS, max_steps=STEPS)),
    )


def toy() -> Case:
    """A tiny LLaVA of random weights, at rates that move it."""
    from training_fixtures import examples, tiny_model

    model = tiny_model("llava", torch.bfloat16)
    return Case(
        model=model,
        selection=model.map.select(("attention",)),
        records={"first": examples(8), "second": examples(12)},
        optims={f"{rate:g}": Optim(lr=rate, batch=4) for rate in (1e-3, 1e-2)},
        longest=("0.001, 6 steps", Optim(lr=1e-3, batch=4, epochs=6, max_steps=6)),
    )


def updates(case: Case, name: str, optim: Optim, skills: Sequence[str], kept: Path) -> tuple[list[dict[str, Any]], list[Delta]]:
    """One update a skill, each on the one before, recorded in a new registry: what each weighs, and the deltas. Trained ones are kept."""
    model, deltas, rows, cache = case.model, list[Delta](), list[dict[str, Any]](), FeatureCache()
    raw = case.selection.elements * 2
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry.open(Path(folder) / "registry", create=True)
        parent: str | None = None
        for skill in skills:
            file, said = kept / f"{name}-{skill}.delta", kept / f"{name}-{skill}.json"
            if not (file.is_file() and Delta.load(file).parent == model.id):
                begun = time.perf_counter()
                done = train(model, case.selection, case.records[skill], optim, session=Session(features=cache))
                done.delta.save(file)
                losses = [step.loss for step in done.steps]
                row = {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1], "seconds": time.perf_counter() - begun}
                said.write_text(json.dumps(row), "utf-8")
                print(f"{skill} at {name}: {row}", file=sys.stderr, flush=True)
            before = snapshot(model, case.selection, known=model.manifest)
            model = apply(model, Delta.load(file))
            deltas.append(extract(model, before, case.selection))
            deltas[-1].save(Path(folder) / "one.delta")
            parent = registry.add(Update(parent=parent, skill=skill, actor="benchmark"), Path(folder) / "one.delta")
            size = registry.size(registry.show(parent).delta)
            weights = {"bytes": size, "of_selection": size / raw, "moved": deltas[-1].moved() / case.selection.elements}
            rows.append(
                {"skill": skill, "lr": optim.lr, "update": parent, "raw_bytes": raw, **weights, **json.loads(said.read_text("utf-8"))}
            )
    for delta in reversed(deltas):
        model = revert(model, delta)
    return rows, deltas


def shape(share: float) -> dict[str, Any]:
    """What a share of attention's bytes is of the whole of Qwen2.5-VL-7B, built of its published dimensions without a weight."""
    with torch.device("meta"):
        net = qwen2_5_vl()
    found = map_model(net, "Qwen2.5-VL-7B")
    attention = found.select(("attention",)).elements
    return {"attention": attention, "elements": found.elements, "attention_share": attention / found.elements, "share": share} | {
        "of_7b": share * attention / found.elements,
        "bytes_bf16": round(share * attention * 2),
    }


def timed(job: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that a job takes, and then the disk, until everything lies there."""
    os.sync()
    start = time.perf_counter()
    job()
    done = time.perf_counter()
    os.sync()
    return done - start, time.perf_counter() - done


class History:
    """The base and its updates, as checkpoints on the disk and once more in memory."""

    def __init__(self, case: Case, deltas: Sequence[Delta], folder: Path, *, wide: bool) -> None:
        self.skills = ["base", *case.records]
        self.folders = [folder / f"version-{number}" for number in range(len(self.skills))]
        self.deltas, self.saving = deltas, list[float]()
        model = case.model
        for number, place in enumerate(self.folders):
            model = apply(model, deltas[number - 1]) if number else model
            begun = time.perf_counter()
            model.net.save_pretrained(place)
            self.saving.append(time.perf_counter() - begun)
            model.processor.save_pretrained(place)
            if wide:
                target = place.with_name(f"{place.name}-fp32")
                target.mkdir()
                widened(place / WEIGHTS, target / WEIGHTS)
        for delta in reversed(deltas):
            model = revert(model, delta)
        self.model = models.load(str(self.folders[0]))
        assert self.model.id == case.model.id
        self.selection = self.model.map.select(case.selection.patterns)

    def versions(self) -> Any:
        """One version after the other, the model in memory holding each; afterwards it holds the base again."""
        model, trained = self.model, None
        for number, folder in enumerate(self.folders):
            if number:
                before = snapshot(model, self.selection, known=model.manifest)
                trained = Trained(model=model, before=before, selection=self.selection)
                model = apply(model, self.deltas[number - 1])
            yield Version(number=number, skill=self.skills[number], folder=folder, base=self.folders[0], trained=trained)
        for delta in reversed(self.deltas):
            model = revert(model, delta)


def one_round(history: History, chosen: Sequence[str], place: Path, found: dict[str, Any], *, last: bool) -> None:
    """Every store keeps every version and gives it back, all in turn; after the `last` round each is damaged and asked what it says."""
    stores: dict[str, Store] = {
        name: STORES[name](place / str(number)) for number, name in enumerate(chosen) if last or not STORES[name].slow
    }
    files: dict[str, set[Path]] = {}
    versions: list[Version] = []
    for one in history.versions():
        versions.append(one)
        for name, store in stores.items():
            store.ready(one)
            files[name] = set(store.objects.rglob("*"))
            seconds, flush = timed(lambda store=store, one=one: store.commit(one))
            found[name]["commit"][one.number].append(seconds)
            found[name]["flush"][one.number].append(flush)
            found[name]["bytes"][one.number] = store.weight()
    for one in versions[1:]:
        for name, store in stores.items():
            given = list[Path]()
            seconds, flush = timed(lambda store=store, one=one, given=given: given.append(store.restore(one.number, place / "out")))
            found[name]["restore"][one.number].append(seconds)
            found[name]["restore_flush"][one.number].append(flush)
            found[name]["differing"][one.number] += differing(digests(given[0]), digests(store.wanted(one)))
            shutil.rmtree(place / "out", ignore_errors=True)
    for name, store in stores.items() if last else ():
        found[name]["damaged"] = damaged(store, newest(store, files[name]), versions, place / "out")
    shutil.rmtree(place)


def differing(given: dict[str, Any], wanted: dict[str, Any]) -> int:
    """How many tensors are not what they were."""
    return sum(given.get(name) != wanted.get(name) for name in given.keys() | wanted.keys())


def damaged(store: Store, file: Path, versions: Sequence[Version], out: Path) -> dict[str, Any]:
    """What a store says and gives after one bit of its newest version was flipped."""
    damage(file)
    try:
        given = store.restore(versions[-1].number, out)
        restored = f"given out, {differing(digests(given), digests(store.wanted(versions[-1])))} tensors differing"
    except (SelectuneError, RuntimeError, OSError) as error:
        said = " ".join(str(error).replace(str(store.place), "").split())
        restored = f"refused: {type(error).__name__}: {said[-200:]}"
    finally:
        shutil.rmtree(out, ignore_errors=True)
    intact = store.intact()
    return {"restore": restored, "check": "has none" if intact is None else "not noticed" if intact else "noticed"}


def race(case: Case, deltas: Sequence[Delta], rounds: int, chosen: Sequence[str]) -> dict[str, Any]:
    """Every store with the same history, in turn, so many times."""
    found: dict[str, Any] = settings()
    present = [name for name in chosen if "skipped" not in found[name]]
    numbers = range(len(deltas) + 1)
    with tempfile.TemporaryDirectory(prefix="rivals-") as place:
        folder = Path(place)
        history = History(case, deltas, folder, wide=any(issubclass(STORES[name], Theta) for name in present))
        for name in present:
            found[name] |= {key: [[] for _ in numbers] for key in ("commit", "flush", "restore", "restore_flush")}
            found[name] |= {"bytes": [0 for _ in numbers], "differing": [0 for _ in numbers]}
        if "git-theta" in present:
            found["git-theta"]["refusals"] = Theta(folder / "refusing").refusals()
        for number in range(rounds):
            one_round(history, present, folder / f"round-{number}", found, last=number == rounds - 1)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        size = nbytes(history.folders[0])
    for name in present:
        found[name]["medians"] = medians(found[name])
    return {"model_bytes": size, "saving": history.saving, "stores": {name: found[name] for name in chosen}}


def medians(row: dict[str, Any]) -> dict[str, Any]:
    """Over rounds and versions after the base."""
    seconds = {key: statistics.median(chain.from_iterable(row[key][1:])) for key in ("commit", "flush", "restore", "restore_flush")}
    growth = (row["bytes"][-1] - row["bytes"][0]) / (len(row["bytes"]) - 1)
    return seconds | {"bytes_per_version": growth, "exact": not any(row["differing"])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a toy, one round, and nothing is written")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--updates", type=Path, help="a folder in which trained updates are kept from one run to the next")
    parser.add_argument("--rate", help="the history's, 0.0002 for the demo's; the study's unless given")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="0: train alone")
    parser.add_argument("--stores", default=",".join(STORES), type=lambda text: text.split(","), help="names, with commas between them")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "rivals.json"), help="'' to write nothing")
    options = parser.parse_args(arguments)
    disable_progress_bar()
    case = toy() if options.quick else embedded()
    with tempfile.TemporaryDirectory() as folder:
        kept = options.updates or Path(folder)
        kept.mkdir(exist_ok=True)
        made = {name: updates(case, name, optim, tuple(case.records), kept) for name, optim in case.optims.items()}
        rows = {name: found for name, (found, _) in made.items()}
        name, optim = case.longest
        rows[name] = updates(case, name, optim, tuple(case.records)[:1], kept)[0]
    largest = {name: max(row["of_selection"] for row in found) for name, found in rows.items()}
    result: dict[str, Any] = {
        "machine": machine(),
        "goals": GOALS,
        "model": case.model.name,
        "updates": rows,
        "of_selection": largest,
        "shape": {name: shape(share) for name, share in largest.items()},
    }
    if options.rounds:
        rate = options.rate or next(iter(case.optims))
        rounds = 1 if options.quick else options.rounds
        result["history"] = {"lr": float(rate), "skills": list(case.records), **race(case, made[rate][1], rounds, options.stores)}
    if options.out and not options.quick:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if options.json:
        print(json.dumps(result))
        return
    show(result)


def show(result: dict[str, Any]) -> None:
    """Tables on the screen."""
    for name, found in result["shape"].items():
        print(f"at {name}: at most {found['share']:.1%} of attention's bytes; of a whole 7B {found['of_7b']:.2%}")
    print(f"{'':20}{'MB a version':>14}{'commit s':>10}{'restore s':>11}  exact")
    for name, row in result.get("history", {"stores": {}})["stores"].items():
        if "skipped" in row:
            print(f"{name:20} left out: {row['skipped']}")
            continue
        found = row["medians"]
        seconds = f"{found['commit'] + found['flush']:>10.2f}{found['restore'] + found['restore_flush']:>11.2f}"
        print(f"{name:20}{found['bytes_per_version'] / 1e6:>14.1f}{seconds}  {'yes' if found['exact'] else 'no'}")
        print(f"{'':20}one bit flipped: check {row['damaged']['check']}; {row['damaged']['restore']}")


if __name__ == "__main__":
    main()
