"""What the log says of people: the policy in force, who signed what, what is revoked, and whether a name may point to an update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from selectune.errors import (
    ClockApart,
    Collected,
    NotApproved,
    OwnApproval,
    RegistryError,
    RevokedKey,
    RevokedVersion,
    SelectuneError,
    VerdictRefused,
    WrongMeaning,
)
from selectune.governance.documents import Envelope, at, packed
from selectune.governance.policy import Policy, Rule, check_successor
from selectune.governance.statements import Approval, Revocation, Target, check_approval, check_revocation, meaning
from selectune.hashing import digest
from selectune.registry.events import Event
from selectune.registry.lineage import collected
from selectune.registry.marks import Hold, Mark, holds, marked
from selectune.registry.update import Update

__all__ = ["PEOPLE", "Fault", "Given", "Standing", "record_of", "standing", "target_of"]

PEOPLE = ("policy", "approve", "revoke")
"""Kinds of events that people sign."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What the events add up to."""

    policies: tuple[tuple[int, Policy], ...] = ()
    """Each with the number of its event, in order."""
    given: dict[str, tuple[Given, ...]] = field(default_factory=dict)
    """By update id."""
    revoked: dict[str, Mark] = field(default_factory=dict)
    retired: dict[str, Mark] = field(default_factory=dict)
    held: dict[str, Hold] = field(default_factory=dict)
    collected: dict[str, int] = field(default_factory=dict)
    """The updates whose bytes are gone, each with the number of the event that says so."""
    faults: tuple[Fault, ...] = ()

    @property
    def policy(self) -> Policy | None:
        """The one in force."""
        return self.policies[-1][1] if self.policies else None

    def rule(self, name: str) -> Rule | None:
        """What a name needs, None for a name that needs nothing."""
        return self.policy.names.get(name) if self.policy else None

    def signatures(self, update: str) -> tuple[Given, ...]:
        """Everything that was signed below an update."""
        return self.given.get(update, ())

    def notes(self, update: str) -> list[str]:
        """What has to be printed wherever an update appears."""
        found = []
        if update in self.revoked:
            end = self.revoked[update]
            found.append(f"revoked by {end.actor} at {end.created}: {end.reason}")
        if update in self.retired:
            mark = self.retired[update]
            found.append(f"retired by {mark.actor} at {mark.created}: {mark.reason}")
        if update in self.held:
            hold = self.held[update]
            found.append(f"held until {hold.until} by {hold.actor}: {hold.reason}")
        if update in self.collected:
            found.append(f"collected: its bytes are gone since event {self.collected[update]}")
        for one in self.signatures(update):
            if one.approval and not one.fault:
                said = one.approval
                found.append(f"{said.meaning} by {said.name} ({said.role}) at {said.utc}, key {one.key[:12]}")
            elif one.fault:
                found.append(f"a signature does not count: {one.fault.what}")
        if self.policy and self.policy.single_person and any(one.approval for one in self.signatures(update)):
            found.append("single person: the policy lets an author approve an update of theirs")
        return found

    def demand_sound(self) -> None:
        """Raises what is wrong with the policy's events, if anything is: then nothing that hangs on it can be trusted."""
        for fault in self.faults:
            if fault.kind == "policy":
                raise fault.error

    def demand_alive(self, update: str) -> None:
        """Raises RevokedVersion for an update that was revoked."""
        if update in self.revoked:
            end = self.revoked[update]
            raise RevokedVersion(
                f"update {update[:12]} was revoked by {end.actor} at {end.created}: {end.reason}",
                where="registry",
                then="Use another version: selectune log",
            )

    def demand_kept(self, update: str) -> None:
        """Raises Collected for an update whose bytes `gc` has taken."""
        if update in self.collected:
            raise Collected(
                f"update {update[:12]} was collected (event {self.collected[update]}): its bytes are gone",
                where="registry",
                then="Add it again, or import it from a file or a registry that has it.",
            )

    def demand_current(self, update: str) -> None:
        """Raises RegistryError for an update that was retired: it is loaded as before, and given no name again."""
        if update in self.retired:
            mark = self.retired[update]
            raise RegistryError(
                f"update {update[:12]} was retired by {mark.actor} at {mark.created}: {mark.reason}",
                where="registry",
                then="Promote another version: selectune log",
            )

    def demand(self, update: Update, name: str, *, judged: bool = True) -> None:
        """Raises what speaks against `name` pointing to this update; with `judged` the gate's word counts as well.

        RevokedVersion; VerdictRefused; and for approvals: the fault of one that does not count, OwnApproval, or NotApproved.
        """
        self.demand_sound()
        self.demand_alive(update.id)
        rule, policy = self.rule(name), self.policy
        if rule is None or policy is None:
            return
        where = f"{name} → {update.id[:12]}"
        if judged and update.verdict not in rule.verdicts:
            allowed = " or ".join(verdict or "not judged" for verdict in rule.verdicts)
            raise VerdictRefused(
                f"the gate's word is {update.verdict or 'none: it was not judged'}, and the policy wants {allowed}",
                where=where,
                then="Train a better update, or ask an admin for another policy.",
            )
        ours = self.signatures(update.id)
        good = [one.approval for one in ours if one.approval and not one.fault]
        authors = {one.name for one in good if one.role == "author"}
        approvers = {one.name for one in good if one.meaning == meaning("approver", name)}
        if not policy.single_person:
            if own := sorted(approvers & authors | {one for one in approvers if one.casefold() == update.actor.casefold()}):
                raise own_approval(own[0], where)
            if approvers and not authors:
                raise NotApproved(
                    "nobody has signed as its author", where=where, then="The author signs first: selectune approve ID --role author"
                )
        if len(approvers) < rule.approvals:
            self._explain(ours, name)
            raise NotApproved(
                f"{len(approvers)} of {rule.approvals} approvals are there",
                where=where,
                then="Ask for one: selectune approve ID",
            )

    def _explain(self, ours: Sequence[Given], name: str) -> None:
        """Raises why a signature that is there does not count, the newest first."""
        for one in reversed(ours):
            if one.fault:
                raise one.fault
        for one in reversed(ours):
            if one.approval and one.approval.role == "approver" and one.approval.meaning != meaning("approver", name):
                raise WrongMeaning(
                    f"it is {one.approval.meaning!r}, not {meaning('approver', name)!r}",
                    where=f"approval by {one.approval.name}",
                    then=f"Let it be approved for {name}.",
                )


