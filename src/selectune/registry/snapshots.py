"""Snapshots: one delta from the base to an update, so that no version takes more than eight deltas to rebuild.

A snapshot is an object and an event. It is never needed: it says again what the deltas say, and an old delta that is lost or damaged does
not take the versions after it along. What it leads to is checked by the model's id, as with any delta.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.delta.format import Delta
from selectune.errors import DeltaError, RegistryError, SelectuneError, WrongParent
from selectune.registry.events import Event
from selectune.registry.finding import ancestry
from selectune.registry.lineage import collected, updates
from selectune.registry.store import Blobs, again
from selectune.registry.update import Update

if TYPE_CHECKING:
    from selectune.registry.ledger import Ledger

__all__ = ["DEPTH", "Read", "faults", "keep", "shortest", "snapshots", "steps"]

DEPTH = 8
"""The most deltas, a snapshot among them, from a base to a version."""
Read = Callable[[str], Any]
"""Gives a tensor of the update's model by its name in memory, a torch.Tensor on the CPU."""


def snapshots(events: Sequence[Event]) -> dict[str, str]:
    """By update: the digest of its snapshot. Those of collected updates are not among them."""
    gone = collected(events)
    return {
        event.subject: str(event.body.get("snapshot"))
        for event in events
        if event.kind == "snapshot" and event.subject and event.subject not in gone
    }


def steps(blobs: Blobs, line: Sequence[Update], where: str) -> list[Delta]:
    """The deltas of updates that follow each other, checked. Raises WrongParent where one does not follow."""
    chain: list[Delta] = []
    for update in line:
        delta = Delta.from_bytes(blobs.read(update.delta), where=update.delta[:12])
        if (chain and chain[-1].child != delta.parent) or (delta.parent, delta.child) != (update.base, update.child):
            raise WrongParent(f"the delta of update {update.id[:12]} does not follow", where=where, then="See why: selectune verify")
        chain.append(delta)
    return chain


def shortest(blobs: Blobs, wanted: Update, events: Sequence[Event], where: str) -> list[Delta]:
    """Deltas from the base model to an update: the newest snapshot on its line that is whole, and the updates' own after it.

    Raises what the shortest way raises where no way is whole: RegistryError and DeltaError for damaged objects, WrongParent.
    """
    line, kept = ancestry(wanted, updates(events), where), snapshots(events)
    first: SelectuneError | None = None
    for start in range(len(line) - 1, -1, -1):
        if line[start].id in kept:
            try:
                return [_snapshot(blobs, kept[line[start].id], line[: start + 1]), *steps(blobs, line[start + 1 :], where)]
            except (RegistryError, DeltaError, WrongParent) as error:
                first = first or error
    try:
        return steps(blobs, line, where)
    except (RegistryError, DeltaError, WrongParent) as error:
        raise first or error from error


def _snapshot(blobs: Blobs, digest: str, line: Sequence[Update]) -> Delta:
    """The snapshot of the line's last update. Raises WrongParent for one that is between other models."""
    delta = Delta.from_bytes(blobs.read(digest), where=digest[:12])
    if (delta.parent, delta.child) != (line[0].base, line[-1].child):
        what = f"the snapshot of update {line[-1].id[:12]} is between other models"
        raise WrongParent(what, where=digest[:12], then="See why: selectune verify")
    return delta


def keep(ledger: Ledger, blobs: Blobs, id_: str, values: Read | None = None) -> None:
    """Stores an update's snapshot where it would take more than `DEPTH` deltas to rebuild; nothing happens where it has one.

    Raises what `shortest` and `delta.composing.compose` raise.
    """
    events = ledger.log.read()
    found = updates(events)
    update = next(one for one in found if one.id == id_)
    line, kept = ancestry(update, found, ledger.where), snapshots(events)
    since = next((number for number, one in enumerate(reversed(line)) if one.id in kept), None)
    if (len(line) if since is None else since + 1) <= DEPTH:
        return
    from selectune.delta.composing import compose

    made = compose(shortest(blobs, update, events, ledger.where), values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.delta"
        made.save(path)
        _commit(ledger, blobs, update, path)


@again
def _commit(ledger: Ledger, blobs: Blobs, update: Update, path: Path) -> None:
    """The object, then its event; a `gc` that runs between both is waited for by the log."""
    digest = blobs.put(path)
    with ledger.log.deciding() as (events, connection):
        if update.id in snapshots(events):
            return
        if not blobs.has(digest):
            blobs.put(path)
        ledger.log.append_to(connection, {**ledger.event("snapshot", update.actor), "subject": update.id, "body": {"snapshot": digest}})


def faults(events: Sequence[Event], found: Sequence[Update], blobs: Blobs, broken: Collection[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with snapshots, by the update: each is made again of the one before it and the deltas since, where those are whole."""
    kept, known = snapshots(events), {update.id for update in found}
    for id_, digest in kept.items():
        if id_ not in known:
            yield id_, "a snapshot of an unknown update"
        elif digest not in broken:
            try:
                line = ancestry(next(one for one in found if one.id == id_), found, "verify")
                yield from ((id_, text) for text in _differences(blobs, line, kept, _snapshot(blobs, digest, line)))
            except SelectuneError as error:
                yield id_, error.what


def _differences(blobs: Blobs, line: Sequence[Update], kept: dict[str, str], held: Delta) -> Iterator[str]:
    from selectune.delta.composing import compose

    start = next((number for number in range(len(line) - 2, -1, -1) if line[number].id in kept), None)
    try:
        before = [] if start is None else [_snapshot(blobs, kept[line[start].id], line[: start + 1])]
        made = compose([*before, *steps(blobs, line[0 if start is None else start + 1 :], "verify")])
    except SelectuneError:
        return  # what is damaged is reported by itself
    bits = {(part.parameter, part.slice): part.sha256 for part in made.parts if not part.replaces}
    if dict(held.tensors) != dict(made.tensors):
        yield "the snapshot leads to other tensors than the updates' deltas"
    elif any(bits.get((part.parameter, part.slice), part.sha256) != part.sha256 for part in held.parts if not part.replaces):
        yield "the snapshot changes other bits than the updates' deltas"
