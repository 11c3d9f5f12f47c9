"""A registry whose writer is killed at random points is whole, has what was acknowledged, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kill_a_registry.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forks")
def test_a_registry_killed_at_130_random_points_keeps_what_it_said_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(SCRIPT), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    print(done.stdout)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {kind: one["kills"] for kind, one in found.items()} == {"sqlite": 60, "postgresql": 40, "files": 20, "s3": 10}
    for kind, one in found.items():
        assert len(one["hit"]) == (10 if kind == "s3" else 12), (kind, one["hit"])
        assert min(one["hit"].values()) >= 1
        assert sum(one["hit"].values()) == one["kills"]
