"""The newest updates of a long log are read without the rest of it, whichever kind of log it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from selectune.registry.database import sqlite_url
from selectune.registry.events import Log
from selectune.registry.objects import ObjectLog
from selectune.registry.shelves import FolderShelf
from selectune.registry.store import EventLog


def said(kind: str, subject: str | None = None, name: str | None = None) -> dict[str, object]:
    return {"utc": "2026-11-24T13:05:00Z", "actor": "a", "kind": kind, "name": name, "subject": subject, "body": {}}


@pytest.fixture(params=["database", "objects"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> EventLog:
    made: EventLog = (
        Log(sqlite_url(tmp_path / "log.sqlite", create=True))
        if request.param == "database"
        else ObjectLog(FolderShelf(tmp_path / "events"))
    )
    made.create(said("create"))
    for kind, subject in (("add", "a"), ("snapshot", "a"), ("add", "b"), ("look", "m"), ("promote", "a"), ("add", "c"), ("add", "a")):
        made.append(said(kind, subject, "production" if kind == "promote" else None))
    return made


def test_the_newest_updates_come_with_every_move_and_the_count_of_all(log: EventLog) -> None:
    found, count = log.recent(2)
    assert [(event.kind, event.subject) for event in found] == [("create", None), ("add", "b"), ("promote", "a"), ("add", "c")]
    assert count == 3


def test_an_update_that_was_added_again_counts_once_and_where_it_came_first(log: EventLog) -> None:
    found, count = log.recent(9)
    assert [event.subject for event in found if event.kind == "add"] == ["a", "b", "c"]
    assert count == 3
