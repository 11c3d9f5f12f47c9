"""The registry: what a user calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from selectune.delta.format import Delta
from selectune.errors import NotYet, RegistryError, WrongParent
from selectune.registry.blobs import Blobs
from selectune.registry.checking import Report, check
from selectune.registry.events import GENESIS, Event, Head, Log, sqlite_url
from selectune.registry.lineage import moves, pointers, targets, updates
from selectune.registry.update import Move, Update, check_attachment, check_name

__all__ = ["Registry"]

FORMAT = 1
_DATABASE = "registry.sqlite"
_SHORTEST = 4


def _now() -> datetime:
    return datetime.now(UTC)


class Registry:
    """Updates that never change, names that move, and the log of both.

    >>> import tempfile
    >>> registry = Registry.open(tempfile.mkdtemp() + "/registry", create=True)
    >>> registry.log(), registry.names(), registry.verify().ok
    ([], {}, True)
    """

    def __init__(self, log: Log, blobs: Blobs, *, where: str, clock: Callable[[], datetime] = _now) -> None:
        self._log = log
        self._blobs = blobs
        self.where = where
        self._clock = clock

    @classmethod
    def open(cls, url: str | os.PathLike[str], create: bool = False, *, clock: Callable[[], datetime] = _now) -> Registry:
        """The registry in a folder, or of a team: ``postgresql+psycopg://host/database?blobs=/shared/folder``.

        Only with `create` is anything made. `clock` gives the time of events, with its zone. Raises RegistryError where no registry is,
        StorageError for a folder that cannot be written, MissingPackage without the database's driver.
        """
        text = os.fspath(url)
        log, root = _team(text) if "://" in text else _folder(Path(text), create=create)
        where = log.url.render_as_string(hide_password=True) if "://" in text else text
        registry = cls(log, Blobs(root / "blobs"), where=where, clock=clock)
        if create:
            registry._blobs.create()
            log.create({**registry._event("create", "selectune"), "body": {"format": FORMAT}})
        else:
            log.names()
        return registry

    def add(self, update: Update, delta_path: str | os.PathLike[str], attachments: Mapping[str, Path | bytes] | None = None) -> str:
        """Records an update with its delta and other files, and returns its id; the same update again changes nothing.

        `attachments` are by name: "result.json", "samples.parquet", "report.html". The objects are on the disk before the event is. Raises
        DeltaError for a damaged delta, WrongParent for one that does not start where the parent update ends, RegistryError for an unknown
        parent.
        """
        files = {check_attachment(name): source for name, source in sorted((attachments or {}).items())}
        delta_digest = self._blobs.put(Path(delta_path))
        delta = Delta.from_bytes(self._blobs.read(delta_digest), where=os.fspath(delta_path))
        parent = update.parent if update.parent is None else self.show(update.parent).id
        self._check_place(update, delta, parent)
        whole = replace(
            update,
            parent=parent,
            base=delta.parent,
            child=delta.child,
            delta=delta_digest,
            attachments={name: self._blobs.put(source) for name, source in files.items()},
        )
        id_ = whole.computed_id()
        event = {**self._event("add", update.actor), "subject": id_, "body": whole.body()}
        self._log.append(event, once=True)
        return id_

    def _check_place(self, update: Update, delta: Delta, parent: str | None) -> None:
        for said, is_, what in ((update.base, delta.parent, "base"), (update.child, delta.child, "child")):
            if said and said != is_:
                raise WrongParent(
                    f"the update's {what} is {said[:12]}, its delta's {is_[:12]}",
                    where="registry.add",
                    then="Leave both empty: the delta knows them.",
                )
        if parent is not None and (end := self.show(parent).child) != delta.parent:
            raise WrongParent(
                f"update {parent[:12]} leads to model {end[:12]}, the delta starts from {delta.parent[:12]}",
                where="registry.add",
                then="Name the update on which this one was trained as its parent.",
            )

    def log(self, name: str | None = None) -> list[Update]:
        """Every update, newest first; or, with a name or an id, that update and its ancestors."""
        found = updates(self._log.read())
        if name is None:
            return found[::-1]
        return self._ancestry(self._resolve(name, found), found)[::-1]

    def show(self, id_or_name: str) -> Update:
        """The update with this id, this beginning of an id (4 digits or more), or this name. Raises RegistryError with near matches."""
        found = updates(self._log.read())
        return self._resolve(id_or_name, found)

    def _resolve(self, wanted: str, found: Sequence[Update]) -> Update:
        by_name = {name: update for update in found for name in update.names}
        if wanted in by_name:
            return by_name[wanted]
        matches = [update for update in found if len(wanted) >= _SHORTEST and update.id.startswith(wanted.lower())]
        if len(matches) == 1:
            return matches[0]
        if matches:
            shown = ", ".join(f"{update.id[:16]} ({update.skill})" for update in matches[:5])
            raise RegistryError(f'"{wanted}" is the beginning of {len(matches)} ids', where=self.where, then=f"Give more digits: {shown}.")
        near = get_close_matches(wanted, by_name, n=3, cutoff=0.5)
        near += [id_[:12] for id_ in get_close_matches(wanted, [update.id[: max(len(wanted), 12)] for update in found], n=2, cutoff=0.6)]
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise RegistryError(
            f'"{wanted[:80]}" is no name and no id of an update', where=self.where, then=f"{hint}See them all: selectune log"
        )

    def promote(self, id_or_name: str, name: str, reason: str, actor: str) -> Move:
        """Points `name` to an update; reason and actor are kept. Raises RegistryError for an unknown update or a bad name."""
        return self._move("promote", check_name(name), reason, actor, id_or_name)

    def revert(self, name: str, reason: str, actor: str) -> Move:
        """Points `name` back to where it pointed before its last promotion; again, and it goes back one more.

        Raises RegistryError for an unknown name, and for one that has only ever pointed to one update.
        """
        return self._move("revert", name, reason, actor, None)

    def _move(self, kind: str, name: str, reason: str, actor: str, wanted: str | None) -> Move:
        if not reason.strip() or not actor.strip():
            raise RegistryError(
                f"{kind} {name}: the reason or the actor is empty", where=self.where, then="Say why, and who: --reason TEXT."
            )
        with self._log.deciding() as (events, connection):
            found = updates(events)
            current = pointers(events).get(name)
            target = self._previous(name, events) if wanted is None else self._resolve(wanted, found).id
            if kind == "promote" and target == current:
                raise RegistryError(
                    f"{name} already points to {target[:12]}", where=self.where, then="See where it led from: selectune log"
                )
            verdict = next(update.verdict for update in found if update.id == target)
            body = {"previous": current, "reason": reason, "verdict": verdict}
            event = {**self._event(kind, actor), "name": name, "subject": target, "body": body}
            self._log.append_to(connection, event)
            seq = len(events) + 1
        return Move(
            name=name,
            update=target,
            previous=current,
            kind=kind,
            reason=reason,
            actor=actor,
            verdict=verdict,
            created=str(event["utc"]),
            seq=seq,
        )

    def _previous(self, name: str, events: Sequence[Event]) -> str:
        history = moves(events, name)
        if not history:
            near = get_close_matches(name, pointers(events), n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}?" if near else "Give it to an update first: selectune promote ID NAME"
            raise RegistryError(f'"{name[:80]}" is no name', where=self.where, then=hint)
        stack = targets(history)
        if len(stack) < 2:
            raise RegistryError(f"{name} has no earlier update to go back to", where=self.where, then="Promote another update instead.")
        return stack[-2]

    def names(self) -> dict[str, str]:
        """Where each name points: name to update id."""
        return self._log.names()

    def history(self, name: str | None = None) -> list[Move]:
        """The moves of a name (of all), oldest first."""
        return moves(self._log.read(), name)

    def head(self) -> Head:
        """The end of the log now. Keep it elsewhere: with it `verify` finds a log that was cut."""
        events = self._log.read()
        return Head(count=len(events), hash=events[-1].hash if events else GENESIS)

    def verify(self, head: Head | None = None) -> Report:
        """Recomputes every hash of events, updates, objects and deltas; `head` is one that was kept elsewhere.

        The report lists what is wrong; `report.demand()` raises VerifyFailed for it.
        """
        return check(self._log.read(lenient=True), self._blobs, head)

    def blob(self, digest: str) -> Path:
        """Where an object lies, for a program that reads files; its bytes are not checked. Raises RegistryError for a missing one."""
        return self._blobs.path(digest)

    def attachment(self, id_or_name: str, name: str) -> bytes:
        """An update's attached file, checked. Raises RegistryError with the names that there are."""
        attached = self.show(id_or_name).attachments
        if name not in attached:
            raise RegistryError(f"{name!r} is not attached", where=id_or_name, then=f"There are: {', '.join(sorted(attached)) or 'none'}.")
        return self._blobs.read(attached[name])

    def delta(self, id_or_name: str) -> Delta:
        """An update's delta, read once and checked. Raises RegistryError or DeltaError for a damaged one."""
        update = self.show(id_or_name)
        return Delta.from_bytes(self._blobs.read(update.delta), where=update.delta[:12])

    def chain(self, id_or_name: str) -> list[Delta]:
        """The deltas from the base model to this update, in the order in which they apply. Raises WrongParent where one does not follow."""
        found = updates(self._log.read())
        deltas: list[Delta] = []
        for update in self._ancestry(self._resolve(id_or_name, found), found):
            delta = Delta.from_bytes(self._blobs.read(update.delta), where=update.delta[:12])
            if (deltas and deltas[-1].child != delta.parent) or (delta.parent, delta.child) != (update.base, update.child):
                raise WrongParent(
                    f"the delta of update {update.id[:12]} does not follow", where=self.where, then="See why: selectune verify"
                )
            deltas.append(delta)
        return deltas

    def _ancestry(self, update: Update, found: Sequence[Update]) -> list[Update]:
        """The update and its ancestors, the oldest first."""
        by_id = {one.id: one for one in found}
        line = [update]
        while line[-1].parent is not None:
            parent = by_id.get(line[-1].parent)
            # An id is a digest that covers its parent's, so a circle needs a broken sha256 or an edited log.
            if parent is None or parent in line:
                raise RegistryError(
                    f"the parent of update {line[-1].id[:12]} is missing", where=self.where, then="See why: selectune verify"
                )
            line.append(parent)
        return line[::-1]

    def _event(self, kind: str, actor: str) -> dict[str, Any]:
        utc = self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"utc": utc, "actor": actor, "kind": kind, "name": None, "subject": None}


def _folder(folder: Path, *, create: bool) -> tuple[Log, Path]:
    database = folder / _DATABASE
    if create:
        Blobs(folder / "blobs").create()
    elif not database.is_file():
        raise RegistryError("there is no registry here", where=str(folder), then="Record a run first: selectune run RECIPE --registry DIR")
    return Log(sqlite_url(database.absolute(), create=create)), folder


def _team(text: str) -> tuple[Log, Path]:
    try:
        url = sa.make_url(text)
    except ArgumentError as error:
        raise RegistryError(
            f"{text[:80]!r} is no URL of a database", then="Use a folder, or postgresql+psycopg://host/database?blobs=FOLDER"
        ) from error
    if url.get_backend_name() != "postgresql":
        raise NotYet(f"a registry at {url.drivername}://", then="Use a folder, or postgresql+psycopg://host/database?blobs=FOLDER")
    blobs = url.query.get("blobs")
    if not isinstance(blobs, str) or "://" in blobs:
        raise RegistryError(
            "the URL does not say in which local or shared folder the objects are", where=url.host, then="End it with ?blobs=FOLDER"
        )
    return Log(url.difference_update_query(["blobs"])), Path(blobs)
