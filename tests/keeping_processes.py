"""What each process does in the tests of keeping over several; a module of its own, since a spawned process imports it."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from keeping_fixtures import keeping, renamed
from selectune.errors import NotYet
from selectune.training import train
from selectune.training.sharding import shard
from training_fixtures import examples, optim, tiny_model

TERMS: dict[str, Any] = {
    "distill": {"weight": 0.5},
    "l2sp": 0.05,
    "ewc": {"weight": 100.0, "data": "x"},
    "replay": {"share": 0.25},
    "anchors": {"data": "x", "batch": 3},
}
CASES: dict[str, dict[str, Any]] = {
    "every term": {},
    "kept answers": {"distill": {"top_k": 6}, "anchors": {"data": "x", "batch": 3, "top_k": 6}},
}


def trained(case: str, *, sharded: bool = False) -> dict[str, Any]:
    """The case trained in this process, or in the group that it belongs to; over shards with the terms that they can have."""
    model = tiny_model("llama")
    old = renamed(examples(5, pictures=False), "old ")
    given = keeping({**TERMS, **CASES[case]}, ewc=old[:3], replay={"earlier": old}, anchors=old)
    refused = ""
    if sharded:
        model = shard(model)
        try:
            train(model, model.map.select(("attention",)), examples(pictures=False), optim(), keeping=given)
        except NotYet as error:
            refused = str(error)
        given = keeping({"l2sp": 0.05, "replay": {"share": 0.25}}, replay={"earlier": old})
    done = train(model, model.map.select(("attention",)), examples(pictures=False), optim(lr=1e-3, eps=1e-3), keeping=given)
    return {
        "child": done.delta.child,
        "kept": [dict(step.kept) for step in done.steps],
        "norms": [s.grad_norm for s in done.steps],
        "refused": refused,
    }


def main(rank: int, folder: str, sharded: bool) -> None:
    """One process of two: trains each case, and writes what came of it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        found = {case: trained(case, sharded=sharded) for case in CASES}
        (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    finally:
        distributed.destroy_process_group()
