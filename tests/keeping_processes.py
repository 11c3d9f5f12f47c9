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
from selectune.delta import Snapshot, snapshot
from selectune.hashing import manifest
from selectune.models import Model
from selectune.network import parameters
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
    "portions": {},
    "base": {"distill": {"teacher": "base"}, "anchors": {"data": "x", "batch": 3, "teacher": "base"}},
    "slices": {},
}
SETTINGS: dict[str, dict[str, Any]] = {"portions": {"micro_batch": 1, "batch": 3}}
FAMILIES = {"slices": "phi3"}
PATTERNS = {"slices": ("language.layers.*.attn.q", "gate-and-up")}


def begun(case: str) -> tuple[Model, Snapshot | None]:
    """The model that a case trains; for `base` it is already another one than the base, which is given beside it."""
    model = tiny_model(FAMILIES.get(case, "llama"))
    if case != "base":
        return model, None
    before = snapshot(model, model.map.select(("attention",)))
    found = parameters(model.net)
    with torch.no_grad():
        for name in model.map.select(("attention",)).parameters:
            found[name].mul_(1.1)
    return model.updated(manifest(model.net)), before


def trained(case: str, *, sharded: bool = False) -> dict[str, Any]:
    """The case trained in this process, or in the group that it belongs to, where the model may be sharded."""
    model, base = begun(case)
    old = renamed(examples(5, pictures=False), "old ")
    given = keeping({**TERMS, **CASES[case]}, ewc=old[:3], replay={"earlier": old}, anchors=old, base=base)
    if sharded:
        model = shard(model)
    settings = optim(lr=1e-3, eps=1e-3, **SETTINGS.get(case, {}))
    done = train(model, model.map.select(PATTERNS.get(case, ("attention",))), examples(pictures=False), settings, keeping=given)
    return {
        "child": done.delta.child,
        "kept": [dict(step.kept) for step in done.steps],
        "norms": [s.grad_norm for s in done.steps],
        "delta": done.delta,
    }


def main(rank: int, folder: str, world: int, sharded: bool) -> None:
    """One process of `world`: trains each case, and writes what came of it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        found = {case: trained(case, sharded=sharded) for case in CASES}
        for case, one in found.items():
            delta = one.pop("delta")
            if rank == 0:
                delta.save(Path(folder) / f"{case}.delta")
        (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    finally:
        distributed.destroy_process_group()
