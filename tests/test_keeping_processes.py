"""What holds old skills over several processes is what it is in one, whole or in shards."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from keeping_processes import CASES, begun, main, trained
from selectune.delta import Delta, apply
from selectune.network import parameters

alone = cache(trained)


def spawned(folder: Path, world: int, *, sharded: bool) -> list[dict[str, Any]]:
    """What each process found."""
    torch.multiprocessing.spawn(main, args=(str(folder), world, sharded), nprocs=world)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def close(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether both took the same steps, but for the rounding of sums."""
    values = [[*kept.values(), norm] for side in (left, right) for kept, norm in zip(side["kept"], side["norms"], strict=True)]
    steps = len(left["norms"])
    return all(values[number] == pytest.approx(values[steps + number], rel=1e-3, abs=1e-6) for number in range(steps))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "sharded"), [(2, False), (2, True), (4, False), (4, True)])
def test_several_processes_keep_what_one_does(world: int, sharded: bool, tmp_path: Path) -> None:
    first, *others = spawned(tmp_path, world, sharded=sharded)
    assert all(other == first for other in others)
    for case in CASES:
        assert [set(kept) for kept in alone(case)["kept"]] == [{"distill", "anchors", "l2sp", "ewc"}] * 4
        assert close(first[case], alone(case)), case
        models = [begun(case)[0] for _ in range(2)]
        apply(models[0], alone(case)["delta"])
        apply(models[1], Delta.load(tmp_path / f"{case}.delta"))
        for name, value in parameters(models[0].net).items():
            assert torch.allclose(value, parameters(models[1].net)[name], atol=2e-4), (case, name)
