"""The registry: what a user calls."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selectune.errors import RegistryError, VerifyFailed
from selectune.governance.documents import Envelope
from selectune.governance.heads import Witness, read_head, verify_head
from selectune.governance.keys import PrivateKey, PublicKey
from selectune.governance.policy import Policy
from selectune.registry.adding import add
from selectune.registry.admitting import admit
from selectune.registry.approving import approve, demand_policy, record, revoke, set_policy
from selectune.registry.carrying import Carried, Progress, Side, carry
from selectune.registry.checking import Report, check
from selectune.registry.collecting import Collection, Keep, collect
from selectune.registry.events import GENESIS, Head
from selectune.registry.finding import ancestry, resolve
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import collected, moves, updates
from selectune.registry.looks import KIND, Look, check_budget, looks
from selectune.registry.marking import hold, note, release, retire, tag
from selectune.registry.marks import tags
from selectune.registry.moving import move
from selectune.registry.packing import Packed, Unpacked, pack, unpack
from selectune.registry.places import exists, locate
from selectune.registry.repairing import Examined, examine
from selectune.registry.signing import Admitted
from selectune.registry.snapshots import Read, read_delta, shortest, steps
from selectune.registry.standing import Standing, standing
from selectune.registry.store import Blobs, EventLog, again
from selectune.registry.update import Move, Update, check_name
from selectune.registry.verifying import Verified, keep_report, verified

if TYPE_CHECKING:
    from selectune.delta.format import Delta

__all__ = ["Registry"]

FORMAT = 1


def _now() -> datetime:
    return datetime.now(UTC)


class Registry:
    """Updates that never change, names that move, and the log of both.

    >>> import tempfile
    >>> registry = Registry.open(tempfile.mkdtemp() + "/registry", create=True)
    >>> registry.log(), registry.names(), registry.verify().ok
    ([], {}, True)
    """

    def __init__(
        self,
        log: EventLog,
        blobs: Blobs,
        *,
        where: str,
        clock: Callable[[], datetime] = _now,
        witness: Witness | None = None,
        signer: PrivateKey | None = None,
    ) -> None:
        self._log = log
        self._blobs = blobs
        self.where = where
        self._ledger = Ledger(log=log, where=where, clock=clock, witness=witness, signer=signer)
        self._there = True

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        create: bool = False,
        *,
        clock: Callable[[], datetime] = _now,
        witness: Witness | None = None,
        signer: PrivateKey | None = None,
    ) -> Registry:
        """The registry in a folder, in an object store (``s3://bucket/prefix``), in a repository of the hub (``hf://owner/name``), or of a
        team with a database and objects in a folder or a store: ``postgresql+psycopg://host/database?blobs=/shared/folder``.

        Only with `create` is anything made. `clock` gives the time of events, with its zone. `witness` keeps a signed head of the log in a
        second place after each move and approval, and every version that is loaded is checked against it. `signer` signs each move, tag,
        retirement, hold and collection, and is then who did it; a policy may want that. Raises RegistryError where no registry is,
        StorageError for a folder that cannot be written, MissingPackage without the database's driver.
        """
        place = locate(os.fspath(url), create=create)
        registry = cls(place.log, place.blobs, where=place.where, clock=clock, witness=witness, signer=signer)
        if create:
            place.blobs.create()
            place.log.create({**registry._event("create", "selectune"), "body": {"format": FORMAT, "id": secrets.token_hex(16)}})
        else:
            place.log.names()
        return registry

    @classmethod
    def at(cls, url: str | os.PathLike[str], *, clock: Callable[[], datetime] = _now, witness: Witness | None = None) -> Registry:
        """The registry at a place where there may be none yet, for `push` and `pull` to fill: until then nothing is made.

        Raises what `open` raises, but for a registry that is not there.
        """
        there = exists(os.fspath(url))
        place = locate(os.fspath(url), create=not there)
        registry = cls(place.log, place.blobs, where=place.where, clock=clock, witness=witness)
        registry._there = there
        return registry

    def push(self, other: Registry, *, update: str | None = None, dry_run: bool = False, progress: Progress | None = None) -> Carried:
        """Sends this registry's history to another one, which `at` opened; as `other.pull(self)`."""
        return other.pull(self, update=update, dry_run=dry_run, progress=progress)

    def pull(self, other: Registry, *, update: str | None = None, dry_run: bool = False, progress: Progress | None = None) -> Carried:
        """Takes another registry's history, or with `update` that one and its ancestors, as events of its own. Only missing objects travel.

        Everything is checked before the first event is appended. Raises HistoriesDiffer where neither log is the beginning of the other;
        LogCut, EventMalformed, UnknownKind, EventEdited, Oversize, VerifyFailed, a leaf of Untrusted, for a log that is not what it says;
        ObjectMissing, ObjectDamaged, Oversize, DeltaError for an object; RevokedVersion and Collected for an `update` out of use.
        """
        done = carry(other._side(), self._side(), update=update, dry_run=dry_run, progress=progress)
        self._there = self._there or done.done
        return done

    def _side(self) -> Side:
        return Side(ledger=self._ledger, blobs=self._blobs, there=self._there)

    def add(
        self,
        update: Update,
        delta_path: str | os.PathLike[str],
        attachments: Mapping[str, Path | bytes] | None = None,
        *,
        values: Read | None = None,
    ) -> str:
        """Records an update with its delta and other files, and returns its id; the same update again changes nothing.

        `attachments` are by name: "result.json", "samples.parquet", "report.html". The objects are on the disk before the event is. Every
        ninth update of a line gets a snapshot, from which it is rebuilt at once; for it `values` may give tensors of the model. Raises
        DeltaError for a damaged delta, WrongParent for one that does not start where the parent update ends, RegistryError for an unknown
        parent.
        """
        return add(self._ledger, self._blobs, update, delta_path, attachments or {}, values)

    def log(self, name: str | None = None) -> list[Update]:
        """Every update, newest first; or, with a name or an id, that update and its ancestors."""
        return self._line(name, updates(self._log.read()))

    def signed_log(self, name: str | None = None) -> tuple[list[Update], Standing]:
        """`log` and `standing` of one moment, with one reading of the events."""
        events = self._log.read()
        found = updates(events)
        return self._line(name, found), standing(events, found)

    def recent(self, limit: int) -> tuple[list[Update], Standing, int]:
        """The newest updates, newest first, at most `limit`; what is signed and said of them; and how many updates there are in all."""
        events, count = self._log.recent(limit)
        found = updates(events)
        known = {update.id for update in found}
        ours = [event for event in events if event.kind not in ("approve", "revoke") or event.subject in known]
        return found[::-1], standing(ours, found), count

    def _line(self, name: str | None, found: list[Update]) -> list[Update]:
        return (found if name is None else ancestry(resolve(name, found, self.where), found, self.where))[::-1]

    def show(self, id_or_name: str) -> Update:
        """The update with this id, this beginning of an id (4 digits or more), or this name. Raises RegistryError with near matches."""
        found = updates(self._log.read())
        return resolve(id_or_name, found, self.where)

    def promote(self, id_or_name: str, name: str, reason: str, actor: str) -> Move:
        """Points `name` to an update; reason and actor are kept. Raises RegistryError for an unknown update or a bad name.

        Raises what `Standing.demand` raises where the policy does not let the name point there, and RevokedVersion in any case.
        """
        return move(self._ledger, "promote", check_name(name), reason, actor, id_or_name)

    def revert(self, name: str, reason: str, actor: str) -> Move:
        """Points `name` back to where it pointed before its last promotion; again, and it goes back one more.

        Raises RegistryError for an unknown name, and for one that has only ever pointed to one update; and as `promote` does, but nobody
        asks again what the gate said.
        """
        return move(self._ledger, "revert", name, reason, actor)

    def tag(self, id_or_name: str, name: str, reason: str = "", actor: str = "") -> Update:
        """Gives an update a name of its own, which never moves. Raises RegistryError for a name that is taken, or that the policy names."""
        return tag(self._ledger, id_or_name, name, reason, actor)

    def retire(self, id_or_name: str, reason: str, actor: str) -> Update:
        """Says that an update is promoted no more. It is loaded as before, and a name may still be reverted to it; wherever it appears,
        that is said. Raises RegistryError without a reason, and for one that was retired already."""
        return retire(self._ledger, id_or_name, reason, actor)

    def hold(self, id_or_name: str, until: date, reason: str, actor: str) -> Update:
        """Keeps an update and what it stands on from being collected until a day is over, UTC; a shorter hold does not end a longer one.

        Raises RegistryError without a reason, for a day that is past, and Collected for an update that is gone already.
        """
        return hold(self._ledger, id_or_name, until, reason, actor)

    def release(self, id_or_name: str, reason: str, actor: str) -> Update:
        """Ends every hold on an update. Raises RegistryError without a reason, and where none is."""
        return release(self._ledger, id_or_name, reason, actor)

    def gc(self, *, keep: Keep | None = None, delete: bool = False, actor: str = "") -> Collection:
        """What nothing needs any more: no name, tag or hold keeps it, nor an update that stands on it, and its time is over.

        Only with `delete` does it go; events stay in any case. Whatever once had a name or an approval stays for ten years after that,
        anything else for 30 days, unless `keep` says otherwise. Raises VerifyFailed for a log that was changed, RegistryError for times
        that are none.
        """
        return collect(self._ledger, self._blobs, keep or Keep(), actor, delete=delete)

    def note(self, kind: Literal["verify", "export"], id_or_name: str | None, body: Mapping[str, Any], actor: str) -> None:
        """Keeps in the log that the registry was verified, or a version exported."""
        note(self._ledger, kind, None if id_or_name is None else self.show(id_or_name).id, body, actor)

    def keep_report(self, report: Report, actor: str, *, signed_head: bool = False) -> None:
        """Keeps in the log what `verify` found, good or bad. Raises VerifyFailed where the log itself is not what it says."""
        keep_report(self._ledger, report, actor, signed_head=signed_head)

    def verifications(self) -> list[Verified]:
        """Every `verify` that was kept in the log, oldest first."""
        return [verified(event) for event in self._log.of_kind("verify")]

    def export(self, id_or_name: str, path: str | os.PathLike[str], actor: str = "") -> Packed:
        """Writes a version with its ancestors to one file, and keeps that in the log. The same version gives the same bytes.

        Raises Collected where bytes are gone, RegistryError for damaged or missing objects, StorageError where nothing can be written.
        """
        return pack(self._ledger, self._blobs, id_or_name, Path(path), actor)

    def import_pack(self, path: str | os.PathLike[str], actor: str = "") -> Unpacked:
        """Records the version in a file that `export` wrote, after everything in it was checked; again changes nothing.

        Raises EventMalformed, EventEdited, ObjectDamaged, Oversize, DeltaError and WrongParent for a file that is not what it says,
        RevokedVersion for a version that was revoked where it comes from.
        """
        return unpack(self._ledger, self._blobs, Path(path), actor)

    def tags(self) -> dict[str, str]:
        """The update of each tag, by the tag's name."""
        return tags(self._log.read())

    def keep_head(self, witness: Witness) -> Head:
        """Signs the end of the log as it is now in the witness's place. Raises VerifyFailed where what is there is not the log's past."""
        return self._ledger.keep_head(witness)

    def standing(self) -> Standing:
        """The policy in force, who signed what, and what was revoked."""
        events = self._log.read()
        return standing(events, updates(events))

    def set_policy(self, signed: Envelope) -> Policy:
        """Puts a signed policy in force. Raises PolicyRefused for one that no admin of the policy before it has signed."""
        return set_policy(self._ledger, signed)

    def record(self, signed: Envelope) -> None:
        """Records an approval or a revocation that was signed elsewhere, if the policy lets its signer. Raises what speaks against it."""
        record(self._ledger, signed)

    def approve(
        self, id_or_name: str, key: PrivateKey, *, name: str = "production", role: Literal["author", "approver"] = "approver"
    ) -> Envelope:
        """Signs an update: that it may have this name, or, as its author, that it is meant to. The policy says who may.

        The author signs first; nobody does both unless the policy says `single_person`. Raises WrongRole, OwnApproval, UnknownKey,
        RevokedKey, RevokedVersion, RegistryError without a policy.
        """
        return approve(self._ledger, id_or_name, key, name=name, role=role)

    def revoke(self, id_or_name: str, reason: str, actor: str, key: PrivateKey | None = None) -> None:
        """Ends an update: it is neither loaded nor given a name again. With a policy an approver or an admin signs that.

        Raises RegistryError without a reason, without a key where there is a policy, and for an update that was revoked already.
        """
        revoke(self._ledger, id_or_name, reason, actor, key)

    def admit(self, id_or_name: str) -> Admitted:
        """A version that may be loaded, with the deltas that lead to it from the base.

        Checked before a weight is used: every event's hash, and the head that a witness keeps; the policy; that the version is not revoked;
        for a name that needs approval, who signed; the bytes of each delta and of every attached file. Raises VerifyFailed, RevokedVersion,
        what `Standing.demand` raises, RegistryError and DeltaError for damaged objects, WrongParent for a delta that does not follow.
        """
        return admit(self._ledger, self._blobs, id_or_name)

    @again
    def look(self, wanted: Look, actor: str = "selectune") -> bool:
        """Spends a look on sets of test records, before the model is measured on them; whether it was a new one.

        Raises LooksSpent, and records nothing, where a set has too little left.
        """
        with self._log.deciding() as (events, connection):
            if not check_budget(self._ledger.looked.of(events), wanted):
                return False
            self._log.append_to(connection, {**self._event(KIND, actor), "subject": wanted.model, "body": wanted.body()})
        return True

    def looks(self) -> list[Look]:
        """Every look at test records, oldest first."""
        return looks(self._log.read())

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

    def verify_signed(self, place: str, key: PublicKey | None = None) -> Report:
        """`verify` with the signed head in a place, signed with `key`, or without it with a key of the policy.

        Raises UnknownKey for a head that another key signed, BadSignature for one that was changed, RegistryError without key and policy.
        """
        keys = [key] if key else [holder for holder, _ in demand_policy(self.standing(), self.where).holders]
        kept = verify_head(read_head(place), keys, where=place)
        events = self._log.read(lenient=True)
        if events and events[0].hash != kept.registry:
            raise VerifyFailed(
                "the head is of another registry, or the whole log was rewritten", where=place, then="Give this registry's head."
            )
        return check(events, self._blobs, Head(count=kept.count, hash=kept.hash))

    def fsck(self, *sources: Registry) -> Examined:
        """Looks at every event, object and leftover, and mends objects that are damaged or missing from `sources`, other registries.

        What they give is taken only if it has the hash that the log of this one names.
        """
        return examine(self._ledger, self._blobs, [source._blobs for source in sources])

    def blob(self, digest: str) -> Path:
        """Where an object lies, for a program that reads files; its bytes are not checked. Raises RegistryError for a missing one."""
        return self._blobs.path(digest)

    def size(self, digest: str) -> int:
        """An object's bytes, as the store counts them. Raises RegistryError for a missing one."""
        return self._blobs.size(digest)

    def attachment(self, id_or_name: str, name: str) -> bytes:
        """An update's attached file, checked. Raises RegistryError with the names that there are."""
        attached = self._kept(id_or_name)[0].attachments
        if name not in attached:
            raise RegistryError(f"{name!r} is not attached", where=id_or_name, then=f"There are: {', '.join(sorted(attached)) or 'none'}.")
        return self._blobs.read(attached[name])

    def delta(self, id_or_name: str) -> Delta:
        """An update's delta, read once and checked. Raises RegistryError or DeltaError for a damaged one."""
        update = self._kept(id_or_name)[0]
        return read_delta(self._blobs, update.delta)

    def chain(self, id_or_name: str) -> list[Delta]:
        """Deltas from the base model to this update, in the order in which they apply: the newest snapshot, and what came after it.

        At most eight; a snapshot may only apply. Raises WrongParent where one does not follow.
        """
        update, _ = self._kept(id_or_name)
        return shortest(self._blobs, update, self._log.read(), self.where)

    def steps(self, id_or_name: str) -> list[Delta]:
        """The deltas of this update and of each one that it stands on, oldest first. Raises WrongParent where one does not follow."""
        update, found = self._kept(id_or_name)
        return steps(self._blobs, ancestry(update, found, self.where), self.where)

    def _kept(self, id_or_name: str) -> tuple[Update, list[Update]]:
        """An update whose bytes are there, and all of them."""
        events = self._log.read()
        found = updates(events)
        update = resolve(id_or_name, found, self.where)
        Standing(collected=collected(events)).demand_kept(update.id)
        return update, found

    def _event(self, kind: str, actor: str) -> dict[str, Any]:
        return self._ledger.event(kind, actor)
