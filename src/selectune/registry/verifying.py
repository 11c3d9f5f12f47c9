"""A `verify` that is kept in the log: who looked at what, when, and how much was wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from selectune.errors import VerifyFailed
from selectune.registry.checking import Report
from selectune.registry.events import Event
from selectune.registry.ledger import Ledger
from selectune.registry.marking import note

__all__ = ["Verified", "keep_report", "verified"]

_FAULTS = 100
"""How many of the faults are kept in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was looked at, and what came of it."""

    utc: str
    actor: str
    events: int
    """How many there were."""
    head: str
    """The hash of the last of them."""
    updates: int
    objects: int
    problems: int
    """How much was wrong."""
    signed_head: bool
    """Whether the log was compared with a signed head."""

    def to_json(self) -> dict[str, Any]:
        """As `selectune log --json` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        state = f"{self.problems} problem{'s' * (self.problems != 1)}" if self.problems else "nothing was wrong"
        return f"verified {self.utc} by {self.actor}: {self.events} events, {self.updates} updates, {self.objects} objects, {state}"


def keep_report(ledger: Ledger, report: Report, actor: str, *, signed_head: bool) -> None:
    """Appends what a `verify` found, good or bad. Raises VerifyFailed for a log that was changed, behind which nothing is to be written."""
    if not report.continued:
        raise VerifyFailed(
            "the log itself is not what it says, so nothing is appended to it", where=ledger.where, then="Restore the log from a copy."
        )
    body = {
        "events": report.events,
        "head": report.head.hash,
        "updates": report.updates,
        "objects": report.objects,
        "problems": len(report.problems),
        "faults": [f"{one.kind} {one.subject}: {one.text}"[:1000] for one in report.problems[:_FAULTS]],
        "signed_head": signed_head,
    }
    note(ledger, "verify", None, body, actor)


def verified(event: Event) -> Verified:
    """What a `verify` event says; a number that it does not say is 0."""

    def count(name: str) -> int:
        return found if isinstance(found := event.body.get(name), int) else 0

    return Verified(
        utc=event.utc,
        actor=event.actor,
        events=count("events"),
        head=str(event.body.get("head", "")),
        updates=count("updates"),
        objects=count("objects"),
        problems=count("problems"),
        signed_head=event.body.get("signed_head") is True,
    )
