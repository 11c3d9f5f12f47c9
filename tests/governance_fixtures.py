"""People with keys, a policy, and a registry that follows it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from delta_fixtures import model_of, step_of, tied
from selectune.governance import Envelope, Policy, PrivateKey, Witness, new_key, seal
from selectune.registry import Registry, Update
from selectune.registry.events import GENESIS, Event

NAMES = {"ada": "Ada Admin", "ann": "Ann Author", "ben": "Ben Boss", "cy": "Cy Second", "mallory": "Mallory"}
ROLES = {"ada": ["admin"], "ann": ["author"], "ben": ["approver"], "cy": ["approver", "author"]}


class Clock:
    """A clock that goes a minute on with each look, and can be set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def make_keys(folder: Path) -> dict[str, PrivateKey]:
    """An Ed25519 key for each of `NAMES`."""
    return {who: new_key(who, folder, passphrase=None) for who in NAMES}


def policy_of(keys: dict[str, PrivateKey], previous: Policy | None = None, **changes: Any) -> Policy:
    """Everybody but Mallory; `production` needs one approval of an update that passed."""
    people = [{"name": NAMES[who], "roles": roles, "keys": [keys[who].public.pem]} for who, roles in ROLES.items()]
    text = {"people": people, "names": {"production": {}}, "previous": previous.digest if previous else None, **changes}
    return Policy.model_validate_json(json.dumps(text))


@dataclass
class Governed:
    """A registry of two updates that passed and one that failed, with a policy in force."""

    registry: Registry
    keys: dict[str, PrivateKey]
    clock: Clock
    policy: Policy
    ids: list[str]

    def change(self, **changes: Any) -> Policy:
        """Puts another policy in force, signed by the admin."""
        self.policy = policy_of(self.keys, self.policy, **changes)
        return self.registry.set_policy(seal(self.policy, self.keys["ada"]))

    def submit(self, number: int, who: str = "ann", **more: Any) -> Envelope:
        """The author signs."""
        return self.registry.approve(self.ids[number], self.keys[who], role="author", **more)

    def approve(self, number: int, who: str = "ben", **more: Any) -> Envelope:
        """The approver signs."""
        return self.registry.approve(self.ids[number], self.keys[who], **more)

    def promote(self, number: int, name: str = "production") -> None:
        """The name moves."""
        self.registry.promote(self.ids[number], name, "because", "ann")

    def release(self, number: int) -> None:
        """Author, approver, name."""
        self.submit(number)
        self.approve(number)
        self.promote(number)

    def insert(self, kind: str, envelope: Envelope, subject: str, utc: str | None = None) -> None:
        """What somebody does who may write to the database and keeps the chain whole."""
        event = self.registry._event(kind, "mallory")
        event |= {"subject": subject, "body": {"signed": envelope.to_json()}, "utc": utc or event["utc"]}
        self.registry._log.append(event)

    def witnessed(self, place: str, who: str = "ada") -> Registry:
        """The same registry, with its head kept in a place."""
        return Registry.open(self.registry.where, clock=self.clock, witness=Witness(place=place, key=self.keys[who]))

    def rewrite(self, edit: Callable[[list[dict[str, Any]]], None]) -> None:
        """Edits the events as an administrator of the database can, and computes every hash again; then a program starts that opens it."""
        rewrite(self.registry, edit)
        self.registry = Registry.open(self.registry.where, clock=self.clock)


def governed(folder: Path | str, keys: dict[str, PrivateKey], deltas: list[Path], **changes: Any) -> Governed:
    """A registry with a policy."""
    clock = Clock()
    registry = Registry.open(folder, create=True, clock=clock)
    ids: list[str] = []
    for number, (path, verdict) in enumerate(zip(deltas, ("passed", "passed", "failed"), strict=True)):
        update = Update(parent=ids[-1] if ids else None, skill=f"s{number}", verdict=verdict)
        ids.append(registry.add(update, path, {"measurement.json": b'{"n":%d}' % number}))
    policy = policy_of(keys, **changes)
    registry.set_policy(seal(policy, keys["ada"]))
    return Governed(registry=registry, keys=keys, clock=clock, policy=policy, ids=ids)


def make_deltas(folder: Path) -> list[Path]:
    """Three deltas in sequence."""
    model, paths = model_of(tied()), []
    for number in range(3):
        model, delta = step_of(model, {"o.weight": None}, 0.1 * (number + 1))
        paths.append(folder / f"{number}.delta")
        delta.save(paths[-1])
    return paths


def rewrite(registry: Registry, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    """Drops the triggers, edits the rows, and writes them back with hashes that fit."""
    connection = sqlite3.connect(Path(registry.where) / "registry.sqlite", isolation_level=None)
    connection.row_factory = sqlite3.Row
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    rows = [dict(row) for row in connection.execute("SELECT * FROM events ORDER BY seq")]
    edit(rows)
    connection.execute("DELETE FROM events")
    prev = GENESIS
    for seq, row in enumerate(rows, start=1):
        row |= {"seq": seq, "prev": prev}
        row["hash"] = prev = Event(**{**row, "body": json.loads(row["body"])}).computed_hash()
        connection.execute(f"INSERT INTO events VALUES ({','.join('?' * len(row))})", tuple(row.values()))
    connection.close()
