"""How fast we train, and in how much memory, beside TRL's SFTTrainer, HF Trainer, PEFT's LoRA and a loop written by hand.

    python benchmarks/train.py --quick --json                         # at most 20 minutes; prints, and writes nothing
    python benchmarks/train.py                                        # five rounds, every arm; writes results/train.json
    python benchmarks/train.py --model tiny --steps 2 --rounds 1      # seconds: does the script run?

Arms (`arms.py`) take turns, round by round, so that a machine that grows busy slows all of them. Ours share a process, where the first
epoch keeps what the later ones use; each of the others has its own, since what a trainer leaves behind in a process changes the next one's
time. A round's figure is the median over its steps without the first, an arm's the median over its rounds; CPU seconds are given too, which
a busy machine disturbs less.

`gemm_share` is the work that a selection asks for (`selectune.training.work.required`: multiplications and additions of the forward
pass and of the activations' gradients from the first trained layer on, of the trained weights' gradients, of attention, and of the head at
labelled positions) a second, as a share of what a square matrix product reaches in the same dtype, measured in every round. Memory is the
growth of a process of its own above the weights, against masters, moments, gradients of the selection in the weights' dtype, and what the
layers from the first trained one on keep for their backward pass.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from arms import ARMS, LR, MINE, Moment, Race, only
from surroundings import machine, resident

from selectune.models import Model, load
from selectune.network import image_token
from selectune.recipe import Data, Optim
from selectune.records import Encoder, Records, read_records
from selectune.training import FeatureCache, Session, checkpoint, train
from selectune.training.allocator import allocator, give_back
from selectune.training.forecast import Forecast, forecast
from selectune.training.load import Load
from selectune.training.machine import matrix_rate

SELECTIONS: dict[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "gate-and-up": ("gate-and-up",),
    "upper-attention": ("language.layers[50%:].attn.{q,k,v,o}",),
    "upper-gate-and-up": ("upper-gate-and-up",),
    "projector": ("projector",),
    "language": ("language",),
}
TRAINERS = ("accelerate", "trl", "peft")
"""Packages whose versions matter, beside torch and transformers."""
ADAPTED = ("attention", "gate-and-up", "upper-attention", "upper-gate-and-up")
"""Selections that LoRA can be put on."""
QUICK = dict.fromkeys(SELECTIONS, ("first", "ours", "trl")) | {"attention": ("first", "ours", "trl", "hf", "plain", "lora", "peft")}
QUICK_MINUTES = 14.0
"""For the rounds; the rest is for memory, of these selections alone."""
QUICK_MEMORY = ("attention", "upper-attention", "language")
RESULTS = Path(__file__).parent / "results" / "train.json"


def prepare(name: str, options: argparse.Namespace) -> tuple[Model, Records]:
    """The model, and an epoch of records."""
    count = options.batch * options.steps
    if name == "tiny":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from training_fixtures import examples, tiny_model

        return tiny_model(dtype=torch.bfloat16), examples(count)
    return load(name), read_records(Data(source=options.data, split="train", limit=count))


def race(model: Model, records: Records, selection: str, options: argparse.Namespace) -> Race:
    encoder = Encoder(model.processor)
    return Race(
        model=model,
        selection=model.map.select(SELECTIONS.get(selection, (selection,)), tie="allow"),
        records=records,
        samples=[{"sample": encoder.encode(record)} for record in records],
        batch=options.batch,
        steps=options.steps,
        encoder=encoder,
    )


def arms_of(selection: str, options: argparse.Namespace) -> tuple[str, ...]:
    """Which arms run for a selection."""
    if options.arms:
        chosen = tuple(options.arms.split(","))
    elif options.quick:
        chosen = QUICK.get(selection, QUICK["language"])
    else:
        chosen = tuple(name for name in ARMS if name != "compiled")
    return tuple(name for name in ARMS if name in chosen and (name not in ("lora", "peft") or selection in ADAPTED))


Taken = dict[str, dict[str, list[Moment]]]
"""By selection and arm: wall and CPU seconds a step, one of each round."""


RACES: dict[str, Race] = {}
"""Of a process that runs arms: by selection."""


def enter(options: argparse.Namespace) -> None:
    """Makes this process ready to run arms."""
    # Hugging Face's trainers print to stdout, which is the result's.
    sys.stdout = sys.stderr
    model, records = prepare(options.model, options)
    RACES.update({name: race(model, records, name, options) for name in options.select.split(",")})


def take_turn(selection: str, arm: str) -> Moment:
    """One arm once, in this process: the median over its counted steps."""
    one = RACES[selection]
    with only(one.model, one.selection):
        spans = ARMS[arm](one)
    return statistics.median(span[0] for span in spans), statistics.median(span[1] for span in spans)


def measure(options: argparse.Namespace, dtype: torch.dtype) -> tuple[Taken, list[float]]:
    """All arms in every round, and the matrix rate of each; what would end after `--minutes` is not begun, but once each."""
    taken: Taken = {name: {arm: [] for arm in arms_of(name, options)} for name in options.select.split(",")}
    rates: list[float] = []
    started, longest = time.perf_counter(), 0.0
    fresh = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        lanes = {
            lane: stack.enter_context(ProcessPoolExecutor(1, mp_context=fresh, initializer=enter, initargs=(options,)))
            for lane in dict.fromkeys(lane_of(arm) for arms in taken.values() for arm in arms)
        }
        for turn in range(options.rounds):
            for name in taken:
                begun = time.perf_counter()
                if options.minutes and turn and begun - started + longest > 60 * options.minutes:
                    return taken, rates
                rates.append(matrix_rate(dtype, device="cuda" if torch.cuda.is_available() else "cpu", times=9))
                arms = list(taken[name])
                others = [arm for arm in arms if arm not in MINE]
                # `first` and `ours` by turns before and after the others, in this order.
                mine = [arm for arm in arms if arm in MINE]
                for arm in mine + others if turn % 2 == 0 else others + mine:
                    wall, cpu = lanes[lane_of(arm)].submit(take_turn, name, arm).result()
                    taken[name][arm].append((wall, cpu))
                    print(f"round {turn + 1}: {name}, {arm}: {wall:.3f} s a step, {cpu:.3f} CPU s", file=sys.stderr, flush=True)
                longest = max(longest, time.perf_counter() - begun)
    return taken, rates


def lane_of(arm: str) -> str:
    """The process that an arm runs in."""
    return "ours" if arm in MINE else arm


def need(one: Race, *, begins: str) -> Forecast:
    """What a step of a race asks for; the last label is a target only, so nothing is read at its place."""
    lengths = [len(row["sample"].input_ids) for row in one.samples]
    labels = statistics.mean(row["sample"].supervised for row in one.samples)
    token = image_token(one.model.net)
    picture = max((row["sample"].input_ids.count(token) for row in one.samples), default=0)
    shape: dict[str, Any] = {"rows": one.batch, "length": round(statistics.mean(lengths)) - 1, "labels": round(labels * one.batch)}
    loaded = Load(**shape, picture=picture, kept=len(one.samples), begins=begins)  # type: ignore[arg-type]
    return forecast(one.model, one.selection, Optim(batch=one.batch), loaded)


def ratios(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times as fast: `attention/trl` is ours from the second epoch on, `attention-first-epoch/trl` in the first."""
    found: dict[str, float] = {}
    for name, arms in rates.items():
        for arm, label in (("ours", name), ("first", f"{name}-first-epoch"), ("compiled", f"{name}-compiled"), ("lora", f"{name}-lora")):
            others = [other for other in arms if other not in MINE and (other == "peft") <= (arm != "first")]
            found |= {f"{label}/{other}": arms[arm] / arms[other] for other in others if arm in arms}
    return found


