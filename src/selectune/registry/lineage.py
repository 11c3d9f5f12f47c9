"""What the events add up to: pure functions from the log to updates, names and moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType

from selectune.errors import RegistryError
from selectune.registry.blobs import is_digest
from selectune.registry.events import Event
from selectune.registry.marks import tags
from selectune.registry.update import Move, Update

__all__ = ["collected", "condemned", "moves", "pointers", "references", "stacks", "targets", "update_of", "updates"]

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
    odd = event.body.keys() ^ _FIELDS
    if odd:
        raise TypeError(f"event {event.seq} has unknown or missing fields {sorted(odd)}")
    for name, value in event.body.items():
        if not isinstance(value, _TYPES[name]):
            raise TypeError(f"event {event.seq} has {type(value).__name__} as {name}")
    for name in ("delta", "base", "child"):
        if not is_digest(event.body[name]):
            raise TypeError(f"event {event.seq} has {event.body[name][:40]!r} as {name}, which is no sha256")
    for name, value in event.body["attachments"].items():
        if not isinstance(value, str) or not is_digest(value):
            raise TypeError(f"event {event.seq} has {str(value)[:40]!r} as the file {name[:40]!r}, which is no sha256")
    return Update(**event.body, id=event.subject or "", actor=event.actor, created=event.utc, names=names, tags=tagged)


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


def collected(events: Iterable[Event]) -> dict[str, int]:
    """The updates whose objects a `gc` took, each with the number of that event; one that was added again is none of them."""
    gone: dict[str, int] = {}
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


def targets(history: Iterable[Move]) -> list[str]:
    """One name's targets as a stack, the current one last: a promotion puts one on, a revert takes one off."""
    last = deque(stacks(history), maxlen=1)
    return last[0] if last else []


def stacks(history: Iterable[Move]) -> Iterator[list[str]]:
    """`targets` after each move: the same list each time, to be read before the next."""
    stack: list[str] = []
    for move in history:
        if move.kind == "promote":
            stack.append(move.update)
        elif stack:
            stack.pop()
        yield stack
