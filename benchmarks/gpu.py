"""`train.py` on a GPU: Qwen2.5-VL-7B's real configuration with random weights, in bf16.

    python benchmarks/gpu.py                         # where there is no GPU, it says so and measures nothing
    python benchmarks/gpu.py --tiny --steps 2        # a tiny model, on whatever there is: does the script run?

Records are text, so the vision tower stands by: what is compared is the language tower's work. Memory is torch's own count of what is
allocated, a peak above the weights, beside the forecast's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from arms import ARMS, Race, only
from surroundings import machine
from train import ADAPTED, SELECTIONS, TRAINERS, ratios

from selectune.models import Model, assemble
from selectune.recipe import Optim
from selectune.records import Encoder, Message, Record, Records
from selectune.training.forecast import forecast
from selectune.training.load import Load
from selectune.training.machine import Machine, matrix_rate

RESULTS = Path(__file__).parent / "results" / "gpu.json"
CHOSEN = ("attention", "gate-and-up", "upper-attention", "upper-gate-and-up")
RUNNERS = ("first", "ours", "trl", "hf", "plain", "lora", "peft")


def build(*, tiny: bool) -> Model:
    """The model on the GPU if there is one."""
    from evaluation_fixtures import tokenizer
    from training_fixtures import tiny_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if tiny:
        made = tiny_model("llama", torch.bfloat16)
        made.net.to(device)
        return made
    from components import qwen2_5_vl

    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(0)
        with torch.device(device):
            net = qwen2_5_vl()
    finally:
        torch.set_default_dtype(torch.float32)
    return assemble("Qwen2.5-VL-7B, random weights", net, tokenizer())


def questions(count: int, words: int) -> Records:
    """Text of about twice as many tokens as `words`, with a short answer."""

    def one(number: int) -> Record:
        asked = " ".join(["cat dog"] * max(1, words // 2))
        return Record(id=f"r{number}", messages=(Message(role="user", parts=(asked,)), Message(role="assistant", parts=("a red fish",))))

    return Records(items=tuple(one(number) for number in range(count)), name="made")


def run(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    records = questions(options.batch * options.steps, options.words)
    encoder = Encoder(model.processor)
    samples = [{"sample": encoder.encode(record)} for record in records]
    square = matrix_rate(model.net.dtype, device=model.device.type, times=9)
    speed: dict[str, dict[str, float]] = {}
    share: dict[str, float] = {}
    memory: dict[str, dict[str, float]] = {}
    for name in options.select.split(","):
        selection = model.map.select(SELECTIONS[name], tie="allow")
        one = Race(
            model=model, selection=selection, records=records, samples=samples, batch=options.batch, steps=options.steps, encoder=encoder
        )
        arms = [arm for arm in options.arms.split(",") if arm not in ("lora", "peft") or name in ADAPTED]
        taken: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(options.rounds):
            for arm in arms:
                if arm == "ours":
                    memory[name] = {"before": _allocated()}
                with only(model, selection):
                    taken[arm].append(statistics.median(span[0] for span in ARMS[arm](one)))
                if arm == "ours":
                    memory[name]["peak"] = _peak() - memory[name].pop("before")
                print(f"{name}, {arm}: {taken[arm][-1]:.3f} s a step", file=sys.stderr, flush=True)
        seconds = {arm: statistics.median(values) for arm, values in taken.items()}
        speed[name] = {arm: options.batch / value for arm, value in seconds.items()}
        length, labels = len(samples[0]["sample"].input_ids) - 1, samples[0]["sample"].supervised * options.batch
        loaded = Load(rows=options.batch, length=length, labels=labels, kept=len(samples), begins="cut")
        found = forecast(model, selection, Optim(batch=options.batch), loaded, machine=Machine(device=model.device.type))
        memory.setdefault(name, {})["forecast"] = found.memory.above
        if "ours" in seconds:
            share[name] = found.work.total / seconds["ours"] / square
    return {
        "machine": machine(*TRAINERS),
        "model": model.name,
        "dtype": str(model.net.dtype).removeprefix("torch."),
        "samples_per_s": speed,
        "ratios": ratios(speed),
        "gemm_share": share,
        "memory": memory,
        "square_product_per_s": square,
    }


def _allocated() -> float:
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    return float(torch.cuda.memory_allocated())


def _peak() -> float:
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU where there is no GPU")
    parser.add_argument("--select", default=",".join(CHOSEN), help="names, with commas between them")
    parser.add_argument("--arms", default=",".join(RUNNERS), help="with commas between them")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--words", type=int, default=500)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(given)
    if not (torch.cuda.is_available() or options.tiny):
        print("There is no GPU here: nothing was measured. Try --tiny to see whether the script runs.")
        return {}
    result = run(build(tiny=options.tiny), options)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for label, value in result["ratios"].items():
        print(f"{label}: {value:.2f}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
