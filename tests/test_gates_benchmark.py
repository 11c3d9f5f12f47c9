"""The simulation of the sequential gate runs from end to end, and what it quotes holds at its small size too."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from selectune.statistics import betting

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gates.py"


def test_the_sequential_gate_asks_at_most_two_fifths_of_the_items_at_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("gates_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    ours = "mixture of 16 even stakes"
    monkeypatch.setattr(script, "MARGINS", (script.GATE_MARGIN,))
    monkeypatch.setattr(script, "METHODS", {name: script.METHODS[name] for name in (ours, "online Newton, up to half")})
    script.main(["--runs", "150", "--out", str(tmp_path / "gates.json")])
    line = json.loads((tmp_path / "gates.json").read_text())["summary"]["methods"][ours]
    assert max(line["harmless, worst"], line["plainly harmful"]) <= script.GOAL
    assert line["error"] <= 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5
    recorded = json.loads((SCRIPT.parent / "results" / "gates.json").read_text())
    assert recorded["summary"]["met"]
    row = script.drawn(1, 0.06, 0.0, 0)[0]
    capital = script.METHODS[ours](np.array([row]) + 0.05, 0.95)[0]
    found = betting(row, 0.05)
    assert found.stopped_at == int(np.argmax(capital >= np.log(20))) + 1
