"""The forecast of `selectune plan` against what is then measured: peak memory above the weights, and seconds a step.

    python benchmarks/forecast.py                   # some minutes; prints, and writes results/forecast.json
    python benchmarks/forecast.py --case llama      # one case, in this process; prints JSON

Each case runs in a process of its own, which has trained another tiny model before, so that libraries and kernels do not count. Memory is
the growth of the process' peak (Linux). Time is the median of the steps without the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from surroundings import resident

from selectune.models import Model, assemble, load
from selectune.recipe import Data, Optim
from selectune.records import Encoder, Message, Record, Records, read_records
from selectune.training import FeatureCache, Session, train
from selectune.training.allocator import allocator, give_back
from selectune.training.cut import first_layer
from selectune.training.forecast import forecast, outline
from selectune.training.load import Load
from selectune.training.machine import measure
from selectune.training.tracing import Span, trace

RESULTS = Path(__file__).parent / "results" / "forecast.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training to forecast."""

    model: str
    select: str
    rows: int
    words: int = 0
    dtype: str = "bfloat16"
    optim: dict[str, Any] = field(default_factory=dict)
    portions: int = 1


CASES = {
    "embedded": Case(model="embedded", select="attention", rows=32),
    "embedded-gate-and-up": Case(model="embedded", select="gate-and-up", rows=32),
    "embedded-language": Case(model="embedded", select="language", rows=16),
    "embedded-upper": Case(model="embedded", select="upper-gate-and-up", rows=32),
    "llama": Case(model="Llama", select="attention", rows=64, words=60, dtype="float32"),
    "llama-bf16": Case(model="Llama", select="gate-and-up", rows=64, words=60),
    "llama-portions": Case(model="Llama", select="attention", rows=64, words=60, dtype="float32", portions=2),
    "llama-checkpointing": Case(model="Llama", select="attention", rows=64, words=60, dtype="float32", optim={"checkpointing": True}),
    "qwen2": Case(model="Qwen2", select="language-layers", rows=24, words=120),
    "gpt-neox": Case(model="GPTNeoX", select="attention", rows=48, words=120, dtype="float32"),
}


def small(kind: str, dtype: str) -> Model:
    """Four layers of 256, with random weights."""
    import transformers

    from evaluation_fixtures import tokenizer

    words = tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"vocab_size": len(words), "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 0}
    if kind != "GPTNeoX":
        sizes |= {"num_key_value_heads": 2, "tie_word_embeddings": False}
    torch.manual_seed(0)
    net = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes))
    return assemble(kind, net.to(getattr(torch, dtype)), words)


def questions(count: int, words: int) -> Records:
    def one(number: int) -> Record:
        asked, said = " ".join(["cat dog"] * (words // 2)), "a red fish"
        return Record(id=f"r{number}", messages=(Message(role="user", parts=(asked,)), Message(role="assistant", parts=(said,))))

    return Records(items=tuple(one(number) for number in range(count)), name="made")


def run(case: Case) -> dict[str, Any]:
    """Trains for a few steps in this process, and says what was forecast and what came."""
    from training_fixtures import attention, examples, tiny_model

    load_before, batch = os.getloadavg()[0], case.rows * case.portions
    if case.model == "embedded":
        model, records = load("embedded"), read_records(Data(source="embedded:digits", split="train", limit=2 * batch))
    else:
        model, records = small(case.model, case.dtype), questions(2 * batch, case.words)
    selection = model.map.select((case.select,), tie="allow")
    other = tiny_model(dtype=model.net.dtype)
    train(other, attention(other), examples(8), Optim(batch=4, max_steps=2, lr=1e-5))
    samples = Encoder(model.processor).encode_all(records)
    optim = Optim(lr=1e-5, batch=batch, max_steps=5, micro_batch=case.rows if case.portions > 1 else None, **case.optim)
    seconds: list[float] = []
    give_back()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    session = Session(features=FeatureCache(), on_step=lambda step: seconds.append(step.seconds))
    done = train(model, selection, records, optim, session=session)
    peak = resident("VmHWM") - before
    loaded = Load(
        rows=case.rows,
        length=max(len(sample.input_ids) for sample in samples) - 1,
        labels=round(case.rows * statistics.mean(sample.supervised for sample in samples)),
        passes=case.portions,
        picture=16 if case.model == "embedded" else 0,
        kept=len(samples),
        begins="cut" if done.reasons["cut"].startswith("yes") else "start",
    )
    span = Span(first=first_layer(selection), below=False, rows=case.rows, length=loaded.length)
    traced = trace(outline(model.net), model.map, selection.parameters, span)
    machine = measure(model.net.dtype, traced)
    found = forecast(model, selection, optim, loaded, machine=machine)
    assert found.seconds is not None
    measured = statistics.median(seconds[1:])
    return {
        "selection": case.select,
        "dtype": str(model.net.dtype).removeprefix("torch."),
        "memory": {"forecast": found.memory.above, "measured": peak, "ratio": found.memory.above / peak},
        "seconds": {"forecast": found.seconds, "measured": measured, "ratio": found.seconds / measured},
        "parts": dict(vars(found.memory)),
        "allocator": allocator(),
        "load_before": load_before,
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=tuple(CASES), default=None)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(given)
    if options.case:
        print(json.dumps(run(CASES[options.case])))
        return
    found = {}
    for name in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", name], capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        memory, seconds = found[name]["memory"], found[name]["seconds"]
        bytes_ = f"{memory['forecast'] / 1e6:.0f} MB, measured {memory['measured'] / 1e6:.0f} ({memory['ratio']:.2f})"
        print(f"{name}: {bytes_}; {seconds['forecast']:.2f} s, measured {seconds['measured']:.2f} ({seconds['ratio']:.2f})", flush=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
