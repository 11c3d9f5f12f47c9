"""What people sign of a registry becomes part of it: policies, approvals, revocations."""

from __future__ import annotations

from typing import Literal

from selectune.errors import RegistryError
from selectune.governance import statements
from selectune.governance.documents import Envelope
from selectune.governance.keys import PrivateKey
from selectune.governance.policy import Policy
from selectune.registry.ledger import Ledger, demand_said
from selectune.registry.signatures import target_of
from selectune.registry.signing import policy_event, signed_event
from selectune.registry.standing import Standing
from selectune.registry.store import again
from selectune.registry.update import Update, check_name

__all__ = ["approve", "demand_policy", "record", "revoke", "set_policy"]


@again
def set_policy(ledger: Ledger, signed: Envelope) -> Policy:
    """Puts a signed policy in force. Raises PolicyRefused for one that no admin of the policy before it has signed."""
    with ledger.deciding() as now:
        policy, event = policy_event(signed, now.standing)
        now.append({**ledger.event("policy", event["actor"]), **event})
    return policy


@again
def record(ledger: Ledger, signed: Envelope) -> None:
    """Records an approval or a revocation that was signed elsewhere, if the policy lets its signer. Raises what speaks against it."""
    with ledger.deciding() as now:
        event = signed_event(signed, now.standing, now.tally.updates, ledger.clock())
        now.append({**ledger.event(event["kind"], event["actor"]), **event})


def approve(ledger: Ledger, id_or_name: str, key: PrivateKey, *, name: str, role: Literal["author", "approver"]) -> Envelope:
    """Signs an update in a role, for a name. Raises what `Registry.approve` raises."""
    tally = ledger.tally()
    target = target_of(tally.resolve(id_or_name, ledger.where))
    policy = demand_policy(tally.standing, ledger.where)
    envelope = statements.approve(policy, key, (role, check_name(name)), target, ledger.clock())
    record(ledger, envelope)
    return envelope


def revoke(ledger: Ledger, id_or_name: str, reason: str, actor: str, key: PrivateKey | None) -> None:
    """Ends an update; with a policy `key` signs that. Raises what `Registry.revoke` raises."""
    tally = ledger.tally()
    update, standing = tally.resolve(id_or_name, ledger.where), tally.standing
    demand_said(reason, actor, what="revoke", where=ledger.where)
    if update.id in standing.revoked:
        raise RegistryError(f"update {update.id[:12]} is revoked already", where=ledger.where, then="See it: selectune show ID")
    if standing.policy is None:
        _end(ledger, update, reason, actor)
    elif key is None:
        raise RegistryError(
            "the policy wants revocations signed", where=ledger.where, then="Give the key of an approver or admin: --key KEY"
        )
    else:
        record(ledger, statements.revoke(standing.policy, key, reason, target_of(update), ledger.clock()))


@again
def _end(ledger: Ledger, update: Update, reason: str, actor: str) -> None:
    with ledger.deciding() as now:
        now.append({**ledger.event("revoke", actor), "subject": update.id, "body": {"reason": reason}})


def demand_policy(standing: Standing, where: str) -> Policy:
    """The policy in force. Raises RegistryError without one."""
    if standing.policy is None:
        raise RegistryError(
            "there is no policy that says who may approve", where=where, then="Let an admin make one: selectune policy sign, then set"
        )
    return standing.policy
