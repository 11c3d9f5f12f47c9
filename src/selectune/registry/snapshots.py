"""Snapshots: one delta from the base to an update, so that no version takes more than eight deltas to rebuild.

A snapshot is an object and an event. It is never needed: it says again what the deltas say, and an old delta that is lost or damaged does
not take the versions after it along. What it leads to is checked by the model's id, as with any delta.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from selectune.errors import DeltaError, RegistryError, SelectuneError, WrongParent
from selectune.registry.claims import demand_free
from selectune.registry.events import Event
from selectune.registry.finding import ancestry, back
from selectune.registry.lineage import collected, updates
from selectune.registry.store import Blobs, again
from selectune.registry.update import Update

if TYPE_CHECKING:
    from selectune.delta.format import Delta
    from selectune.registry.ledger import Ledger

__all__ = ["DEPTH", "Read", "faults", "keep", "read_delta", "shortest", "snapshots", "steps"]

DEPTH = 8
"""The most deltas, a snapshot among them, from a base to a version."""
Read = Callable[[str], Any]
"""Gives a tensor of the update's model by its name in memory, a torch.Tensor on the CPU."""


def snapshots(events: Sequence[Event], before: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """By update: the digest of its snapshot. One that was collected has none, also where it was added again. It goes on from `before`."""
    found = dict(before)
    for event in events:
        if event.kind == "gc":
            for id_ in collected([event]):
                found.pop(id_, None)
        elif event.kind == "snapshot" and event.subject:
            found[event.subject] = str(event.body.get("snapshot"))
    return found


def read_delta(blobs: Blobs, digest: str) -> Delta:
    """The delta in an object, checked; its parts stay in the file, mapped, until they are used. Raises RegistryError, DeltaError."""
    from selectune.delta.format import Delta

    with blobs.open(digest) as file:
        empty = not os.fstat(file.fileno()).st_size  # which cannot be mapped
        data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Delta.from_bytes(data, where=digest[:12])


def steps(blobs: Blobs, line: Sequence[Update], where: str) -> list[Delta]:
    """The deltas of updates that follow each other, checked. Raises WrongParent where one does not follow."""
    chain: list[Delta] = []
    for update in line:
        delta = read_delta(blobs, update.delta)
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
    delta = read_delta(blobs, digest)
    if (delta.parent, delta.child) != (line[0].base, line[-1].child):
        what = f"the snapshot of update {line[-1].id[:12]} is between other models"
        raise WrongParent(what, where=digest[:12], then="See why: selectune verify")
    return delta


def keep(ledger: Ledger, blobs: Blobs, id_: str, values: Read | None = None) -> None:
    """Stores a snapshot of an update that would take more than `DEPTH` deltas to rebuild, and first of every ninth that came with it.

    `values` gives tensors of the update's model. Raises what `shortest` and `delta.composing.compose` raise.
    """
    tally = ledger.tally()
    line: list[Update] = []
    for update in back(tally.updates[id_], tally.updates, ledger.where):
        line.append(update)
        if update.id in tally.snapshots:
            break
    # With the newest snapshot the next eight versions make nine deltas; without one the first nine do.
    for update in line[::-1][DEPTH::DEPTH]:
        _make(ledger, blobs, update, values if update.id == id_ else None)


def _make(ledger: Ledger, blobs: Blobs, update: Update, values: Read | None) -> None:
    from selectune.delta.composing import compose

    made = compose(shortest(blobs, update, ledger.log.read(), ledger.where), values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.delta"
        made.save(path)
        _commit(ledger, blobs, update, path)


@again
def _commit(ledger: Ledger, blobs: Blobs, update: Update, path: Path) -> None:
    """The object, then its event; a `gc` that runs between both is waited for by the log."""
    digest = blobs.put(path)
    with ledger.log.deciding() as (events, connection):
        if update.id in snapshots(events) or update.id in collected(events):
            return
        demand_free([digest], events, ledger)
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
