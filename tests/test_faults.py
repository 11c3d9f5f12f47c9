"""The points at which a test can kill the process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import selectune
from selectune.errors import InputError
from selectune.faults import KILL_AT, passed, reach


@pytest.fixture(autouse=True)
def _uncounted() -> None:
    passed.clear()


def killed(value: str) -> subprocess.CompletedProcess[str]:
    """A process that passes one point three times and another once, and says what it has behind it."""
    code = "from selectune.faults import reach\nfor point in ('a.b', 'c.d', 'a.b', 'a.b'):\n  reach(point); print(point, flush=True)"
    return subprocess.run([sys.executable, "-c", code], env={KILL_AT: value}, capture_output=True, text=True, check=False)


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KILL_AT, raising=False)
    reach("event.committed")
    assert not passed, "and nothing is counted"


@pytest.mark.parametrize(("value", "before"), [("a.b:1", ""), ("a.b:2", "a.b c.d"), ("a.b:3", "a.b c.d a.b"), ("c.d:1", "a.b")])
def test_the_passing_that_is_named_kills(value: str, before: str) -> None:
    done = killed(value)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, before.split())


@pytest.mark.parametrize("value", ["a.b:4", "c.d:2", "a.bc:1"])
def test_a_passing_that_does_not_come_kills_nobody(value: str) -> None:
    assert killed(value).returncode == 0


@pytest.mark.parametrize("value", ["", "a.b", "a.b:", "a.b:0", "a.b:-1", "a.b:01", "a.b:x", "a.b:1 ", "a.b:1\n", ":1", "a:1", "a.b:\u0661"])
def test_a_value_that_names_no_passing_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KILL_AT, value)
    with pytest.raises(InputError, match="is no passing of a point"):
        reach("a.b")


def test_every_point_of_the_source_is_one_at_which_the_registry_is_killed() -> None:
    source = (path.read_text(encoding="utf-8") for path in Path(selectune.__file__).parent.rglob("*.py"))
    found = {point for text in source for point in re.findall(r'\breach\("([^"]*)"\)', text)}
    script = Path(__file__).parent / "crash" / "kill_a_registry.py"
    (listed,) = re.findall(r"POINTS = \((.*?)\)", script.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found == set(re.findall(r'"([^"]*)"', listed))
