"""What people signed in a log, event by event: policies, approvals, revocations and moves, each checked, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from selectune.errors import ClockApart, NotSigned, RegistryError, RevokedKey, SelectuneError, WrongMeaning
from selectune.governance.documents import Envelope, at, packed
from selectune.governance.policy import Policy, check_successor
from selectune.governance.statements import MOVERS, Approval, Revocation, Target, check_approval, check_motion, check_revocation
from selectune.hashing import digest
from selectune.registry.events import Event
from selectune.registry.marks import Mark
from selectune.registry.update import Update

__all__ = ["PEOPLE", "Fault", "Given", "Signed", "check_clock", "not_signed", "record_of", "recounted", "signed", "target_of"]

PEOPLE = ("policy", "approve", "revoke")
"""Kinds of events that people sign, apart from moves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A signature below an update, and what is wrong with it."""

    seq: int
    approval: Approval | None
    """None for one that cannot be read."""
    key: str
    """The key's id."""
    fault: SelectuneError | None

    def to_json(self) -> dict[str, object]:
        """The signature as `show --json` prints it."""
        said = self.approval.model_dump(mode="json", exclude={"update"}) if self.approval else {}
        return {**said, "key": self.key, "fault": f"{type(self.fault).__name__}: {self.fault.what}" if self.fault else None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is wrong with an event that people sign."""

    seq: int
    kind: str
    error: SelectuneError


def record_of(update: Update) -> str:
    """What a signature is about: the update's id as its text gives it, the gate's word, the digests of delta and measurements."""
    said = {name: getattr(update, name) for name in ("base", "child", "delta", "verdict")}
    return digest("record", {"update": update.computed_id(), **said, "attachments": dict(update.attachments)})


def target_of(update: Update) -> Target:
    """What is signed of an update as it is today."""
    return Target(update=update.id, record=record_of(update))


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """What people signed in a log, or in its beginning."""

    policies: tuple[tuple[int, Policy], ...] = ()
    given: Mapping[str, tuple[Given, ...]] = field(default_factory=dict)
    revoked: Mapping[str, Mark] = field(default_factory=dict)
    refused: tuple[Fault, ...] = ()
    """Policies that are none."""
    faults: tuple[Fault, ...] = ()
    """Of approvals and revocations."""
    others: tuple[Event, ...] = ()
    """Every approval and revocation."""
    astray: tuple[Fault, ...] = ()
    """Of moves, tags, retirements, holds and collections."""
    moved: Mapping[str, Fault] = field(default_factory=dict)
    """Of these, by name or tag, the fault of the last event that set it."""
    forged: frozenset[tuple[str, str]] = frozenset()
    """Names, each with an update that only promotions of this kind have pointed it to."""

    def sound(self, events: Iterable[Event]) -> list[Event]:
        """The events without those whose signature does not count."""
        wrong = {fault.seq for fault in self.astray}
        return [event for event in events if event.seq not in wrong]


def signed(events: Iterable[Event], known: Callable[[str], Update | None], before: Signed = Signed()) -> Signed:
    """Everything that people signed, checked; `known` gives an update by its id. It goes on from `before`, and changes nothing of that."""
    events = list(events)
    fresh = [event for event in events if event.kind in PEOPLE]
    if not fresh:
        return followed(events, before)
    policies, refused = list(before.policies), list(before.refused)
    for event in fresh:
        if event.kind == "policy":
            where = f"event {event.seq}"
            try:
                found = check_successor(packed(event.body, where), policies[-1][1] if policies else None, where=where)
                policies.append((event.seq, found))
            except SelectuneError as error:
                refused.append(Fault(seq=event.seq, kind=event.kind, error=error))
    others = tuple(event for event in fresh if event.kind != "policy")
    start = replace(before, policies=tuple(policies), refused=tuple(refused))
    # The newest policy says whose keys count no more, so under another one everything is looked at again.
    found_ = counted(others, known, start) if len(policies) == len(before.policies) else recounted(start, known, others)
    return followed(events, found_)


def recounted(before: Signed, known: Callable[[str], Update | None], others: Iterable[Event] = ()) -> Signed:
    """The same, and `others`, with every approval and revocation checked again."""
    return counted((*before.others, *others), known, replace(before, given={}, revoked={}, faults=(), others=()))


def counted(others: Sequence[Event], known: Callable[[str], Update | None], before: Signed) -> Signed:
    """With approvals and revocations more."""
    policies = before.policies
    current = policies[-1][1] if policies else None
    given, revoked, faults = dict(before.given), dict(before.revoked), list(before.faults)
    for event in others:
        subject = event.subject or ""
        then, update = _in_force(policies, event.seq), known(subject)
        fault: SelectuneError | None
        if event.kind == "approve":
            one = _given(event, then, current, update)
            given[subject] = (*given.get(subject, ()), one)
            fault = one.fault
        else:
            # Whatever is wrong with it, the version stays out of use until somebody has looked.
            reason, fault = _revocation(event, then, update)
            revoked[subject] = Mark(reason=reason, actor=event.actor, created=event.utc, seq=event.seq)
        faults += [Fault(seq=event.seq, kind=event.kind, error=fault)] if fault else []
    return replace(before, given=given, revoked=revoked, faults=tuple(faults), others=(*before.others, *others))


def followed(events: Iterable[Event], before: Signed) -> Signed:
    """With the moves among these events, each checked by the policy of its time, which is for good: names ask for approvals by today's."""
    if not before.policies:
        return before
    astray, moved, forged = list(before.astray), dict(before.moved), set(before.forged)
    for event in events:
        policy = _in_force(before.policies, event.seq) if event.kind in MOVERS else None
        if policy is None:
            continue
        error = _misled(event, policy)
        fault = Fault(seq=event.seq, kind=event.kind, error=error) if error else None
        astray += [fault] if fault else []
        if event.name and fault:
            moved[event.name] = fault
        elif event.name:
            moved.pop(event.name, None)
        if event.kind == "promote":
            (forged.add if fault else forged.discard)((event.name or "", event.subject or ""))
    return replace(before, astray=tuple(astray), moved=moved, forged=frozenset(forged))


def _misled(event: Event, policy: Policy) -> SelectuneError | None:
    """What is wrong with a move's signature, and with the lack of one where the policy wants it."""
    where, body = f"event {event.seq}", event.content()
    if "signed" not in body:
        return not_signed(event.kind, where) if policy.signed_moves else None
    try:
        said, signer = check_motion(policy, packed(body, where), event.kind, event.motion(), where=where)
        if event.actor != signer.person.name:
            raise WrongMeaning(
                f"it is signed by {signer.person.name}, and says {event.actor[:80]}",
                where=where,
                then="Find out who wrote it: selectune verify",
            )
        check_clock(at(said.utc), at(event.utc), policy, where)
    except SelectuneError as error:
        return error
    except ValueError:  # the event's own time is no time
        return ClockApart(f"{event.utc[:40]!r} is no time", where=where)
    return None


def not_signed(kind: str, where: str) -> NotSigned:
    """The error for a move without a signature."""
    return NotSigned(f"the policy wants a {kind} signed", where=where, then="Give the key of somebody in the policy: --key KEY")


def _in_force(policies: Sequence[tuple[int, Policy]], seq: int) -> Policy | None:
    return next((policy for since, policy in reversed(policies) if since < seq), None)


def _given(event: Event, then: Policy | None, now: Policy | None, update: Update | None) -> Given:
    where, said, key = f"event {event.seq}", None, ""
    try:
        envelope = packed(event.body, where)
        key = envelope.key_id
        said = envelope.read(Approval, where)
        if update is None or then is None or now is None:
            raise RegistryError("it approves an unknown update, or there was no policy", where=where, then="See: selectune verify")
        _check_unrevoked(envelope, now, where)
        check_approval(then, envelope, target_of(update), where=where)
        check_clock(at(said.utc), at(event.utc), then, where)
    except SelectuneError as error:
        return Given(seq=event.seq, approval=said, key=key, fault=error)
    except ValueError:  # the event's own time is no time
        return Given(seq=event.seq, approval=said, key=key, fault=ClockApart(f"{event.utc[:40]!r} is no time", where=where))
    return Given(seq=event.seq, approval=said, key=key, fault=None)


def _revocation(event: Event, then: Policy | None, update: Update | None) -> tuple[str, SelectuneError | None]:
    where = f"event {event.seq}"
    if then is None:
        return str(event.body.get("reason", "")), None
    try:
        envelope = packed(event.body, where)
        reason = envelope.read(Revocation, where).reason
        if update is None:
            raise RegistryError("it revokes an unknown update", where=where, then="See: selectune verify")
        check_revocation(then, envelope, target_of(update), where=where)
    except SelectuneError as error:
        return f"(its signature does not count: {error.what})", error
    return reason, None


def _check_unrevoked(envelope: Envelope, now: Policy, where: str) -> None:
    if envelope.key_id in now.revoked:
        raise RevokedKey(f"key {envelope.key_id[:12]} was revoked", where=where, then="Let it be signed again with another key.")


def check_clock(one: datetime, other: datetime, policy: Policy, where: str) -> None:
    """Raises ClockApart for two times that are further apart than the policy allows."""
    if abs(one - other) > timedelta(minutes=policy.clock_minutes):
        raise ClockApart(
            f"{one:%Y-%m-%d %H:%M:%S} and {other:%Y-%m-%d %H:%M:%S} UTC are more than {policy.clock_minutes} minutes apart",
            where=where,
            then="Set the clocks, and sign again.",
        )
