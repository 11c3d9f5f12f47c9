"""Several processes train what one would, within the rounding of sums, and twice the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from selectune.delta import Delta, apply
from selectune.network import parameters
from training_fixtures import tiny_model
from training_processes import CASES, main, measured, trained


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they found of every case."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(main, args=(str(folder), 2, tuple(CASES)), nprocs=2)
    return folder


def _found(folder: Path, case: str, number: int, world: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{case}-{number}-{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case: str, two: Path) -> None:
    number = list(CASES).index(case)
    alone = trained(case)
    first, second = _found(two, case, number, 2)
    assert first == second, "every process has the same child"
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-3)
    models = [tiny_model(CASES[case]["family"]) for _ in range(2)]
    apply(models[0], alone["delta"])
    apply(models[1], Delta.load(two / f"{case}-{number}.delta"))
    for name, value in parameters(models[0].net).items():
        assert torch.allclose(value, parameters(models[1].net)[name], atol=2e-4), name


@pytest.mark.slow
def test_two_processes_measure_what_one_does_bit_for_bit(two: Path) -> None:
    alone = measured()
    assert [json.loads((two / f"measured-{rank}.json").read_text()) for rank in range(2)] == [alone, alone]


SHARDED = tuple(case for case in CASES if case != "adapter")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes, each with a part of the model, left what they found."""
    folder = tmp_path_factory.mktemp("shards")
    torch.multiprocessing.spawn(main, args=(str(folder), 2, SHARDED, True), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARDED)
def test_two_shards_train_what_one_process_does(case: str, shards: Path) -> None:
    number = SHARDED.index(case)
    alone = trained(case)
    first, second = _found(shards, case, number, 2)
    assert first == second
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-3)
    models = [tiny_model(CASES[case]["family"]) for _ in range(2)]
    apply(models[0], alone["delta"])
    apply(models[1], Delta.load(shards / f"{case}-{number}.delta"))
    for name, value in parameters(models[0].net).items():
        assert torch.allclose(value, parameters(models[1].net)[name], atol=2e-4), name


@pytest.mark.slow
def test_four_processes_twice_give_the_same_digest(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(main, args=(str(tmp_path), 4, ("attention", "attention")), nprocs=4)
    found = [*_found(tmp_path, "attention", 0, 4), *_found(tmp_path, "attention", 1, 4)]
    assert len({one["child"] for one in found}) == 1
    assert found[0]["losses"] == pytest.approx(trained("attention")["losses"], rel=1e-4)
