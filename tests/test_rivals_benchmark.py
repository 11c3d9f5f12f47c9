"""The benchmark beside other tools runs from end to end on a toy; its seconds are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "rivals.py"
TOOLS = ("MLflow", "Git LFS", "git-theta")
"""May be missing where the tests run."""


@pytest.fixture(name="result", scope="module")
def _result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rivals")
    command = [sys.executable, str(SCRIPT), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(folder.iterdir()) == []
    found: dict[str, Any] = json.loads(done.stdout)
    return found


pytestmark = pytest.mark.slow


def test_a_real_update_is_weighed_at_both_rates_and_after_more_steps(result: dict[str, Any]) -> None:
    skills = {name: [row["skill"] for row in rows] for name, rows in result["updates"].items()}
    assert skills == {"0.001": ["first", "second"], "0.01": ["first", "second"], "0.001, 6 steps": ["first"]}
    for rows in result["updates"].values():
        for row in rows:
            assert row["of_selection"] == row["bytes"] / row["raw_bytes"]
            assert 0 < row["moved"] <= 1
            assert row["steps"] > 0


def test_the_share_of_a_7b_is_that_of_its_attention(result: dict[str, Any]) -> None:
    for name, share in result["of_selection"].items():
        found = result["shape"][name]
        # 28 layers; q and o are 3584 x 3584, k and v 512 x 3584; q, k and v have a bias.
        assert found["attention"] == 28 * (2 * 3584 * 3584 + 2 * 512 * 3584 + 3584 + 2 * 512)
        assert found["elements"] > 8e9
        assert found["of_7b"] == pytest.approx(share * found["attention"] / found["elements"])


def test_every_store_gives_back_what_it_was_given_or_is_left_out_by_name(result: dict[str, Any]) -> None:
    stores = result["history"]["stores"]
    assert set(stores) == {"selectune", "selectune import", "plain copy", *TOOLS}
    for name, row in stores.items():
        if "skipped" in row:
            assert name in TOOLS
            assert "not" in row["skipped"]
            continue
        assert row["settings"]
        assert [len(rounds) for rounds in row["commit"]] == [1, 1, 1]
        assert row["bytes"] == sorted(row["bytes"])
        if name != "git-theta":
            assert row["medians"]["exact"], name


def test_ours_notices_a_flipped_bit_and_refuses_to_load_it(result: dict[str, Any]) -> None:
    stores = result["history"]["stores"]
    for name in ("selectune", "selectune import"):
        assert stores[name]["damaged"]["check"] == "noticed"
        assert stores[name]["damaged"]["restore"].startswith("refused: ObjectDamaged")
    assert stores["plain copy"]["damaged"] == {"check": "has none", "restore": "given out, 1 tensors differing"}
