"""`verify`: is the registry what its hashes say?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from selectune.delta.format import Delta
from selectune.errors import RevokedKey, SelectuneError, Untrusted, VerifyFailed
from selectune.governance.documents import at
from selectune.governance.policy import Policy
from selectune.registry.blobs import Blobs
from selectune.registry.events import GENESIS, Event, Head
from selectune.registry.lineage import moves, targets, update_of
from selectune.registry.standing import Standing, standing
from selectune.registry.update import Update

__all__ = ["Problem", "Report", "check", "check_chain", "demand"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is not as it was written."""

    kind: str
    """event, update, name, object, head, policy, approve or revoke."""
    subject: str
    """The event's number, the update's or the object's id, the name."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `verify` looked at, and what it found."""

    events: int
    updates: int
    objects: int
    """Objects that updates refer to, each hashed."""
    problems: tuple[Problem, ...]
    leftovers: tuple[str, ...]
    """Files that no update refers to, such as an interrupted write leaves; harmless."""
    head: Head
    """The end of the log as found; keep it elsewhere and give it to the next `verify`."""
    policy: str | None = None
    """The digest of the policy in force; without one nobody has to approve anything."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def demand(self) -> Report:
        """The report itself. Raises VerifyFailed, naming every problem, where something is wrong."""
        demand(self.problems)
        return self


def demand(problems: Sequence[Problem], where: str = "verify") -> None:
    """Raises VerifyFailed, naming every problem, where there is one."""
    if problems:
        lines = "\n".join(f"  {problem.kind} {problem.subject}: {problem.text}" for problem in problems)
        raise VerifyFailed(
            f"{len(problems)} problems:\n{lines}\n", where=where, then="Restore the registry from a copy; trust nothing that came after."
        )


def check(events: Sequence[Event], blobs: Blobs, head: Head | None) -> Report:
    """Recomputes every hash. `head`, if given, must lie on the log: a log that ends before it was cut."""
    problems = check_chain(events, head)
    updates, faults = _updates(events)
    problems += faults
    problems += _names(events, {update.id for update in updates})
    wanted = sorted({str(digest) for update in updates for digest in (update.delta, *update.attachments.values())})
    broken = {digest: fault for digest in wanted if (fault := blobs.fault(digest))}
    problems += [Problem(kind="object", subject=digest, text=fault) for digest, fault in broken.items()]
    problems += _deltas([update for update in updates if update.delta not in broken], blobs)
    signed = standing(events, updates)
    problems += _people(events, updates, signed)
    return Report(
        events=len(events),
        updates=len(updates),
        objects=len(wanted),
        problems=tuple(problems),
        leftovers=tuple(name for name in blobs.names() if name not in set(wanted) and not name.startswith(".nfs")),
        head=Head(count=len(events), hash=events[-1].hash if events else GENESIS),
        policy=signed.policy.digest if signed.policy else None,
    )


def check_chain(events: Sequence[Event], head: Head | None) -> list[Problem]:
    """What is wrong with the log alone; `head` as `check` takes it."""
    return [*_chain(events), *_head(events, head)]


def _chain(events: Sequence[Event]) -> Iterable[Problem]:
    previous = GENESIS
    for position, event in enumerate(events, start=1):
        subject = str(event.seq)
        if event.seq != position:
            yield Problem(kind="event", subject=subject, text=f"number {position} was expected")
        if event.prev != previous:
            yield Problem(kind="event", subject=subject, text="does not follow the event before it")
        if event.computed_hash() != event.hash:
            yield Problem(kind="event", subject=subject, text="was edited: its hash does not fit its text")
        previous = event.hash


def _head(events: Sequence[Event], head: Head | None) -> Iterable[Problem]:
    if head is None:
        return
    if len(events) < head.count:
        yield Problem(kind="head", subject=str(head.count), text=f"the log was cut: {len(events)} events are left")
    elif head.count and events[head.count - 1].hash != head.hash:
        yield Problem(kind="head", subject=str(head.count), text="the log was rewritten: that event has another hash now")


def _updates(events: Sequence[Event]) -> tuple[list[Update], list[Problem]]:
    """The updates that can be read, and what is wrong with them."""
    found: dict[str, Update] = {}
    problems = []
    for event in events:
        if event.kind != "add":
            continue
        subject = event.subject or ""
        try:
            update = update_of(event)
        except TypeError as error:
            problems.append(Problem(kind="update", subject=subject, text=str(error)))
            continue
        parent = found.get(update.parent or "")
        if update.computed_id() != subject:
            problems.append(Problem(kind="update", subject=subject, text="its id does not fit its text"))
        if subject in found:
            problems.append(Problem(kind="update", subject=subject, text="was added twice"))
        if update.parent is not None and parent is None:
            problems.append(Problem(kind="update", subject=subject, text=f"its parent {update.parent[:12]} was not added before it"))
        if parent is not None and parent.child != update.base:
            problems.append(Problem(kind="update", subject=subject, text="starts from another model than its parent leads to"))
        found[subject] = update
    return list(found.values()), problems


def _names(events: Sequence[Event], known: set[str]) -> Iterable[Problem]:
    history = moves(events)
    for name in sorted({move.name for move in history}):
        mine = [move for move in history if move.name == name]
        for number, move in enumerate(mine):
            before = mine[number - 1].update if number else None
            stack = targets(mine[: number + 1])
            if move.update not in known:
                yield Problem(kind="name", subject=name, text=f"event {move.seq} points to an unknown update")
            elif move.previous != before or not stack or stack[-1] != move.update:
                yield Problem(kind="name", subject=name, text=f"event {move.seq} does not follow the move before it")


def _people(events: Sequence[Event], updates: Sequence[Update], signed: Standing) -> Iterable[Problem]:
    # A key that was revoked later is no sign of a change: it shows at the names that hang on it.
    for fault in signed.faults:
        if not isinstance(fault.error, RevokedKey):
            yield Problem(kind=fault.kind, subject=str(fault.seq), text=f"{type(fault.error).__name__}: {fault.error.what}")
    known = {update.id: update for update in updates}
    for name, move in {move.name: move for move in moves(events)}.items():
        end = signed.revoked.get(move.update)
        if move.update not in known or (end is not None and end.seq > move.seq):
            continue  # a version that was revoked under its name is no sign of a change either: it is not loaded
        try:
            signed.demand(known[move.update], name, judged=False)
        except Untrusted as error:
            yield Problem(kind="name", subject=name, text=f"{type(error).__name__}: {error.what}")
    if signed.policy:
        yield from _clocks(events, signed.policy)


def _clocks(events: Sequence[Event], policy: Policy) -> Iterable[Problem]:
    for before, event in pairwise(events):
        try:
            if at(event.utc) < at(before.utc) - timedelta(minutes=policy.clock_minutes):
                yield Problem(kind="event", subject=str(event.seq), text=f"its time, {event.utc}, is before that of the event before it")
        except ValueError:
            yield Problem(kind="event", subject=str(event.seq), text="its time, or that of the event before it, is no time")


def _deltas(updates: Sequence[Update], blobs: Blobs) -> Iterable[Problem]:
    for update in updates:
        try:
            delta = Delta.from_bytes(blobs.read(update.delta), where=update.delta[:12])
        except SelectuneError as error:
            yield Problem(kind="object", subject=update.delta, text=error.what)
            continue
        if (delta.parent, delta.child) != (update.base, update.child):
            yield Problem(kind="update", subject=update.id, text="its delta is between other models than it says")
