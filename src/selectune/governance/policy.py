"""The policy: who may do what with which key, and which names need approval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from selectune.errors import PolicyRefused, RevokedKey, UnknownKey, WrongRole
from selectune.governance.documents import Digest, Document, Envelope, Printed
from selectune.governance.keys import PublicKey, read_public
from selectune.hashing import digest

__all__ = ["Person", "Policy", "Role", "Rule", "check_successor"]

Role = Literal["author", "approver", "admin"]
Verdict = Literal["passed", "failed", "undecided", ""]
"""A gate's word; empty where none was asked."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Person(_Part):
    """Somebody with a name."""

    name: Printed
    """As it is printed beside everything that this person signs."""
    roles: tuple[Role, ...] = Field(min_length=1)
    keys: tuple[str, ...] = ()
    """Public keys as PEM text."""


class Rule(_Part):
    """What a name needs before it may point to an update."""

    approvals: Annotated[int, Field(ge=1, le=16)] = 1
    """From how many different people."""
    verdicts: tuple[Verdict, ...] = Field(default=("passed",), min_length=1)
    """The gate's words that are good enough."""


class Policy(Document):
    """The rules of one registry. Each policy but the first is signed by an admin of the one before it."""

    kind: ClassVar[str] = "policy"

    format: Literal[1] = 1
    previous: Digest | None = None
    """The digest of the policy before; None for the first."""
    people: tuple[Person, ...] = Field(min_length=1, max_length=1000)
    revoked: tuple[Digest, ...] = ()
    """Ids of keys of which nothing counts any more, whenever it was signed."""
    names: dict[str, Rule] = Field(default_factory=dict)
    """Names that need approval, such as ``production``."""
    single_person: bool = False
    """Whether an author may approve an update of theirs; printed wherever the version appears."""
    clock_minutes: Annotated[int, Field(ge=1, le=1440)] = 10
    """How far apart the clocks of those who sign and of the registry may be."""
    signed_head: bool = False
    """Whether a name may move only where the head of the log is signed and kept in a second place."""
    signed_moves: bool = False
    """Whether moves, tags, retirements, holds and collections count only if somebody in the policy has signed them."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A field that came later is written only where it says something, so that policies from before it keep their bytes.
        found: dict[str, Any] = write(self)
        return {name: value for name, value in found.items() if name != "signed_moves" or value}

    @model_validator(mode="after")
    def _whole(self) -> Policy:
        names = [person.name.casefold() for person in self.people]
        if len(set(names)) != len(names):
            raise ValueError("a person is there twice")
        keys = [key.id for key, _ in self.holders]
        if len(set(keys)) != len(keys):
            raise ValueError("a key belongs to one person, and is there once")
        if not any("admin" in person.roles and key.id not in self.revoked for key, person in self.holders):
            raise ValueError("nobody with the role admin has a key that is not revoked")
        return self

    @cached_property
    def holders(self) -> tuple[tuple[PublicKey, Person], ...]:
        """Every key with the person whose it is."""
        return tuple((read_public(pem, where=f"policy: key of {person.name}"), person) for person in self.people for pem in person.keys)

    @cached_property
    def digest(self) -> str:
        """``digest("policy", …)`` of the policy."""
        return digest("policy", self.model_dump(mode="json"))

    def signer(self, envelope: Envelope, role: Sequence[Role], *, where: str) -> Signer:
        """Who signed, checked. Raises UnknownKey, RevokedKey, BadSignature, or WrongRole for a person with none of these roles."""
        holder = next(((key, person) for key, person in self.holders if key.id == envelope.key_id), None)
        if holder is None:
            raise UnknownKey(
                f"key {envelope.key_id[:12]} is not in the policy", where=where, then="An admin can add it: selectune policy set"
            )
        key, person = holder
        if key.id in self.revoked:
            raise RevokedKey(f"key {key.id[:12]} of {person.name} is revoked", where=where, then="Sign with another key.")
        envelope.verify(key)
        if not set(role) & set(person.roles):
            raise WrongRole(
                f"{person.name} is {' and '.join(person.roles)}, not {' or '.join(role)}", where=where, then="Ask somebody who is."
            )
        return Signer(key=key, person=person)


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """Somebody whose signature was checked."""

    key: PublicKey
    person: Person


def check_successor(envelope: Envelope, current: Policy | None, *, where: str = "policy") -> Policy:
    """The policy in the envelope, if it may follow `current`. The first one is signed by an admin of its own.

    Raises PolicyRefused for another signer and for a policy that follows another one, RevokedKey and BadSignature as they are.
    """
    found = envelope.read(Policy, where)
    if found.previous != (current.digest if current else None):
        says = found.previous[:12] if found.previous else "none"
        wanted = current.digest[:12] if current else "none"
        raise PolicyRefused(
            f"it says that the policy before it is {says}, and that is {wanted}", where=where, then="Sign it again: selectune policy sign"
        )
    try:
        (current or found).signer(envelope, ("admin",), where=where)
    except (UnknownKey, WrongRole) as error:
        before = "the policy before it" if current else "the first policy itself"
        raise PolicyRefused(f"no admin of {before} has signed it: {error.what}", where=where, then="Let an admin sign it.") from error
    return found
