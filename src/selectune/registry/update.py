"""What the registry records: updates, and moves of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from selectune.errors import RegistryError
from selectune.hashing import digest

__all__ = ["Move", "Update", "check_name"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}\Z")
_HEX = re.compile(r"[0-9a-f]{4,64}\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One step of a model's life: the delta, how it came about, and what the gate said. The registry fills in the rest."""

    parent: str | None = None
    """The update before, or None for the first after the base model."""
    base: str = ""
    """The id of the model that the delta applies to; taken from the delta."""
    child: str = ""
    """The id of the model that results; taken from the delta."""
    skill: str = ""
    """What was taught."""
    recipe: Mapping[str, Any] | str = ""
    """The recipe as a mapping, or its name or digest."""
    verdict: str = ""
    """passed, failed or undecided; empty where no gate was asked."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    records: Mapping[str, Any] = field(default_factory=dict)
    """Digests and counts of the data; never the data."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    delta: str = ""
    """sha256 of the delta's file, under which the registry keeps it."""
    attachments: Mapping[str, str] = field(default_factory=dict)
    """Name of each attached file to the sha256 of its bytes."""
    actor: str = ""
    """Who added it."""
    created: str = ""
    """When it was added, UTC, as 2026-11-24T13:05:00Z."""
    names: tuple[str, ...] = ()
    """The names that point to it now."""
    tags: tuple[str, ...] = ()
    """The names that are its own for good."""
    id: str = ""
    """64 hex digits: ``digest("update", …)`` of everything above but actor, created, names and tags, so adding it twice gives one."""

    def body(self) -> dict[str, Any]:
        """What the id is the digest of, as JSON."""
        return {
            "parent": self.parent,
            "base": self.base,
            "child": self.child,
            "skill": self.skill,
            "recipe": dict(self.recipe) if isinstance(self.recipe, Mapping) else self.recipe,
            "verdict": self.verdict,
            "metrics": dict(self.metrics),
            "records": dict(self.records),
            "meta": dict(self.meta),
            "delta": self.delta,
            "attachments": dict(self.attachments),
        }

    def computed_id(self) -> str:
        """The id that the body has. Raises InputError where the body has no canonical JSON."""
        return digest("update", self.body())

    def to_json(self) -> dict[str, Any]:
        """The update as `log --json` and `show --json` print it."""
        return {
            "id": self.id,
            **self.body(),
            "created": self.created,
            "actor": self.actor,
            "names": list(self.names),
            "tags": list(self.tags),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A name was pointed to an update."""

    name: str
    update: str
    """Where it points from then on."""
    previous: str | None
    """Where it pointed before."""
    kind: str
    """promote or revert."""
    reason: str
    actor: str
    created: str
    seq: int
    """The event's number."""
    verdict: str = ""
    """What the gate had said of the update that the name now points to; kept so that a promotion against it stays visible."""

    def to_json(self) -> dict[str, Any]:
        """The move as JSON."""
        return asdict(self)


def check_name(name: str) -> str:
    """The name itself. Raises RegistryError for one that could be an id, or would be hard to type or print."""
    if not _NAME.match(name) or _HEX.match(name):
        raise RegistryError(
            f"{name[:100]!r} cannot be a name",
            then="Use a letter, then letters, digits, `_`, `.` or `-`, at most 100, and not only the digits 0-9 and a-f.",
        )
    return name


def check_attachment(name: str) -> str:
    """The name itself. Raises RegistryError for one that is no plain file name."""
    if not _NAME.match(name):
        raise RegistryError(f"{name[:100]!r} cannot be the name of an attachment", then="Use a plain file name such as result.json.")
    return name
