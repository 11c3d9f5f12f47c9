"""The benchmarks' scripts run from end to end on a tiny model; their figures are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(script: str, *arguments: str, folder: Path) -> str:
    """What a script prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_training_benchmark_runs_and_writes_its_ratios(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    short = ("--model", "tiny", "--steps", "2", "--rounds", "1", "--batch", "4", "--select", "attention,language")
    assert call("train.py", *short, "--out", str(out), folder=tmp_path) == ""
    result = json.loads(out.read_text())
    others = ("trl", "hf", "plain")
    expected = {f"{name}{epoch}/{other}" for name in ("attention", "language") for epoch in ("", "-first-epoch") for other in others}
    expected |= {f"attention-lora/{other}" for other in (*others, "peft")} | {"attention/peft"}
    assert result["ratios"].keys() == expected
    assert all(len(rounds) == 1 and rounds[0] > 0 for arms in result["seconds_per_step"].values() for rounds in arms.values())
    assert result["trained"]["language"] > result["trained"]["attention"] > 0
    for key in ("samples_per_s", "gemm_share", "memory_over_floor", "checkpoint_share"):
        assert result[key].keys() == {"attention", "language"}
    assert all(work["total"] > work["forward"] > 0 for work in result["required_per_step"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


@pytest.mark.slow
def test_a_quick_training_benchmark_prints_one_json_document_and_writes_nothing(tmp_path: Path) -> None:
    short = (
        "--quick",
        "--json",
        "--model",
        "tiny",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--batch",
        "4",
        "--select",
        "upper-attention",
        "--no-memory",
    )
    result = json.loads(call("train.py", *short, folder=tmp_path))
    assert {"machine", "dtype", "samples_per_s", "ratios", "gemm_share", "memory_over_floor"} <= result.keys()
    assert result["ratios"].keys() == {"upper-attention/trl", "upper-attention-first-epoch/trl"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_what_there_is_and_says_where_there_is_no_gpu(tmp_path: Path) -> None:
    import torch

    out = tmp_path / "gpu.json"
    if not torch.cuda.is_available():
        assert "no GPU here" in call("gpu.py", "--out", str(out), folder=tmp_path)
        assert not out.exists()
    short = (
        "--tiny",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--batch",
        "4",
        "--words",
        "8",
        "--select",
        "attention",
        "--arms",
        "first,ours,plain,trl",
    )
    call("gpu.py", *short, "--out", str(out), folder=tmp_path)
    result = json.loads(out.read_text())
    assert {"attention/plain", "attention/trl", "attention-first-epoch/plain"} <= result["ratios"].keys()
    assert result["memory"]["attention"]["forecast"] > 0


@pytest.mark.slow
def test_the_sweep_measures_each_side_and_draws_it(tmp_path: Path) -> None:
    out, svg = tmp_path / "sweep.json", tmp_path / "speed.svg"
    short = ("--model", "tiny", "--rounds", "1", "--lengths", "16", "24", "--batches", "4", "8", "--layers", "1", "2", "--rows", "4")
    call("sweep.py", *short, "--out", str(out), "--svg", str(svg), folder=tmp_path)
    result = json.loads(out.read_text())
    assert [row["value"] for row in result["length"]] == [16, 24]
    assert [row["value"] for row in result["layers"]] == [1, 2]
    assert svg.read_text().count("<polyline") == 6
    call("sweep.py", "--plot", "--out", str(out), "--svg", str(tmp_path / "again.svg"), folder=tmp_path)
    assert (tmp_path / "again.svg").read_text() == svg.read_text()
