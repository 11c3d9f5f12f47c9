"""Law 9: `verify` finds one flipped byte, one missing object, one edited event, a cut tail; two writers adding the same object leave one.

The two writers are in test_registry.py.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delta_fixtures import model_of, quick_disk, step_of, tied
from selectune.registry import Problem, Registry, Update

_EMPTY = {"parent": None, "base": "", "child": "", "skill": "", "recipe": "", "verdict": "", "metrics": {}, "records": {}, "meta": {}}
_BODIES = (
    "[]",
    "{",
    '"x"',
    "{}",
    '{"previous":5}',
    *(
        json.dumps({**_EMPTY, "delta": "", "attachments": {"a": 5}, name: value})
        for name in ("parent", "delta", "metrics")
        for value in (5, [1], "x")
    ),
)

Edit = Callable[[sqlite3.Connection], object]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="registry")
def _registry(tmp_path: Path) -> Registry:
    """Two updates and two moves of a name: five events."""
    registry = Registry.open(tmp_path / "registry", create=True)
    model, parent = model_of(tied()), None
    for number in range(2):
        model, delta = step_of(model, {"o.weight": None}, 0.5)
        delta.save(tmp_path / "x.delta")
        parent = registry.add(Update(parent=parent, skill=f"s{number}"), tmp_path / "x.delta", {"result.json": b"{}"})
        registry.promote(parent, "production", "better", "ann")
    return registry


def _tamper(registry: Registry, edit: Edit) -> None:
    """What an administrator can do: drop the triggers, then change the table."""
    connection = sqlite3.connect(Path(registry.where) / "registry.sqlite")
    connection.execute("PRAGMA synchronous = OFF")
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    edit(connection)
    connection.commit()
    connection.close()


def test_an_untouched_registry_is_whole(registry: Registry) -> None:
    report = registry.verify(registry.head())
    assert report.ok
    assert (report.events, report.updates, report.objects) == (5, 2, 3)


def test_one_flipped_byte_of_any_object_is_found(registry: Registry) -> None:
    for path in sorted((Path(registry.where) / "blobs" / "sha256").iterdir()):
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert registry.verify().problems == (Problem(kind="object", subject=path.name, text="damaged"),)
        path.write_bytes(whole)
    assert registry.verify().ok


def test_one_missing_object_is_found(registry: Registry) -> None:
    for path in sorted((Path(registry.where) / "blobs" / "sha256").iterdir()):
        whole = path.read_bytes()
        path.unlink()
        assert registry.verify().problems == (Problem(kind="object", subject=path.name, text="missing"),)
        path.write_bytes(whole)


@pytest.mark.parametrize("column", ["utc", "actor", "kind", "name", "subject", "body", "prev", "hash"])
@pytest.mark.parametrize("seq", [1, 3, 5])
def test_one_edited_event_is_found_and_named(registry: Registry, seq: int, column: str) -> None:
    value = '{"reason":"edited"}' if column == "body" else "edited"
    _tamper(registry, lambda db: db.execute(f"UPDATE events SET {column} = ? WHERE seq = ?", (value, seq)))
    report = registry.verify()
    assert any(problem.kind == "event" and problem.subject == str(seq) for problem in report.problems)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=st.text(max_size=8) | st.sampled_from([*_BODIES]), seq=st.integers(1, 5))
def test_whatever_is_written_into_an_event_verify_finds_it_and_does_not_fall_over(registry: Registry, body: str, seq: int) -> None:
    kept: list[tuple[str]] = []
    text = body.encode("utf-8", "replace").decode().replace("\0", "")

    def edit(db: sqlite3.Connection) -> None:
        kept.append(db.execute("SELECT body FROM events WHERE seq = ?", (seq,)).fetchone())
        db.execute("UPDATE events SET body = ? WHERE seq = ?", (text, seq))

    _tamper(registry, edit)
    assert any(problem.kind == "event" and problem.subject == str(seq) for problem in registry.verify().problems)
    _tamper(registry, lambda db: db.execute("UPDATE events SET body = ? WHERE seq = ?", (kept[0][0], seq)))
    assert registry.verify().ok


def test_a_removed_event_is_found(registry: Registry) -> None:
    _tamper(registry, lambda db: db.execute("DELETE FROM events WHERE seq = 3"))
    assert any(problem.subject == "4" for problem in registry.verify().problems)


def test_a_cut_tail_is_found_with_a_head_that_was_kept_and_only_with_it(registry: Registry) -> None:
    head = registry.head()
    _tamper(registry, lambda db: db.execute("DELETE FROM events WHERE seq = 5"))
    assert registry.verify().ok
    assert registry.verify(head).problems == (Problem(kind="head", subject="5", text="the log was cut: 4 events are left"),)


def test_a_rewritten_log_is_found_with_a_head_that_was_kept(registry: Registry) -> None:
    head = registry.head()
    _tamper(registry, lambda db: db.execute("DELETE FROM events WHERE seq = 5"))
    registry.promote(registry.log()[0].id, "production", "worse, in truth", "mallory")
    assert registry.verify().ok
    assert any(problem.kind == "head" for problem in registry.verify(head).problems)


def test_an_older_head_lies_on_a_longer_log(registry: Registry) -> None:
    head = registry.head()
    registry.revert("production", "complaints", "ann")
    assert registry.verify(head).ok
