"""What may be loaded, and the deltas that lead to it."""

from __future__ import annotations

from selectune.registry.checking import Chain, chained, demand
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
    chain = chained(events, Chain())
    if ledger.witness and (kept := ledger.witness.kept()):
        check_kept(events, chain, kept, ledger.witness.place)
    demand(chain.problems, ledger.where)
    found = updates(events)
    update, signed = resolve(id_or_name, found, ledger.where), standing(events, found)
    signed.demand_sound()
    signed.demand_alive(update.id)
    signed.demand_kept(update.id)
    signed.demand_moved(id_or_name)
    if id_or_name in update.names:
        signed.demand(update, id_or_name, judged=False)
    for digest in update.attachments.values():
        with blobs.open(digest):  # which hashes it, and does not hold it
            pass
    return Admitted(update=update, deltas=tuple(shortest(blobs, update, events, ledger.where)), notes=tuple(signed.notes(update.id)))
