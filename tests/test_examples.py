"""The examples run, and say what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_a_loop_of_ones_own_learns_and_is_taken_off_again(tmp_path: Path) -> None:
    path = EXAMPLES / "own_loop.py"
    assert len(path.read_text().splitlines()) <= 60
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nothing else did" in done.stdout
    assert "taken off again: True" in done.stdout
    assert (tmp_path / "own-loop.delta").stat().st_size > 0
