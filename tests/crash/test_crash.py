"""A run that is killed at fifty random points, told to stop, and left without room comes out as one that nobody touched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE / "kill_and_resume.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forks")
def test_a_run_killed_at_fifty_random_points_is_the_run_that_nobody_touched() -> None:
    # Not pytest's own folder: one that a user who is not root can look into.
    with tempfile.TemporaryDirectory(prefix="selectune-crash-") as folder:
        Path(folder).chmod(0o755)
        kill_and_resume(Path(folder) / "crash")


def kill_and_resume(folder: Path) -> None:
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder), "--kills", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    print(done.stdout)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == len(found["points"]) == 50
    assert found["sigterm"] >= 5
    assert found["disks"]["quota"] == 3
    if os.getuid() == 0 and found["disks"]["disk"]:
        assert found["disks"]["read-only at once"] >= 1
    assert len(found["refused"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forks")
def test_a_process_that_dies_ends_the_others_with_one_error_and_all_go_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "lose_a_process.py"), str(tmp_path / "lost")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["straight"]["codes"] == found["again"]["codes"] == [0, 0]
        assert found["again"]["said"] == found["straight"]["said"], kind
        for name, steps, patience in (("lost", 3, 0.0), ("still", 5, 8.0)):
            one = found[name]
            assert one["codes"] == [1, -9], (kind, name, one)
            survivor = one["said"][0]
            assert survivor.startswith("ProcessLost: training: another process of this training is gone or does not answer"), kind
            assert f", after {steps} of 6 steps. Look at the end of its own messages, and start all of them again" in survivor, survivor
            assert re.search(r"with the same recipe: resume .*checkpoints-(True|False)\.$", survivor), survivor
            assert one["seconds"] < patience + 40, "it ends by itself, and soon"
            assert all("process-2-of-2/.partial-" in path for path in one["torn"]), "what the dead one was writing is no checkpoint"
        assert found["again"]["torn"] == [], "and is taken away"
