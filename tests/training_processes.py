"""What each process does in the tests of training over several; a module of its own, since a spawned process imports it."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from evaluation_fixtures import record, records
from selectune.evaluation import Suite, Task, evaluate
from selectune.hashing import manifest
from selectune.probes import probe_numbers
from selectune.records import Records
from selectune.training import train
from selectune.training.sharding import shard
from training_fixtures import examples, optim, tiny_model

CASES: dict[str, dict[str, Any]] = {
    "attention": {"family": "llava", "patterns": ("attention",)},
    "slices": {"family": "phi3", "patterns": ("language.layers.*.attn.q", "gate-and-up")},
    "projector": {"family": "llava", "patterns": ("projector", "language.layers.1.attn.q"), "optim": {"cache_features": False}},
    "projector alone": {"family": "llava", "patterns": ("projector",), "optim": {"cache_features": False, "batch": 2}},
    "micro": {"family": "llama", "patterns": ("attention",), "optim": {"micro_batch": 1, "batch": 3}},
    "cut": {"family": "llama", "patterns": ("language.layers[1:].*",), "optim": {"max_steps": 9}},
    "adapter": {"family": "llama", "patterns": ("attention",), "optim": {"adapter": {"rank": 2}}},
    "few": {"family": "llama", "patterns": ("attention",), "optim": {"batch": 2}},
}


def mixed(family: str) -> Records:
    """Questions with pictures and without, so that some shares of a batch have none."""
    if family != "llava":
        return examples(pictures=False)
    rows = [
        record(f"m{n}", "What is in the picture?" if n % 3 else "Is it?", "a cat" if n % 2 else "dog", shade=n if n % 3 else None)
        for n in range(12)
    ]
    return records(*rows)


def trained(case: str, *, sharded: bool = False) -> dict[str, Any]:
    """The case trained in this process, or in the group that it belongs to, where the model may be sharded."""
    asked = CASES[case]
    model = tiny_model(asked["family"])
    if sharded:
        before = model.id
        model = shard(model)
        assert manifest(model.net).id == before
    settings = optim(**{"lr": 1e-3, **asked.get("optim", {})})
    done = train(model, model.map.select(asked["patterns"]), mixed(asked["family"]), settings)
    return {
        "child": done.delta.child,
        "losses": [step.loss for step in done.steps],
        "norms": [step.grad_norm for step in done.steps],
        "delta": done.delta,
    }


def measured() -> dict[str, Any]:
    """A suite of every kind, and captions, measured in this process or in the group that it belongs to."""
    model = tiny_model("llava")
    asked = examples(9)
    tasks = tuple(Task(name=kind, records=asked, kind=kind, max_new_tokens=3) for kind in ("generate", "choice", "perplexity"))
    found = evaluate(model, Suite(tasks=tasks), batch=2)
    reading = probe_numbers(model, examples(5), stage="base", max_new_tokens=2, batch=2)
    return {
        "samples": [[sample.task, sample.id, sample.output, sample.score] for sample in found.samples],
        "captions": [[caption.id, caption.text, caption.mean] for caption in reading.captions],
    }


def main(rank: int, folder: str, world: int, cases: tuple[str, ...], sharded: bool = False) -> None:
    """One process of `world`: trains each case, and writes what came of it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        if not sharded:
            (Path(folder) / f"measured-{rank}.json").write_text(json.dumps(measured()))
        for number, case in enumerate(cases):
            found = trained(case, sharded=sharded)
            if rank == 0:
                found["delta"].save(Path(folder) / f"{case}-{number}.delta")
            del found["delta"]
            (Path(folder) / f"{case}-{number}-{rank}.json").write_text(json.dumps(found))
    finally:
        distributed.destroy_process_group()
