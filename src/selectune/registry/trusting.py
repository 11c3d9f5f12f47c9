"""A log that comes from elsewhere is checked in everything that can be checked, before anything of it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from selectune.errors import EventEdited, EventMalformed, LogCut, ObjectDamaged, Oversize
from selectune.governance.heads import SignedHead
from selectune.registry.checking import check_chain, check_clocks, check_log, demand, mistrusted
from selectune.registry.events import Event
from selectune.registry.kinds import check_event
from selectune.registry.lineage import updates
from selectune.registry.signing import check_now
from selectune.registry.standing import Standing, standing
from selectune.registry.update import Update

__all__ = ["EVENTS_LIMIT", "Checked", "check_delta", "check_foreign", "check_witnessed_by"]

EVENTS_LIMIT = 1_000_000
"""Events of the longest log that is taken from elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A log in which everything is as it is said to be; its objects were not looked at."""

    events: tuple[Event, ...]
    updates: tuple[Update, ...]
    standing: Standing


def check_foreign(events: Sequence[Event], where: str, now: datetime) -> Checked:
    """The log, every event of which was checked: form, hash, place in the chain, what it refers to, and what people signed.

    Raises Oversize for a log of more than a million events; EventMalformed, UnknownKind; EventEdited; VerifyFailed for an update or a name
    that does not follow; what is wrong with a policy, an approval or a revocation (a leaf of Untrusted); RevokedVersion for a name that was
    pointed to a revoked version; ClockApart for a log from the future.
    """
    if len(events) > EVENTS_LIMIT:
        raise Oversize(f"{len(events)} events, over the limit of {EVENTS_LIMIT}", where=where, then="Take single updates: --update ID")
    for event in events:
        check_event(event, where)
    if problem := next(iter(check_chain(events, None)), None):
        raise EventEdited(f"event {problem.subject} {problem.text}", where=where, then="Take nothing from there; find out who changed it.")
    if [event.seq for event in events if event.kind == "create"] != [1]:
        raise EventMalformed("a log begins with one event `create`, and has no other", where=where, then="Take nothing from there.")
    demand(check_log(events, None)[1], where)
    found = updates(events)
    signed = standing(events, found)
    for _, _, error in mistrusted(events, found, signed):
        raise error
    if signed.policy:
        demand(list(check_clocks(events, signed.policy)), where)
        check_now(events, now, signed.policy)
    return Checked(events=tuple(events), updates=tuple(found), standing=signed)


def check_witnessed_by(events: Sequence[Event], kept: SignedHead | None, where: str) -> None:
    """Raises LogCut where a head that was kept says that there was more, or something else, than these events."""
    if kept is None:
        return
    then = "Find out who removed the rest; take nothing until you know."
    if events[0].hash != kept.registry:
        raise LogCut("the head that is kept is of another registry, or the whole log was rewritten", where=where, then=then)
    if len(events) < kept.count:
        raise LogCut(f"it has {len(events)} events, and the head that is kept says {kept.count}", where=where, then=then)
    if events[kept.count - 1].hash != kept.hash:
        raise LogCut(f"event {kept.count} is another than the head that is kept says", where=where, then=then)


def check_delta(data: bytes, update: Update, where: str) -> None:
    """Raises DeltaError for what is no delta, ObjectDamaged for one between other models than its update says."""
    from selectune.delta.format import Delta

    delta = Delta.from_bytes(data, where=f"{where}: {update.delta[:12]}")
    if (delta.parent, delta.child) != (update.base, update.child):
        raise ObjectDamaged(
            f"the delta of update {update.id[:12]} is between other models than the update says",
            where=where,
            then="Take nothing from there.",
        )
