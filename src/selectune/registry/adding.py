"""An update becomes part of a registry: its objects first, its event last."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from selectune.delta.format import Delta
from selectune.errors import Overtaken, StorageError, WrongParent
from selectune.registry.blobs import opened
from selectune.registry.finding import resolve
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import collected, condemned, updates
from selectune.registry.snapshots import Read, keep
from selectune.registry.standing import Standing
from selectune.registry.store import Blobs, again
from selectune.registry.update import Update, check_attachment

__all__ = ["add", "check_place", "commit"]


def add(
    ledger: Ledger,
    blobs: Blobs,
    update: Update,
    delta_path: str | os.PathLike[str],
    attachments: Mapping[str, Path | bytes],
    values: Read | None = None,
) -> str:
    """Records an update with its delta and other files, and returns its id. Raises what `Registry.add` raises."""
    files = {check_attachment(name): source for name, source in sorted(attachments.items())}
    with opened(Path(delta_path)) as file:
        data = file.read()
    # Read once: what is checked is what is stored, and a store far away need not send it back.
    delta = Delta.from_bytes(data, where=os.fspath(delta_path))
    parent = None if update.parent is None else resolve(update.parent, updates(ledger.log.read()), ledger.where)
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
    commit(ledger, blobs, whole, sources)
    id_ = whole.computed_id()
    keep(ledger, blobs, id_, values)
    return id_


@again
def commit(ledger: Ledger, blobs: Blobs, whole: Update, sources: Mapping[str, Path | bytes]) -> bool:
    """Appends the event of an update whose objects are put already; whether it was new. `sources` are its objects by digest.

    What a `gc` took between `put` and now is put again. Raises Collected where the parent's bytes are gone, Overtaken while a `gc` takes
    one of its objects, StorageError for a source that is another than it was.
    """
    id_ = whole.computed_id()
    with ledger.log.deciding() as (events, connection):
        gone = collected(events)
        if whole.parent is not None:
            Standing(collected=gone).demand_kept(whole.parent)
        if sources.keys() & condemned(events).keys():
            raise Overtaken(
                "a gc is removing an object of this update", where=ledger.where, then="Let it end, or finish it: selectune gc --delete"
            )
        for digest, source in sources.items():
            if not blobs.has(digest) and blobs.put(source) != digest:
                raise StorageError("changed while it was added", where=str(source)[:200], then="Add it again.")
        known = any(event.kind == "add" and event.subject == id_ for event in events)
        if known and id_ not in gone:
            return False
        ledger.log.append_to(connection, {**ledger.event("add", whole.actor), "subject": id_, "body": whole.body()})
    return True


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