def record_of(update: Update) -> str:
    """What a signature is about: the update's id as its text gives it, the gate's word, the digests of delta and measurements."""
    said = {name: getattr(update, name) for name in ("base", "child", "delta", "verdict")}
    return digest("record", {"update": update.computed_id(), **said, "attachments": dict(update.attachments)})


def target_of(update: Update) -> Target:
    """What is signed of an update as it is today."""
    return Target(update=update.id, record=record_of(update))


def own_approval(name: str, where: str) -> OwnApproval:
    """The error for somebody who is author and approver of one update."""
    return OwnApproval(f"{name} is its author and cannot approve it", where=where, then="Ask another person with the role approver.")


def standing(events: Sequence[Event], updates: Iterable[Update]) -> Standing:
    """Reads everything that people signed of `updates`; what is wrong is kept beside it and counts for nothing."""
    marks: dict[str, Any] = {"retired": marked(events, "retire"), "held": holds(events), "collected": collected(events)}
    if not any(event.kind in PEOPLE for event in events):
        return Standing(**marks)
    policies, faults = _policies(events)
    current = policies[-1][1] if policies else None
    known = {update.id: update for update in updates}
    given: dict[str, list[Given]] = {}
    revoked: dict[str, Mark] = {}
    for event in events:
        subject = event.subject or ""
        if event.kind == "approve":
            one = _given(event, _in_force(policies, event.seq), current, known.get(subject))
            given.setdefault(subject, []).append(one)
            faults += [Fault(seq=event.seq, kind=event.kind, error=one.fault)] if one.fault else []
        elif event.kind == "revoke":
            # Whatever is wrong with it, the version stays out of use until somebody has looked.
            reason, fault = _revocation(event, _in_force(policies, event.seq), known.get(subject))
            revoked[subject] = Mark(reason=reason, actor=event.actor, created=event.utc, seq=event.seq)
            faults += [Fault(seq=event.seq, kind=event.kind, error=fault)] if fault else []
    return Standing(
        policies=tuple(policies),
        given={key: tuple(value) for key, value in given.items()},
        revoked=revoked,
        faults=tuple(faults),
        **marks,
    )


def _policies(events: Iterable[Event]) -> tuple[list[tuple[int, Policy]], list[Fault]]:
    found: list[tuple[int, Policy]] = []
    faults: list[Fault] = []
    for event in events:
        if event.kind == "policy":
            where = f"event {event.seq}"
            try:
                found.append((event.seq, check_successor(packed(event.body, where), found[-1][1] if found else None, where=where)))
            except SelectuneError as error:
                faults.append(Fault(seq=event.seq, kind=event.kind, error=error))
    return found, faults


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
