"""What the events add up to: pure functions from the log to updates, names and moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType

from selectune.registry.events import Event
from selectune.registry.update import Move, Update

__all__ = ["moves", "pointers", "targets", "update_of", "updates"]

_MOVES = ("promote", "revert")
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("base", "child", "skill", "verdict", "delta"), (str,)),
    **dict.fromkeys(("metrics", "records", "meta", "attachments"), (dict,)),
    "parent": (str, NoneType),
    "recipe": (str, dict),
}
_FIELDS = _TYPES.keys()


def updates(events: Sequence[Event]) -> list[Update]:
    """Every update, oldest first, with the names that point to it now."""
    current = pointers(events)
    return [
        update_of(event, tuple(name for name, id_ in current.items() if id_ == event.subject)) for event in events if event.kind == "add"
    ]


def update_of(event: Event, names: tuple[str, ...] = ()) -> Update:
    """The update that an `add` event holds. Raises TypeError for a body that has other fields; `verify` reports that."""
    odd = event.body.keys() ^ _FIELDS
    if odd:
        raise TypeError(f"event {event.seq} has unknown or missing fields {sorted(odd)}")
    for name, value in event.body.items():
        if not isinstance(value, _TYPES[name]):
            raise TypeError(f"event {event.seq} has {type(value).__name__} as {name}")
    return Update(**event.body, id=event.subject or "", actor=event.actor, created=event.utc, names=names)


def moves(events: Iterable[Event], name: str | None = None) -> list[Move]:
    """Every move of a name (of all names), oldest first."""
    return [
        Move(
            name=event.name or "",
            update=event.subject or "",
            previous=event.body.get("previous"),
            verdict=event.body.get("verdict", ""),
            kind=event.kind,
            reason=str(event.body.get("reason", "")),
            actor=event.actor,
            created=event.utc,
            seq=event.seq,
        )
        for event in events
        if event.kind in _MOVES and (name is None or event.name == name)
    ]


def pointers(events: Iterable[Event]) -> dict[str, str]:
    """Where each name points, by name."""
    return dict(sorted((move.name, move.update) for move in {move.name: move for move in moves(events)}.values()))


def targets(history: Iterable[Move]) -> list[str]:
    """One name's targets as a stack, the current one last: a promotion puts one on, a revert takes one off."""
    stack: list[str] = []
    for move in history:
        if move.kind == "promote":
            stack.append(move.update)
        elif stack:
            stack.pop()
    return stack
