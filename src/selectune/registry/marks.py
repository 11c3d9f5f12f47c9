"""What the log says of updates besides names that move: tags, holds, and what was retired. Pure functions from events.

Each goes on from what the events before said, if it is given `before`, and changes nothing of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from selectune.registry.events import Event

__all__ = ["Hold", "Mark", "holds", "marked", "tags"]


_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Something was said of an update, once and for all: that it is retired, or revoked."""

    reason: str
    actor: str
    created: str
    seq: int
    """The event's number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """An update must not be collected before a day is over."""

    until: str
    """The last day of it, as 2027-01-31, in UTC."""
    reason: str
    actor: str
    created: str
    seq: int


def tags(events: Iterable[Event], before: Mapping[str, str] = _NONE) -> dict[str, str]:
    """The update of each tag, by the tag's name. The first event counts: a tag never moves."""
    found = dict(before)
    for event in events:
        if event.kind == "tag" and event.name and event.subject:
            found.setdefault(event.name, event.subject)
    return dict(sorted(found.items()))


def marked(events: Iterable[Event], kind: str, before: Mapping[str, Mark] = _NONE) -> dict[str, Mark]:
    """The updates that an event of this kind names, with the first one of each."""
    found = dict(before)
    for event in events:
        if event.kind == kind and event.subject:
            reason = str(event.body.get("reason", ""))
            found.setdefault(event.subject, Mark(reason=reason, actor=event.actor, created=event.utc, seq=event.seq))
    return found


def holds(events: Iterable[Event], before: Mapping[str, Hold] = _NONE) -> dict[str, Hold]:
    """The hold on each update that lasts longest; a release ends all those before it."""
    found = dict(before)
    for event in events:
        subject = event.subject or ""
        if event.kind == "release":
            found.pop(subject, None)
        elif event.kind == "hold":
            body = event.content()
            until = body.get("until")
            if isinstance(until, str) and (subject not in found or until > found[subject].until):
                reason = str(body.get("reason", ""))
                found[subject] = Hold(until=until, reason=reason, actor=event.actor, created=event.utc, seq=event.seq)
    return found
