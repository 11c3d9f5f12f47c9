"""The benchmark of the registry runs from end to end; its figures are not looked at."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "registry.py"


def test_the_benchmark_of_the_registry_runs_and_says_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("registry_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(["--quick", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["raw_bytes"] == 4 * 64 * 64 * 2
    assert 0 < result["delta_share"] < 1
    assert all(result[name] > 0 for name in ("commit", "apply", "verify"))
    assert {len(found) for found in result["seconds"].values()} == {1}
