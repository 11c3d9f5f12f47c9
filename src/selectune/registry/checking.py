"""`verify`: is the registry what its hashes say?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from selectune.errors import InputError, RegistryError, RevokedKey, SelectuneError, Untrusted, VerifyFailed
from selectune.governance.documents import at
from selectune.governance.policy import Policy
from selectune.registry.events import GENESIS, Event, Head
from selectune.registry.lineage import collected, moves, references, stacks, update_of
from selectune.registry.snapshots import faults
from selectune.registry.standing import Standing, standing
from selectune.registry.store import Blobs
from selectune.registry.update import Move, Update

__all__ = [
    "Chain",
    "Problem",
    "Report",
    "chained",
    "check",
    "check_chain",
    "check_clocks",
    "check_head",
    "check_log",
    "demand",
    "mistrusted",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is not as it was written."""

    kind: str
    """event, update, name, object, snapshot, head, or the kind of an event that people sign, such as approve or promote."""
    subject: str
    """The event's number, the update's or the object's id, the name."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `verify` looked at, and what it found."""

    events: int
    updates: int
    objects: int
    """Objects that updates refer to, each hashed; those of a collected update are not among them."""
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

    @property
    def continued(self) -> bool:
        """Whether an event may be appended: the log itself is as it was written, whatever is wrong with objects or names."""
        return not any(problem.kind in ("event", "head") for problem in self.problems)

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
    updates, problems = check_log(events, head)
    wanted = sorted(references(events))
    gone = collected(events)
    held = [update for update in updates if update.id not in gone]
    broken, odd = _deltas(held, blobs)
    others = set(wanted) - {update.delta for update in held}
    broken |= {digest: fault for digest in sorted(others) if (fault := blobs.fault(digest))}
    problems += [Problem(kind="object", subject=digest, text=fault) for digest, fault in sorted(broken.items())]
    problems += odd
    problems += [Problem(kind="snapshot", subject=id_, text=text) for id_, text in faults(events, updates, blobs, broken)]
    signed = standing(events, updates)
    problems += [
        Problem(kind=kind, subject=subject, text=f"{type(error).__name__}: {error.what}")
        for kind, subject, error in mistrusted(events, updates, signed)
    ]
    if signed.policy:
        problems += check_clocks(events, signed.policy)
    return Report(
        events=len(events),
        updates=len(updates),
        objects=len(wanted),
        problems=tuple(problems),
        leftovers=tuple(name for name in blobs.names() if name not in set(wanted) and not name.startswith(".nfs")),
        head=Head(count=len(events), hash=events[-1].hash if events else GENESIS),
        policy=signed.policy.digest if signed.policy else None,
    )


def check_log(events: Sequence[Event], head: Head | None) -> tuple[list[Update], list[Problem]]:
    """The updates that can be read, and what is wrong with events, updates and names, apart from objects and what people signed."""
    updates, faults = _updates(events)
    return updates, [*check_chain(events, head), *faults, *_names(events, {update.id for update in updates})]


