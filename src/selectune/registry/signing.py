"""Events that people sign: checked against the log before they are part of it, and a head of the log that is kept elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from selectune.errors import ClockApart, DocumentError, RegistryError
from selectune.governance.documents import Envelope, at, payload_type
from selectune.governance.heads import SignedHead, Witness
from selectune.governance.policy import Policy, check_successor
from selectune.governance.statements import Approval, Revocation, check_approval, check_revocation
from selectune.registry.checking import Chain, Problem, check_head, demand
from selectune.registry.events import Event, Head
from selectune.registry.signatures import check_clock, target_of
from selectune.registry.standing import Standing, own_approval
from selectune.registry.update import Update

if TYPE_CHECKING:
    from selectune.delta.format import Delta

__all__ = ["Admitted", "check_kept", "check_now", "policy_event", "signed_event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """A version that may be loaded: everything that leads to it was checked."""

    update: Update
    deltas: tuple[Delta, ...]
    """From the base model, in the order in which they apply; the very bytes that were checked."""
    notes: tuple[str, ...]
    """What has to be printed with it: who approved it, and whether one person may do everything."""


def check_kept(events: Sequence[Event], chain: Chain, kept: SignedHead, where: str) -> None:
    """Raises VerifyFailed where the log, with its `chain`, is not the one whose head was kept: cut, rewritten, or of another registry."""
    if not events or events[0].hash != kept.registry:
        demand([Problem(kind="head", subject=str(kept.count), text="it is of another registry, or the whole log was rewritten")], where)
    demand([*chain.problems, *check_head(events, Head(count=kept.count, hash=kept.hash))], where)


def check_now(events: Sequence[Event], now: datetime, policy: Policy) -> None:
    """Raises ClockApart where this machine's clock is far behind the log's last event."""
    last = events[-1]
    try:
        then = at(last.utc)
    except ValueError as error:
        raise ClockApart(f"event {last.seq} says {last.utc[:40]!r}, which is no time", then="See: selectune verify") from error
    if now < then - timedelta(minutes=policy.clock_minutes):
        check_clock(then, now, policy, f"event {last.seq} and this machine")


def check_witnessed(standing: Standing, witness: Witness | None) -> None:
    """Raises RegistryError where the policy wants signed heads and nobody keeps them."""
    if standing.policy and standing.policy.signed_head and witness is None:
        raise RegistryError(
            "the policy wants the head of the log signed and kept elsewhere after each move",
            then="Set SELECTUNE_HEAD to a file, git:FILE or a URL, and SELECTUNE_HEAD_KEY to a key.",
        )


def policy_event(envelope: Envelope, standing: Standing) -> tuple[Policy, dict[str, Any]]:
    """A new policy, and its event's actor, subject and body. Raises what `check_successor` raises."""
    standing.demand_sound()
    policy = check_successor(envelope, standing.policy)
    signer = (standing.policy or policy).signer(envelope, ("admin",), where="policy")
    return policy, {"actor": signer.person.name, "kind": "policy", "subject": policy.digest, "body": {"signed": envelope.to_json()}}


def signed_event(envelope: Envelope, standing: Standing, found: Mapping[str, Update], now: datetime) -> dict[str, Any]:
    """The event that an approval or a revocation makes, of one of the updates `found`, by id. Raises what speaks against it."""
    standing.demand_sound()
    policy = standing.policy
    if policy is None:
        raise RegistryError("there is no policy that says who may approve", then="Let an admin make one: selectune policy sign, then set")
    if envelope.payload_type == payload_type(Revocation):
        said: Approval | Revocation = envelope.read(Revocation, "revocation")
    elif envelope.payload_type == payload_type(Approval):
        said = envelope.read(Approval, "approval")
    else:
        what = f"{envelope.payload_type[:80]!r} is neither an approval nor a revocation"
        raise DocumentError(what, where="signed", then="Give the right file.")
    update = found.get(said.update)
    if update is None:
        raise RegistryError(f"update {said.update[:12]} is not in this registry", where="signed", then="See them all: selectune log")
    event: dict[str, Any] = {"actor": said.name, "subject": update.id, "body": {"signed": envelope.to_json()}}
    where = f"update {update.id[:12]}"
    if isinstance(said, Revocation):
        check_revocation(policy, envelope, target_of(update), where=where)
        return {**event, "kind": "revoke"}
    check_approval(policy, envelope, target_of(update), where=where)
    check_clock(at(said.utc), now, policy, where)
    standing.demand_alive(update.id)
    _check_separate(said, standing, update, policy)
    return {**event, "kind": "approve"}


def _check_separate(said: Approval, standing: Standing, update: Update, policy: Policy) -> None:
    """Raises OwnApproval where the author and the approver of an update would be one person."""
    if policy.single_person:
        return
    others = {one.approval.name for one in standing.signatures(update.id) if one.approval and one.approval.role != said.role}
    named_as_author = said.role == "approver" and said.name.casefold() == update.actor.casefold()
    if said.name in others or named_as_author:
        raise own_approval(said.name, f"update {update.id[:12]}")
