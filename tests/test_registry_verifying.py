"""A verify that is kept in the log, and how many updates `log` shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from delta_fixtures import quick_disk
from governance_fixtures import Governed, governed
from remotes_fixtures import filled
from selectune.cli import app
from selectune.errors import VerifyFailed
from selectune.governance import PrivateKey
from selectune.registry import Registry
from selectune.registry.kinds import check_event


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


def run(place: str | Path, *words: str) -> Any:
    """A verb with --json: its exit code and its document."""
    result = CliRunner().invoke(app, [*words, "--json", "--registry", str(place)])
    return result.exit_code, json.loads(result.stdout)


def shown(place: str | Path, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--registry", str(place)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_verify_is_kept_in_the_log_with_what_was_looked_at(place: str, deltas: list[Path]) -> None:
    registry = Registry.open(place, create=True)
    filled(registry, deltas)
    assert registry.verifications() == []
    head = registry.head()
    code, document = run(place, "verify", "--record", "--actor", "zoe")
    assert (code, document["ok"], document["recorded"]) == (0, True, True)
    event = Registry.open(place)._log.read()[-1]
    check_event(event, "log")
    assert (event.kind, event.actor, event.subject) == ("verify", "zoe", None)
    assert event.body == {"events": 5, "head": head.hash, "updates": 3, "objects": 6, "problems": 0, "faults": [], "signed_head": False}
    said = run(place, "log")[1]["verified"]
    assert [(one["actor"], one["events"], one["head"], one["problems"]) for one in said] == [("zoe", 5, head.hash, 0)]
    assert f"verified {event.utc} by zoe: 5 events, 3 updates, 6 objects, nothing was wrong" in shown(place, "log")
    assert run(place, "verify")[1]["recorded"] is False
    assert Registry.open(place).head().count == 6, "nobody asked to keep that one"


def test_a_verify_that_failed_is_kept_as_one(place: str, deltas: list[Path]) -> None:
    registry = Registry.open(place, create=True)
    ids = filled(registry, deltas)
    lost = registry.show(ids[0]).attachments["result.json"]
    registry._blobs.delete(lost)
    code, document = run(place, "verify", "--record")
    assert (code, document["ok"], document["recorded"]) == (1, False, True)
    (kept,) = Registry.open(place).verifications()
    assert (kept.problems, str(kept).endswith("6 objects, 1 problem")) == (1, True)
    assert registry._log.read()[-1].body["faults"] == [f"object {lost}: missing"]


def test_nothing_is_appended_to_a_log_that_was_edited(tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path]) -> None:
    made = governed(tmp_path / "registry", keys, deltas)
    path = tmp_path / "registry" / "registry.sqlite"
    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("UPDATE events SET actor = 'mallory' WHERE seq = 2")
    connection.close()
    code, document = run(tmp_path / "registry", "verify", "--record")
    assert (code, document["recorded"], [one["subject"] for one in document["problems"] if one["kind"] == "event"]) == (1, False, ["2"])
    registry = Registry.open(tmp_path / "registry", clock=made.clock)
    assert registry.verifications() == []
    with pytest.raises(VerifyFailed, match="nothing is appended to it"):
        registry.keep_report(registry.verify(), "zoe")


def test_a_verify_against_a_signed_head_says_so(
    tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Governed = governed(tmp_path / "registry", keys, deltas)
    head = tmp_path / "head.json"
    made.witnessed(str(head)).promote(made.ids[0], "candidate", "why", "ann")
    code, _ = run(tmp_path / "registry", "verify", "--head", str(head), "--record")
    assert code == 0
    (kept,) = made.registry.verifications()
    assert kept.signed_head
    assert kept.events == 6


def test_a_folder_has_no_log_to_keep_a_verify_in(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tmp_path), "--signature", "x", "--key", "y", "--record"])
    assert result.exit_code == 2
    assert "a folder has no log" in " ".join(result.stderr.split())


def test_log_shows_as_many_updates_as_it_is_asked_for_and_says_how_many_more_there_are(tmp_path: Path, deltas: list[Path]) -> None:
    place = tmp_path / "registry"
    ids = filled(Registry.open(place, create=True), deltas)

    def lines(*words: str) -> tuple[list[str], str]:
        text = shown(place, "log", *words)
        return [id_ for id_ in ids[::-1] if f"skill-{ids.index(id_)}" in text], text

    assert lines()[0] == ids[::-1]
    newest, text = lines("--limit", "1")
    assert (newest, "2 more: --all, or --limit N" in text) == ([ids[2]], True)
    everything, text = lines("--limit", "1", "--all")
    assert (everything, "more:" in text) == (ids[::-1], False)
    older, text = lines(ids[1], "--limit", "1")
    assert (older, "1 more: --all" in text) == ([ids[1]], True)
    assert [one["id"] for one in run(place, "log", "--limit", "1")[1]["updates"]] == ids[::-1], "JSON has all"
    assert CliRunner().invoke(app, ["log", "--limit", "0", "--registry", str(place)]).exit_code == 2
