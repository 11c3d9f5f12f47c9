"""What the events add up to: pure functions from the log to updates, names and moves.

Those that take `before` go on from what the events before added up to, and change nothing of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import Any, Optional

from selectune.errors import RegistryError
from selectune.registry.blobs import is_digest
from selectune.registry.events import Event
from selectune.registry.marks import tags
from selectune.registry.update import Move, Update

__all__ = ["Stack", "collected", "condemned", "moves", "pointers", "pushed", "references", "stacks", "update_of", "updates"]

Stack = Optional[tuple[str, "Stack"]]  # noqa: UP045 - a type that names itself
"""What a name points to, and the stack of what it pointed to before its promotion; None where there is nothing."""

_NONE: Mapping[str, Any] = MappingProxyType({})
_MOVES = ("promote", "revert")
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("base", "child", "skill", "verdict", "delta"), (str,)),
    **dict.fromkeys(("metrics", "records", "meta", "attachments"), (dict,)),
    "parent": (str, NoneType),
    "recipe": (str, dict),
}
_FIELDS = _TYPES.keys()


def updates(events: Sequence[Event]) -> list[Update]:
    """Every update, oldest first, with the names that point to it now, and its tags. Raises RegistryError for one that cannot be read."""
    names, tagged = _by_update(pointers(events)), _by_update(tags(events))
    found: dict[str, Update] = {}
    for event in events:
        subject = event.subject or ""
        # One that was collected and added again has two events of one body.
        if event.kind == "add" and subject not in found:
            try:
                found[subject] = update_of(event, tuple(names.get(subject, ())), tuple(tagged.get(subject, ())))
            except TypeError as error:
                raise RegistryError(str(error), where=f"update {subject[:12]}", then="See what else is wrong: selectune verify") from error
    return list(found.values())


def _by_update(names: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, id_ in names.items():
        found.setdefault(id_, []).append(name)
    return found


def update_of(event: Event, names: tuple[str, ...] = (), tagged: tuple[str, ...] = ()) -> Update:
    """The update that an `add` event holds. Raises TypeError for a body that has other fields; `verify` reports that."""
    body = event.content()
    odd = body.keys() ^ _FIELDS
    if odd:
        raise TypeError(f"event {event.seq} has unknown or missing fields {sorted(odd)}")
    for name, value in body.items():
        if not isinstance(value, _TYPES[name]):
            raise TypeError(f"event {event.seq} has {type(value).__name__} as {name}")
    for name in ("delta", "base", "child"):
        if not is_digest(body[name]):
            raise TypeError(f"event {event.seq} has {body[name][:40]!r} as {name}, which is no sha256")
    for name, value in body["attachments"].items():
        if not isinstance(value, str) or not is_digest(value):
            raise TypeError(f"event {event.seq} has {str(value)[:40]!r} as the file {name[:40]!r}, which is no sha256")
    return Update(**body, id=event.subject or "", actor=event.actor, created=event.utc, names=names, tags=tagged)


def moves(events: Iterable[Event], name: str | None = None) -> list[Move]:
    """Every move of a name (of all names), oldest first."""
    return [_move(event) for event in events if event.kind in _MOVES and (name is None or event.name == name)]


def _move(event: Event) -> Move:
    body = event.content()
    return Move(
        name=event.name or "",
        update=event.subject or "",
        previous=body.get("previous"),
        verdict=body.get("verdict", ""),
        kind=event.kind,
        reason=str(body.get("reason", "")),
        actor=event.actor,
        created=event.utc,
        seq=event.seq,
    )


def pointers(events: Iterable[Event], before: Mapping[str, str] = _NONE) -> dict[str, str]:
    """Where each name points, by name."""
    return dict(sorted({**before, **{event.name or "": event.subject or "" for event in events if event.kind in _MOVES}}.items()))


def collected(events: Iterable[Event], before: Mapping[str, int] = _NONE) -> dict[str, int]:
    """The updates whose objects a `gc` took, each with the number of that event; one that was added again is none of them."""
    gone = dict(before)
    for event in events:
        if event.kind == "gc":
            gone |= {str(id_): event.seq for id_ in _listed(event, "updates")}
        elif event.kind == "add":
            gone.pop(event.subject or "", None)
    return gone


def condemned(events: Iterable[Event]) -> dict[str, int]:
    """The objects that a `gc` said it would take and has not said are gone, each with the number of its event."""
    found: dict[str, int] = {}
    for event in events:
        if event.kind == "gc":
            found |= {str(name): event.seq for field in ("objects", "leftovers") for name in _listed(event, field)}
            done = set(_listed(event, "finished"))
            found = {name: seq for name, seq in found.items() if seq not in done} if done else found
    return found


def references(events: Sequence[Event]) -> dict[str, str]:
    """Every object that the registry needs, by digest: what it is of which update. Those that a `gc` took are not among them.

    Deltas, attached files and snapshots. An update that cannot be read names none; `verify` reports it.
    """
    held: dict[str, dict[str, str]] = {}
    for event in events:
        subject = event.subject or ""
        mine = held.setdefault(subject, {})
        if event.kind == "gc":
            for id_ in _listed(event, "updates"):
                held.pop(str(id_), None)
        elif event.kind == "add":
            try:
                update = update_of(event)
            except TypeError:
                continue
            mine[update.delta] = f"the delta of update {subject[:12]}"
            for name, digest in update.attachments.items():
                mine.setdefault(digest, f"{name} of update {subject[:12]}")
        elif event.kind == "snapshot" and is_digest(digest := str(event.body.get("snapshot"))):
            mine[digest] = f"a snapshot of update {subject[:12]}"
    found: dict[str, str] = {}
    for mine in held.values():
        for digest, why in mine.items():
            found.setdefault(digest, why)
    return found


def _listed(event: Event, field: str) -> Sequence[object]:
    value = event.body.get(field)
    return value if isinstance(value, list) else ()


def pushed(stack: Stack, kind: str, update: str) -> Stack:
    """A name's stack after one more move: a promotion puts an update on it, a revert takes one off."""
    if kind == "promote":
        return update, stack
    return stack[1] if stack else None


def stacks(history: Iterable[Move]) -> Iterator[Stack]:
    """One name's stack after each move."""
    stack: Stack = None
    for move in history:
        stack = pushed(stack, move.kind, move.update)
        yield stack
