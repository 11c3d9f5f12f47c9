"""The benchmark of maps runs from end to end; its figures are not looked at."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from small import small

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "components.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("components_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_of_maps_runs_and_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _script()
    monkeypatch.setattr(script, "MODELS", {"tiny": lambda: small("mixtral")})
    monkeypatch.setattr(script, "image_text_types", lambda: ("llava",))
    monkeypatch.setattr(script, "causal_types", lambda: ("gpt2", "gemma4_assistant"))
    script.main(["--out", str(tmp_path / "components.json")])
    result = json.loads((tmp_path / "components.json").read_text())
    assert len(result["models"]["tiny"]["rounds"]) == script.ROUNDS
    assert result["models"]["tiny"]["seconds"] > 0
    assert all(0 < share <= 1 for share in result["models"]["tiny"]["shares"].values())
    assert (result["causal"]["types"], result["causal"]["refused"]) == (2, ["gemma4_assistant"])
    assert "tiny" in capsys.readouterr().out
