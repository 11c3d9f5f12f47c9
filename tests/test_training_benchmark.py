"""The benchmark's script runs from end to end on a tiny model; its figures are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_training_benchmark_runs_and_writes_its_ratios(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "train.py"), "--model", "tiny", "--steps", "2", "--rounds", "1", "--batch", "4"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert result["ratios"].keys() == {f"{mine}/{other}" for mine in ("ours", "compiled") for other in ("plain", "hf", "trl")}
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in result["seconds_per_step"].values())
    assert result["trained"] > 0
    assert result["required_flops_per_step"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]