def check_chain(events: Sequence[Event], head: Head | None) -> list[Problem]:
    """What is wrong with the log alone; `head` as `check` takes it."""
    return [*chained(events, Chain()).problems, *check_head(events, head)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A log, or its beginning, whose hashes were computed again."""

    events: int = 0
    last: str = GENESIS
    """The hash of the last event."""
    problems: tuple[Problem, ...] = ()


def chained(events: Sequence[Event], before: Chain) -> Chain:
    """A log after these events too, each of which has to follow the one before it and to have the hash of what it says."""
    problems = (*before.problems, *_faults(events, before))
    return Chain(events=before.events + len(events), last=events[-1].hash if events else before.last, problems=problems)


def _faults(events: Sequence[Event], before: Chain) -> Iterable[Problem]:
    previous = before.last
    for position, event in enumerate(events, start=before.events + 1):
        subject = str(event.seq)
        if event.seq != position:
            yield Problem(kind="event", subject=subject, text=f"number {position} was expected")
        if event.prev != previous:
            yield Problem(kind="event", subject=subject, text="does not follow the event before it")
        if event.computed_hash() != event.hash:
            yield Problem(kind="event", subject=subject, text="was edited: its hash does not fit its text")
        previous = event.hash


def check_head(events: Sequence[Event], head: Head | None) -> Iterable[Problem]:
    """What is wrong with the log by a head that was kept elsewhere."""
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
    gone: set[str] = set()
    for event in events:
        if event.kind == "gc":
            gone |= collected([event]).keys()
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
        if subject in found and subject not in gone:
            problems.append(Problem(kind="update", subject=subject, text="was added twice"))
        if update.parent is not None and parent is None:
            problems.append(Problem(kind="update", subject=subject, text=f"its parent {update.parent[:12]} was not added before it"))
        if parent is not None and parent.child != update.base:
            problems.append(Problem(kind="update", subject=subject, text="starts from another model than its parent leads to"))
        found[subject] = update
        gone.discard(subject)
    return list(found.values()), problems


def _names(events: Sequence[Event], known: set[str]) -> Iterable[Problem]:
    by_name: dict[str, list[Move]] = {}
    for move in moves(events):
        by_name.setdefault(move.name, []).append(move)
    gone = collected(events)
    for name, mine in sorted(by_name.items()):
        for before, move, stack in zip([None, *mine], mine, stacks(mine), strict=False):
            if move.update not in known:
                yield Problem(kind="name", subject=name, text=f"event {move.seq} points to an unknown update")
            elif move is mine[-1] and move.update in gone:
                yield Problem(kind="name", subject=name, text=f"event {gone[move.update]} collected {move.update[:12]}, which it points to")
            elif move.previous != (before and before.update) or not stack or stack[0] != move.update:
                yield Problem(kind="name", subject=name, text=f"event {move.seq} does not follow the move before it")


def mistrusted(events: Sequence[Event], updates: Sequence[Update], signed: Standing) -> Iterable[tuple[str, str, SelectuneError]]:
    """What is wrong with what people signed, and with where names point by that: a problem's kind and subject, and the error itself."""
    # A key that was revoked later is no sign of a change: it shows at the names that hang on it.
    yield from ((fault.kind, str(fault.seq), fault.error) for fault in signed.faults if not isinstance(fault.error, RevokedKey))
    known = {update.id: update for update in updates}
    for name, move in {move.name: move for move in moves(events)}.items():
        end = signed.revoked.get(move.update)
        if move.update not in known or (end is not None and end.seq > move.seq):
            continue  # a version that was revoked under its name is no sign of a change either: it is not loaded
        try:
            signed.demand(known[move.update], name, judged=False)
        except (Untrusted, InputError) as error:  # of a policy that cannot be read, too
            yield "name", name, error


def check_clocks(events: Sequence[Event], policy: Policy) -> Iterable[Problem]:
    """Events whose time is further before that of the event before them than the policy allows."""
    for before, event in pairwise(events):
        try:
            if at(event.utc) < at(before.utc) - timedelta(minutes=policy.clock_minutes):
                yield Problem(kind="event", subject=str(event.seq), text=f"its time, {event.utc}, is before that of the event before it")
        except ValueError:
            yield Problem(kind="event", subject=str(event.seq), text="its time, or that of the event before it, is no time")


def _deltas(updates: Sequence[Update], blobs: Blobs) -> tuple[dict[str, str], list[Problem]]:
    """Objects that are not there or damaged, with what is wrong, and deltas that are not what their updates say; each is read once."""
    from selectune.delta.format import Delta

    broken: dict[str, str] = {}
    problems: list[Problem] = []
    for update in updates:
        try:
            data = blobs.read(update.delta)
        except RegistryError:
            if fault := blobs.fault(update.delta):
                broken[update.delta] = fault
                continue
            raise
        try:
            delta = Delta.from_bytes(data, where=update.delta[:12])
        except SelectuneError as error:
            problems.append(Problem(kind="object", subject=update.delta, text=error.what))
            continue
        if (delta.parent, delta.child) != (update.base, update.child):
            problems.append(Problem(kind="update", subject=update.id, text="its delta is between other models than it says"))
    return broken, problems
