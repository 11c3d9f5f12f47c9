"""What may be loaded, and the deltas that lead to it."""

from __future__ import annotations

from selectune.registry.checking import check_chain, demand
from selectune.registry.finding import resolve
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import updates
from selectune.registry.signing import Admitted, check_kept
from selectune.registry.snapshots import shortest
from selectune.registry.standing import standing
from selectune.registry.store import Blobs

__all__ = ["admit"]


def admit(ledger: Ledger, blobs: Blobs, id_or_name: str) -> Admitted:
    """A version that may be loaded, checked before a weight is used. Raises what `Registry.admit` raises."""
    events = ledger.log.read()
    if ledger.witness:
        check_kept(events, ledger.witness.kept(), ledger.witness.place)
    demand(check_chain(events, None), ledger.where)
    found = updates(events)
    update, signed = resolve(id_or_name, found, ledger.where), standing(events, found)
    signed.demand_sound()
    signed.demand_alive(update.id)
    signed.demand_kept(update.id)
    if id_or_name in update.names:
        signed.demand(update, id_or_name, judged=False)
    for digest in update.attachments.values():
        blobs.read(digest)
    return Admitted(update=update, deltas=tuple(shortest(blobs, update, events, ledger.where)), notes=tuple(signed.notes(update.id)))
