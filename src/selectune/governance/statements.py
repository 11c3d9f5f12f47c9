"""What people sign of an update: that it is theirs, that it is approved, that it is revoked; and of a move, that it is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal

from selectune.errors import StaleApproval, WrongMeaning, WrongRole
from selectune.governance.documents import Digest, Document, Envelope, Printed, Utc, now_text, seal
from selectune.governance.keys import PrivateKey
from selectune.governance.policy import Policy, Role, Signer

__all__ = [
    "MOVERS",
    "Approval",
    "Motion",
    "Revocation",
    "Target",
    "approve",
    "check_approval",
    "check_motion",
    "check_revocation",
    "meaning",
    "move",
    "revoke",
]

_MEANINGS = {"author": "submitted for", "approver": "approved for"}
_ALL: tuple[Role, ...] = ("author", "approver", "admin")
_SOME: tuple[Role, ...] = ("approver", "admin")
MOVERS: Mapping[str, tuple[Role, ...]] = {
    **dict.fromkeys(("promote", "revert", "tag", "hold"), _ALL),
    **dict.fromkeys(("retire", "release", "gc"), _SOME),
}
"""The kinds of events that count as moves, each with the roles that may sign it: what takes something away is not an author's."""


class _Statement(Document):
    """What somebody says of an update."""

    name: Printed
    """The signer's, as the policy prints it."""
    utc: Utc
    update: Digest
    record: Digest
    """The update's record: its id, the gate's word, and the digests of the delta and of every attached measurement."""


class Approval(_Statement):
    """The signature below an update."""

    kind: ClassVar[str] = "approval"

    role: Literal["author", "approver"]
    meaning: Printed
    """"approved for production", "submitted for production"."""


class Revocation(_Statement):
    """The end of an update."""

    kind: ClassVar[str] = "revocation"

    role: Literal["approver", "admin"]
    reason: Printed


class Motion(Document):
    """The signature of an event that moves a name or says something of an update, as part of that event."""

    kind: ClassVar[str] = "move"

    name: Printed
    """The signer's, as the policy prints it."""
    role: Role
    utc: Utc
    event: Digest
    """``digest("move", …)`` of the event it is in: its place in the log and everything that it says, but for this signature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """An update as it is today, which is what is signed and checked."""

    update: str
    record: str


def meaning(role: str, name: str) -> str:
    """What a signature in a role says about a name: "approved for production"."""
    return f"{_MEANINGS[role]} {name}"


def holder_name(policy: Policy, key: PrivateKey) -> str:
    """The printed name of the person who has this key. What is signed under it is checked as everybody else's."""
    return next((person.name for known, person in policy.holders if known.id == key.public.id), "not in the policy")


def approve(policy: Policy, key: PrivateKey, said: tuple[Role, str], target: Target, now: datetime) -> Envelope:
    """An approval, signed; `said` is the role and the name that it is for."""
    role, name = said
    document = Approval.model_validate(
        {
            "name": holder_name(policy, key),
            "role": role,
            "meaning": meaning(role, name),
            "utc": now_text(now),
            "update": target.update,
            "record": target.record,
        }
    )
    return seal(document, key)


def revoke(policy: Policy, key: PrivateKey, reason: str, target: Target, now: datetime) -> Envelope:
    """A revocation, signed as approver by one who is, else as admin."""
    holder = next((person for known, person in policy.holders if known.id == key.public.id), None)
    role = "approver" if holder is not None and "approver" in holder.roles else "admin"
    name = holder.name if holder is not None else "not in the policy"
    fields = {"name": name, "role": role, "reason": reason, "utc": now_text(now), "update": target.update, "record": target.record}
    return seal(Revocation.model_validate(fields), key)


def move(policy: Policy, key: PrivateKey, kind: str, event: str, now: datetime) -> Envelope:
    """The signature of an event of this kind and digest, in the signer's first role that may; `check_motion` refuses who has none."""
    holder = next((person for known, person in policy.holders if known.id == key.public.id), None)
    roles = holder.roles if holder is not None else ("admin",)
    role = next((role for role in MOVERS[kind] if role in roles), roles[0])
    fields = {"name": holder_name(policy, key), "role": role, "utc": now_text(now), "event": event}
    return seal(Motion.model_validate(fields), key)


def check_motion(policy: Policy, envelope: Envelope, kind: str, event: str, *, where: str) -> tuple[Motion, Signer]:
    """The signature of an event of this kind and digest and who gave it, checked against the policy.

    Raises what `Policy.signer` raises, WrongRole for a role that has no say in it, WrongMeaning for the signature of another event.
    """
    found = envelope.read(Motion, where)
    signer = policy.signer(envelope, (found.role,), where=where)
    if found.role not in MOVERS[kind]:
        raise WrongRole(
            f"{found.name} signed a {kind} as {found.role}", where=where, then=f"Ask somebody who is {' or '.join(MOVERS[kind])}."
        )
    _check_name(found.name, signer, where)
    if found.event != event:
        raise WrongMeaning("it is the signature of another event", where=where, then="Find out who wrote it: selectune verify")
    return found, signer


def check_approval(policy: Policy, envelope: Envelope, target: Target, *, where: str) -> tuple[Approval, Signer]:
    """The approval and who gave it, checked against the policy, the update and its record of today.

    Raises what `Policy.signer` raises, WrongMeaning for an approval of another update or for what its role cannot say, StaleApproval for
    another record.
    """
    found = envelope.read(Approval, where)
    signer = policy.signer(envelope, (found.role,), where=where)
    if not found.meaning.startswith(f"{_MEANINGS[found.role]} "):
        raise WrongMeaning(f"{found.meaning!r} is not for an {found.role} to say", where=where, then="Sign it again: selectune approve ID")
    _check_target(found, signer, target, where)
    return found, signer


def check_revocation(policy: Policy, envelope: Envelope, target: Target, *, where: str) -> tuple[Revocation, Signer]:
    """The revocation and who signed it, checked in the same way."""
    found = envelope.read(Revocation, where)
    signer = policy.signer(envelope, (found.role,), where=where)
    _check_target(found, signer, target, where)
    return found, signer


def _check_name(name: str, signer: Signer, where: str) -> None:
    if name != signer.person.name:
        raise WrongMeaning(f"it is signed as {name}, with a key of {signer.person.name}", where=where, then="Sign it again.")


def _check_target(found: Approval | Revocation, signer: Signer, target: Target, where: str) -> None:
    _check_name(found.name, signer, where)
    if found.update != target.update:
        raise WrongMeaning(
            f"it is for update {found.update[:12]}, not {target.update[:12]}", where=where, then="Sign this update: selectune approve ID"
        )
    if found.record != target.record:
        raise StaleApproval(
            f"the record was {found.record[:12]} when {found.name} signed it, and is {target.record[:12]} now",
            where=where,
            then="Find out who changed it: selectune verify. Then let the update as it is be signed.",
        )
