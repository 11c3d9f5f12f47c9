"""Names move: promotions, and reverts of them."""

from __future__ import annotations

from difflib import get_close_matches

from selectune.errors import RegistryError
from selectune.registry.ledger import Ledger, demand_said
from selectune.registry.store import again
from selectune.registry.tally import Tally
from selectune.registry.update import Move

__all__ = ["move"]


@again
def move(ledger: Ledger, kind: str, name: str, reason: str, actor: str, wanted: str | None = None) -> Move:
    """Points a name to the update that is `wanted`, or, without one, back to where it pointed before its last promotion.

    Raises what `Registry.promote` and `Registry.revert` raise.
    """
    demand_said(reason, actor, what=f"{kind} {name}", where=ledger.where)
    with ledger.deciding() as now:
        current = now.tally.names.get(name)
        target = _previous(name, now.tally, ledger.where) if wanted is None else now.tally.resolve(wanted, ledger.where).id
        if kind == "promote" and target == current:
            raise RegistryError(f"{name} already points to {target[:12]}", where=ledger.where, then="See where it led from: selectune log")
        update = now.tally.updates[target]
        if kind == "promote":
            if name in now.tally.tags:
                raise RegistryError(f"{name} is a tag, and a tag never moves", where=ledger.where, then="Choose another name.")
            now.standing.demand_current(target)
        else:
            now.standing.demand_placed(target, name)
        now.standing.demand_kept(target)
        now.standing.demand(update, name, judged=kind == "promote")
        body = {"previous": current, "reason": reason, "verdict": update.verdict}
        event = now.append({**ledger.event(kind, actor), "name": name, "subject": target, "body": body})
        seq = len(now.events) + 1
    return Move(
        name=name,
        update=target,
        previous=current,
        kind=kind,
        reason=reason,
        actor=str(event["actor"]),
        verdict=update.verdict,
        created=str(event["utc"]),
        seq=seq,
    )


def _previous(name: str, tally: Tally, where: str) -> str:
    if name not in tally.names:
        near = get_close_matches(name, tally.names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Give it to an update first: selectune promote ID NAME"
        raise RegistryError(f'"{name[:80]}" is no name', where=where, then=hint)
    stack = tally.stacks[name]
    if stack is None or stack[1] is None:
        raise RegistryError(f"{name} has no earlier update to go back to", where=where, then="Promote another update instead.")
    return stack[1][0]
