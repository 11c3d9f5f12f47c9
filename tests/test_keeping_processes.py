"""What holds old skills over two processes is what it is in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from keeping_fixtures import keeping, renamed
from keeping_processes import CASES, main, trained
from selectune.training import train
from training_fixtures import examples, optim, tiny_model


def spawned(folder: Path, *, sharded: bool) -> list[dict[str, Any]]:
    """What two processes found."""
    torch.multiprocessing.spawn(main, args=(str(folder), sharded), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def close(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether both took the same steps, but for the rounding of sums."""
    values = [[*kept.values(), norm] for side in (left, right) for kept, norm in zip(side["kept"], side["norms"], strict=True)]
    steps = len(left["norms"])
    return all(values[number] == pytest.approx(values[steps + number], rel=1e-3, abs=1e-6) for number in range(steps))


@pytest.mark.slow
def test_two_processes_keep_what_one_does(tmp_path: Path) -> None:
    first, second = spawned(tmp_path, sharded=False)
    assert first == second
    for case in CASES:
        alone = trained(case)
        assert [set(kept) for kept in alone["kept"]] == [{"distill", "anchors", "l2sp", "ewc"}] * 4
        assert close(first[case], alone)


@pytest.mark.slow
def test_shards_are_pulled_and_replayed_and_other_terms_are_refused_with_the_reason(tmp_path: Path) -> None:
    first, second = spawned(tmp_path, sharded=True)
    assert first == second
    model = tiny_model("llama")
    old = renamed(examples(5, pictures=False), "old ")
    given = keeping({"l2sp": 0.05, "replay": {"share": 0.25}}, replay={"earlier": old})
    alone = train(model, model.map.select(("attention",)), examples(pictures=False), optim(lr=1e-3, eps=1e-3), keeping=given)
    for found in first.values():
        assert "need each process to hold the selection whole, and it is sharded" in found["refused"]
        assert close(found, {"kept": [step.kept for step in alone.steps], "norms": [step.grad_norm for step in alone.steps]})
