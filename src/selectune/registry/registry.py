"""The registry: what a user calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from selectune.delta.format import Delta
from selectune.errors import RegistryError, VerifyFailed, WrongParent
from selectune.governance import statements
from selectune.governance.documents import Envelope, now_text
from selectune.governance.heads import Witness, read_head, verify_head
from selectune.governance.keys import PrivateKey, PublicKey
from selectune.governance.policy import Policy
from selectune.registry.blobs import Blobs
from selectune.registry.checking import Report, check, check_chain, demand
from selectune.registry.events import GENESIS, Event, Head, Log
from selectune.registry.finding import ancestry, resolve
from selectune.registry.lineage import moves, pointers, targets, updates
from selectune.registry.looks import KIND, Look, check_budget, looks
from selectune.registry.places import folder, team
from selectune.registry.signing import Admitted, check_kept, check_now, check_witnessed, policy_event, signed_event
from selectune.registry.standing import Standing, standing, target_of
from selectune.registry.update import Move, Update, check_attachment, check_name

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

    def __init__(self, log: Log, blobs: Blobs, *, where: str, clock: Callable[[], datetime] = _now, witness: Witness | None = None) -> None:
        self._log = log
        self._blobs = blobs
        self.where = where
        self._clock = clock
        self._witness = witness

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        create: bool = False,
        *,
        clock: Callable[[], datetime] = _now,
        witness: Witness | None = None,
    ) -> Registry:
        """The registry in a folder, or of a team: ``postgresql+psycopg://host/database?blobs=/shared/folder``.

        Only with `create` is anything made. `clock` gives the time of events, with its zone. `witness` keeps a signed head of the log in a
        second place after each move and approval, and every version that is loaded is checked against it. Raises RegistryError where no
        registry is, StorageError for a folder that cannot be written, MissingPackage without the database's driver.
        """
        text = os.fspath(url)
        log, root = team(text) if "://" in text else folder(Path(text), create=create)
        where = log.url.render_as_string(hide_password=True) if "://" in text else text
        registry = cls(log, Blobs(root / "blobs"), where=where, clock=clock, witness=witness)
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
        return self._line(name, updates(self._log.read()))

    def signed_log(self, name: str | None = None) -> tuple[list[Update], Standing]:
        """`log` and `standing` of one moment, with one reading of the events."""
        events = self._log.read()
        found = updates(events)
        return self._line(name, found), standing(events, found)

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
        return self._move("promote", check_name(name), reason, actor, id_or_name)

    def revert(self, name: str, reason: str, actor: str) -> Move:
        """Points `name` back to where it pointed before its last promotion; again, and it goes back one more.

        Raises RegistryError for an unknown name, and for one that has only ever pointed to one update; and as `promote` does, but nobody
        asks again what the gate said.
        """
        return self._move("revert", name, reason, actor, None)

    def _move(self, kind: str, name: str, reason: str, actor: str, wanted: str | None) -> Move:
        if not reason.strip() or not actor.strip():
            raise RegistryError(
                f"{kind} {name}: the reason or the actor is empty", where=self.where, then="Say why, and who: --reason TEXT."
            )
        with self._deciding() as (events, found, signed, append):
            current = pointers(events).get(name)
            target = self._previous(name, events) if wanted is None else resolve(wanted, found, self.where).id
            if kind == "promote" and target == current:
                raise RegistryError(
                    f"{name} already points to {target[:12]}", where=self.where, then="See where it led from: selectune log"
                )
            wanted_update = next(update for update in found if update.id == target)
            signed.demand(wanted_update, name, judged=kind == "promote")
            verdict = wanted_update.verdict
            body = {"previous": current, "reason": reason, "verdict": verdict}
            event = {**self._event(kind, actor), "name": name, "subject": target, "body": body}
            append(event)
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

    @contextmanager
    def _deciding(self) -> Iterator[tuple[list[Event], list[Update], Standing, Callable[[Mapping[str, Any]], None]]]:
        """What a move, an approval or a policy is decided on, and how its event is appended; after that the head is kept elsewhere."""
        kept = None
        if self._witness:
            self._witness.signer()
            kept = self._witness.kept()
        with self._log.deciding() as (events, connection):
            check_kept(events, kept, self._witness.place if self._witness else "head")
            found = updates(events)
            signed = standing(events, found)
            check_witnessed(signed, self._witness)
            if signed.policy:
                demand(check_chain(events, None), self.where)
                check_now(events, self._clock(), signed.policy)
            yield events, found, signed, lambda event: self._log.append_to(connection, event)
        if self._witness:
            self.keep_head(self._witness)

    def keep_head(self, witness: Witness) -> Head:
        """Signs the end of the log as it is now in the witness's place. Raises VerifyFailed where what is there is not the log's past."""
        events = self._log.read()
        check_kept(events, witness.kept(), witness.place)
        head = Head(count=len(events), hash=events[-1].hash)
        witness.keep(events[0].hash, head.count, head.hash, self._clock())
        return head

    def standing(self) -> Standing:
        """The policy in force, who signed what, and what was revoked."""
        events = self._log.read()
        return standing(events, updates(events))

    def set_policy(self, signed: Envelope) -> Policy:
        """Puts a signed policy in force. Raises PolicyRefused for one that no admin of the policy before it has signed."""
        with self._deciding() as (_, _, found, append):
            policy, event = policy_event(signed, found)
            append({**self._event("policy", event["actor"]), **event})
        return policy

    def record(self, signed: Envelope) -> None:
        """Records an approval or a revocation that was signed elsewhere, if the policy lets its signer. Raises what speaks against it."""
        with self._deciding() as (_, found, signatures, append):
            event = signed_event(signed, signatures, found, self._clock())
            append({**self._event(event["kind"], event["actor"]), **event})

    def approve(
        self, id_or_name: str, key: PrivateKey, *, name: str = "production", role: Literal["author", "approver"] = "approver"
    ) -> Envelope:
        """Signs an update: that it may have this name, or, as its author, that it is meant to. The policy says who may.

        The author signs first; nobody does both unless the policy says `single_person`. Raises WrongRole, OwnApproval, UnknownKey,
        RevokedKey, RevokedVersion, RegistryError without a policy.
        """
        update, policy = self.show(id_or_name), self._policy()
        envelope = statements.approve(policy, key, (role, check_name(name)), target_of(update), self._clock())
        self.record(envelope)
        return envelope

    def revoke(self, id_or_name: str, reason: str, actor: str, key: PrivateKey | None = None) -> None:
        """Ends an update: it is neither loaded nor given a name again. With a policy an approver or an admin signs that.

        Raises RegistryError without a reason, without a key where there is a policy, and for an update that was revoked already.
        """
        if not reason.strip() or not actor.strip():
            raise RegistryError("the reason or the actor is empty", where=self.where, then="Say why, and who: --reason TEXT.")
        update, signed = self.show(id_or_name), self.standing()
        if update.id in signed.revoked:
            raise RegistryError(f"update {update.id[:12]} is revoked already", where=self.where, then="See it: selectune show ID")
        if signed.policy is None:
            with self._deciding() as (_, _, _, append):
                append({**self._event("revoke", actor), "subject": update.id, "body": {"reason": reason}})
        elif key is None:
            raise RegistryError(
                "the policy wants revocations signed", where=self.where, then="Give the key of an approver or admin: --key KEY"
            )
        else:
            self.record(statements.revoke(signed.policy, key, reason, target_of(update), self._clock()))

    def _policy(self) -> Policy:
        policy = self.standing().policy
        if policy is None:
            raise RegistryError(
                "there is no policy that says who may approve",
                where=self.where,
                then="Let an admin make one: selectune policy sign, then set",
            )
        return policy

    def admit(self, id_or_name: str) -> Admitted:
        """A version that may be loaded, with the deltas that lead to it from the base.

        Checked before a weight is used: every event's hash, and the head that a witness keeps; the policy; that the version is not revoked;
        for a name that needs approval, who signed; the bytes of each delta and of every attached file. Raises VerifyFailed, RevokedVersion,
        what `Standing.demand` raises, RegistryError and DeltaError for damaged objects, WrongParent for a delta that does not follow.
        """
        events = self._log.read()
        if self._witness:
            check_kept(events, self._witness.kept(), self._witness.place)
        demand(check_chain(events, None), self.where)
        found = updates(events)
        update, signed = resolve(id_or_name, found, self.where), standing(events, found)
        signed.demand_sound()
        signed.demand_alive(update.id)
        if id_or_name in update.names:
            signed.demand(update, id_or_name, judged=False)
        for digest in update.attachments.values():
            self._blobs.read(digest)
        return Admitted(update=update, deltas=tuple(self._deltas(update, found)), notes=tuple(signed.notes(update.id)))

    def look(self, wanted: Look, actor: str = "selectune") -> bool:
        """Spends a look on sets of test records, before the model is measured on them; whether it was a new one.

        Raises LooksSpent, and records nothing, where a set has too little left.
        """
        with self._log.deciding() as (events, connection):
            if not check_budget(looks(events), wanted):
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
        keys = [key] if key else [holder for holder, _ in self._policy().holders]
        kept = verify_head(read_head(place), keys, where=place)
        events = self._log.read(lenient=True)
        if events and events[0].hash != kept.registry:
            raise VerifyFailed(
                "the head is of another registry, or the whole log was rewritten", where=place, then="Give this registry's head."
            )
        return check(events, self._blobs, Head(count=kept.count, hash=kept.hash))

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
        return self._deltas(resolve(id_or_name, found, self.where), found)

    def _deltas(self, wanted: Update, found: Sequence[Update]) -> list[Delta]:
        deltas: list[Delta] = []
        for update in ancestry(wanted, found, self.where):
            delta = Delta.from_bytes(self._blobs.read(update.delta), where=update.delta[:12])
            if (deltas and deltas[-1].child != delta.parent) or (delta.parent, delta.child) != (update.base, update.child):
                raise WrongParent(
                    f"the delta of update {update.id[:12]} does not follow", where=self.where, then="See why: selectune verify"
                )
            deltas.append(delta)
        return deltas

    def _event(self, kind: str, actor: str) -> dict[str, Any]:
        return {"utc": now_text(self._clock()), "actor": actor, "kind": kind, "name": None, "subject": None}