def memory_of(selection: str, options: argparse.Namespace) -> dict[str, float]:
    """Memory of one training in a process of its own, and its checkpoint's bytes."""
    command = [sys.executable, __file__, "--memory", selection, "--model", options.model, "--data", options.data]
    command += ["--batch", str(options.batch), "--steps", str(options.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def grown(selection: str, options: argparse.Namespace) -> dict[str, float]:
    """In this process: the peak above the weights, what must be there, and what was forecast. Linux only."""
    model, records = prepare(options.model, options)
    one = race(model, records, selection, options)
    # What the first training of a process brings with it for good: kernels, libraries, tables.
    train(model, one.selection, records, Optim(lr=LR, batch=2, max_steps=1), session=Session(features=FeatureCache()))
    give_back()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    optim = Optim(lr=LR, batch=one.batch, max_steps=one.steps + 1, save_every=one.steps)
    found = train(model, one.selection, records, optim, session=Session(features=FeatureCache()))
    peak = resident("VmHWM") - before
    with tempfile.TemporaryDirectory() as folder:
        # A copy of what is written is held meanwhile; that is no part of a step.
        train(model, one.selection, records, optim, session=Session(features=FeatureCache(), checkpoint_dir=Path(folder)))
        delta, rest = checkpoint.sizes(checkpoint.written(Path(folder))[-1])
    expected = need(one, begins="cut" if found.reasons["cut"].startswith("yes") else "start").memory
    floor = expected.masters + expected.moments + one.selection.elements * model.net.dtype.itemsize + expected.activations
    return {
        "peak": peak,
        "floor": floor,
        "forecast": expected.above,
        "weights": expected.parameters,
        "checkpoint": delta,
        "checkpoint_optimizer": rest,
    }


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="a model's name, or tiny")
    parser.add_argument("--data", default="embedded:digits")
    parser.add_argument("--select", default=",".join(SELECTIONS), help="names, with commas between them")
    parser.add_argument("--arms", default="", help="with commas between them; none: all but compiled")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of an arm in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=0.0, help="begin nothing after the first round that would end later; 0: no limit")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="at most 20 minutes: fewer arms, and rounds as time allows")
    parser.add_argument("--json", action="store_true", help="print the result and write nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(given)
    if options.steps < 2:
        parser.error("--steps must be at least 2: the first step is not counted")
    if options.quick:
        options.steps, options.minutes = min(options.steps, 3), options.minutes or QUICK_MINUTES
    return options


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    options = arguments(given)
    if options.memory:
        print(json.dumps(grown(options.memory, options)))
        return {}
    names = options.select.split(",")
    described = machine(*TRAINERS)
    model, records = prepare(options.model, options)
    races = {name: race(model, records, name, options) for name in names}
    taken, squares = measure(options, model.net.dtype)
    wall = {name: {arm: statistics.median(one[0] for one in rounds) for arm, rounds in arms.items()} for name, arms in taken.items()}
    cpu = {name: {arm: statistics.median(one[1] for one in rounds) for arm, rounds in arms.items()} for name, arms in taken.items()}
    speed = {name: {arm: options.batch / seconds for arm, seconds in arms.items()} for name, arms in wall.items()}
    square = statistics.median(squares)
    works = {name: need(one, begins="cut").work for name, one in races.items()}
    weighed = [name for name in names if not options.no_memory and (not options.quick or name in QUICK_MEMORY)]
    memory = {name: memory_of(name, options) for name in weighed}
    result = {
        "machine": described | {"allocator": allocator(), "load_after": list(os.getloadavg())},
        "dtype": str(model.net.dtype).removeprefix("torch."),
        "model": options.model,
        "batch": options.batch,
        "steps": options.steps,
        "rounds": {name: len(next(iter(arms.values()))) for name, arms in taken.items()},
        "tokens_per_sample": statistics.mean(len(row["sample"].input_ids) for row in races[names[0]].samples),
        "labels_per_sample": statistics.mean(row["sample"].supervised for row in races[names[0]].samples),
        "trained": {name: one.selection.elements for name, one in races.items()},
        "samples_per_s": speed,
        "ratios": ratios(speed),
        "ratios_by_cpu_time": ratios({name: {arm: 1 / max(s, 1e-9) for arm, s in arms.items()} for name, arms in cpu.items()}),
        "square_product_per_s": square,
        "required_per_step": {name: vars(work) | {"total": work.total} for name, work in works.items()},
        "gemm_share": {name: works[name].total / arms["ours"] / square for name, arms in wall.items() if "ours" in arms},
        "memory": memory,
        "memory_over_floor": {name: row["peak"] / row["floor"] for name, row in memory.items()},
        "checkpoint_share": {name: row["checkpoint"] / row["weights"] for name, row in memory.items()},
        "seconds_per_step": {name: {arm: [one[0] for one in rounds] for arm, rounds in arms.items()} for name, arms in taken.items()},
    }
    text = json.dumps(result, indent=2)
    if options.json:
        print(text)
    else:
        options.out.write_text(text + "\n", encoding="utf-8")
        for label, value in result["ratios"].items():
            print(f"{label}: {value:.2f}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
