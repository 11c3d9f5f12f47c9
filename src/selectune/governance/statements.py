"""What people sign of an update: that it is theirs, that it is approved, that it is revoked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal

from selectune.errors import StaleApproval, WrongMeaning
from selectune.governance.documents import Digest, Document, Envelope, Printed, Utc, now_text, seal
from selectune.governance.keys import PrivateKey
from selectune.governance.policy import Policy, Role, Signer

__all__ = ["Approval", "Revocation", "Target", "approve", "check_approval", "check_revocation", "meaning", "revoke"]

_MEANINGS = {"author": "submitted for", "approver": "approved for"}


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


def _check_target(found: Approval | Revocation, signer: Signer, target: Target, where: str) -> None:
    if found.name != signer.person.name:
        raise WrongMeaning(f"it is signed as {found.name}, with a key of {signer.person.name}", where=where, then="Sign it again.")
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
