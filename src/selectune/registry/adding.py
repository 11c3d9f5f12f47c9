"""Updates become part of a registry: their objects first, their events last and in one step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.errors import StorageError, WrongParent
from selectune.registry.blobs import opened
from selectune.registry.claims import demand_free
from selectune.registry.events import Event
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import collected
from selectune.registry.snapshots import Read, keep
from selectune.registry.standing import Standing
from selectune.registry.store import Blobs, again
from selectune.registry.update import Update, check_attachment

if TYPE_CHECKING:
    from selectune.delta.format import Delta

__all__ = ["Arrival", "add", "arriving", "check_place", "commit"]

Source = Path | bytes | Callable[[], Path | bytes]
"""An object's bytes, or where they are."""


def add(
    ledger: Ledger,
    blobs: Blobs,
    update: Update,
    delta_path: str | os.PathLike[str],
    attachments: Mapping[str, Path | bytes],
    values: Read | None = None,
) -> str:
    """Records an update with its delta and other files, and returns its id. Raises what `Registry.add` raises."""
    from selectune.delta.format import Delta

    files = {check_attachment(name): source for name, source in sorted(attachments.items())}
    with opened(Path(delta_path)) as file:
        data = file.read()
    # Read once: what is checked is what is stored, and a store far away need not send it back.
    delta = Delta.from_bytes(data, where=os.fspath(delta_path))
    parent = None if update.parent is None else ledger.tally().resolve(update.parent, ledger.where)
    check_place(update, delta, parent)
    with blobs.together():
        delta_digest = blobs.put(data)
        digests = {name: blobs.put(source) for name, source in files.items()}
    whole = replace(
        update,
        parent=parent.id if parent else None,
        base=delta.parent,
        child=delta.child,
        delta=delta_digest,
        attachments=digests,
    )
    sources = {delta_digest: Path(delta_path), **{digests[name]: source for name, source in files.items()}}
    commit(ledger, blobs, [Arrival(update=whole, sources=sources)])
    id_ = whole.computed_id()
    keep(ledger, blobs, id_, values)
    return id_


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """An update whose objects are put already."""

    update: Update
    sources: Mapping[str, Source]
    """Its objects by digest, for one that a `gc` takes between `put` and the event."""


@again
def commit(ledger: Ledger, blobs: Blobs, arrivals: Sequence[Arrival]) -> int:
    """Appends the events of updates, all in one step; how many were new. Raises as `arriving`."""
    with ledger.log.deciding() as (events, connection):
        said = arriving(ledger, blobs, events, arrivals)
        for event in said:
            ledger.log.append_to(connection, event)
    return len(said)


def arriving(ledger: Ledger, blobs: Blobs, events: Sequence[Event], arrivals: Sequence[Arrival]) -> list[dict[str, Any]]:
    """The events by which updates, the oldest first, become part of a log whose events are these; none for one that is there.

    In the same `deciding` block they are to be appended. What a `gc` took between `put` and now is put again. Raises Collected where a
    parent's bytes are gone, Overtaken while a `gc` removes one of the objects, StorageError for a source that is another than it was.
    """
    gone = collected(events)
    known = {event.subject for event in events if event.kind == "add"} - gone.keys()
    demand_free({digest for one in arrivals for digest in one.sources}, events, ledger)
    said = list[dict[str, Any]]()
    for one in arrivals:
        id_ = one.update.computed_id()
        if one.update.parent is not None and one.update.parent not in known:
            Standing(collected=gone).demand_kept(one.update.parent)
        for digest, source in one.sources.items():
            if not blobs.has(digest) and blobs.put(source() if callable(source) else source) != digest:
                where = str(source) if isinstance(source, Path) else digest[:12]
                raise StorageError("changed while it was added", where=where, then="Add it again.")
        if id_ not in known:
            said.append({**ledger.event("add", one.update.actor), "subject": id_, "body": one.update.body()})
            known.add(id_)
    return said


def check_place(update: Update, delta: Delta, parent: Update | None) -> None:
    """Raises WrongParent where an update does not start where its parent leads to, or its delta is between other models."""
    for said, is_, what in ((update.base, delta.parent, "base"), (update.child, delta.child, "child")):
        if said and said != is_:
            raise WrongParent(
                f"the update's {what} is {said[:12]}, its delta's {is_[:12]}",
                where="registry.add",
                then="Leave both empty: the delta knows them.",
            )
    if parent is not None and parent.child != delta.parent:
        raise WrongParent(
            f"update {parent.id[:12]} leads to model {parent.child[:12]}, the delta starts from {delta.parent[:12]}",
            where="registry.add",
            then="Name the update on which this one was trained as its parent.",
        )
