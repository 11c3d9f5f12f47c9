"""What each of two processes does in the tests of wrappers; a module of its own, since a spawned process imports it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from conftest import tiny_model
from selectune.components import map_model
from selectune.delta import capture
from selectune.errors import SelectionViolated
from selectune.hashing import manifest

PATTERNS = ("language.layers.0.attn.q", "language.layers.1.attn.o", "gate-and-up")
ROWS = torch.tensor([[1, 2, 3, 4, 5], [5, 6, 7, 8, 9]])


def main(rank: int, folder: str, kind: str) -> None:
    """Joins the group, wraps a tiny model in `kind`, checks map, identity and proof, and saves the delta (first process)."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        _check(rank, Path(folder), kind)
        distributed.barrier()  # gloo aborts a process whose neighbour leaves in the middle of a message
    finally:
        distributed.destroy_process_group()


def _check(rank: int, folder: Path, kind: str) -> None:
    plain = tiny_model("phi3")
    net = tiny_model("phi3")
    wrapped: Any = net
    if kind == "fsdp":
        wrapped = _sharded(net)
    assert map_model(wrapped, "m").components == map_model(plain, "m").components
    assert manifest(wrapped if kind == "fsdp" else net).id == manifest(plain).id
    selection = map_model(wrapped, "m").select(PATTERNS)
    with capture(wrapped, selection) as captured:
        if kind == "ddp":
            wrapped = torch.nn.parallel.DistributedDataParallel(net)
            assert map_model(wrapped, "m").components == map_model(plain, "m").components
        _train(wrapped, rank)
    if rank == 0:
        captured.delta.save(folder / "update.delta")
    ids: list[Any] = [None, None]
    distributed.all_gather_object(ids, captured.delta.child)
    assert ids[0] == ids[1], "both processes see the same child"
    _violated(wrapped)


def _sharded(net: Any) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in net.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def _train(net: Any, rank: int) -> None:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(3):
        net(input_ids=ROWS[rank : rank + 1], labels=ROWS[rank : rank + 1]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _violated(net: Any) -> None:
    """The proof can fail here too."""
    selection = map_model(net, "m").select(("language.layers.0.attn.q",))
    try:
        with capture(net, selection, still="report"), torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith("layers.1.mlp.down_proj.weight"):
                    parameter.add_(1.0)
    except SelectionViolated:
        return
    raise AssertionError("a moved tensor outside the selection was not seen")
