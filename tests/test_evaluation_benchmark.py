"""The benchmark's script runs from end to end on a tiny model; its figures are not looked at, its answers are compared by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from test_training_benchmark import call


@pytest.mark.slow
def test_the_benchmark_of_measuring_runs_and_writes_its_ratios(tmp_path: Path) -> None:
    out = tmp_path / "evaluate.json"
    short = ("--races", "tiny-qwen", "--stages", "", "--rounds", "1", "--samples", "12", "--some", "4", "--batch", "4")
    assert call("evaluate.py", *short, "--out", str(out), folder=tmp_path) == ""
    result = json.loads(out.read_text())
    assert result["ratios"].keys() == {f"tiny-qwen: {mine}/{other}" for mine in ("first", "ours", "wide") for other in ("lmms", "loop")}
    assert all(value > 0 for value in result["samples_per_s"]["tiny-qwen"].values())
    assert json.loads(call("evaluate.py", *short, "--quick", "--json", folder=tmp_path))["rounds"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["evaluate.json"]
