"""The log with what every event needs: the time, where the registry is, and who keeps the head of the log in a second place."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from selectune.errors import RegistryError, StorageError
from selectune.governance.documents import now_text
from selectune.governance.heads import Witness
from selectune.governance.keys import PrivateKey
from selectune.governance.policy import Policy
from selectune.governance.statements import MOVERS, check_motion, holder_name, move
from selectune.registry.checking import Chain, chained, demand
from selectune.registry.events import Event, Head
from selectune.registry.folding import Folded
from selectune.registry.looks import Look, looks
from selectune.registry.signatures import not_signed
from selectune.registry.signing import check_kept, check_now, check_witnessed
from selectune.registry.standing import Standing
from selectune.registry.store import EventLog
from selectune.registry.tally import Tally, tallied

__all__ = ["Decision", "Ledger", "demand_said", "login"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What an event is decided on. Nobody else can append until it is taken."""

    events: list[Event]
    tally: Tally
    """What they add up to."""
    standing: Standing
    append: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """Appends an event; what came of it, which a signature changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """A log, how events get into it, and what this process knows of it.

    The log is read and added up once; then only what is new is, so that the next decision takes no longer behind many events than behind a
    few. What that means for an edit of an event that was read before: `EventLog.recall` and `deciding`.
    """

    log: EventLog
    where: str
    """The registry's place, for errors."""
    clock: Callable[[], datetime]
    witness: Witness | None = None
    signer: PrivateKey | None = None
    """Whose key signs moves, tags, retirements, holds and collections; under the policy's name for its holder, whoever is said to act."""
    tallies: Folded[Tally] = field(default_factory=lambda: Folded(Tally(), tallied))
    chains: Folded[Chain] = field(default_factory=lambda: Folded(Chain(), chained))
    looked: Folded[list[Look]] = field(default_factory=lambda: Folded(list[Look](), looks))

    def event(self, kind: str, actor: str) -> dict[str, Any]:
        """An event of now, without name, subject and body; who does not say who it is goes by the login name."""
        actor = actor if actor.strip() else login()
        return {"utc": now_text(self.clock()), "actor": actor, "kind": kind, "name": None, "subject": None}

    def tally(self) -> Tally:
        """What the log adds up to now. Raises as `EventLog.recall`."""
        return self.tallies.of(self.log.recall())

    @contextmanager
    def deciding(self) -> Iterator[Decision]:
        """What a move, an approval or a policy is decided on; once its event is appended, the head is kept elsewhere.

        Under a policy, and where a head is kept, every event's hash and its place in the chain are checked before anything is decided. An
        event that this process has checked is not checked again, and what was checked is what counts, whatever the log says by now. Raises
        LogCut where the last of those is gone or another; VerifyFailed for an event that does not fit, and where the log does not lead to
        the head that is kept; ClockApart; RegistryError.
        """
        kept = None
        if self.witness:
            self.witness.signer()
            kept = self.witness.kept()
        with self.log.deciding() as (events, connection):
            if self.witness and kept:
                check_kept(events, self.chains.of(events), kept, self.witness.place)
            tally = self.tallies.of(events)
            standing = tally.standing
            check_witnessed(standing, self.witness)
            if standing.policy:
                demand(self.chains.of(events).problems, self.where)
                check_now(events, self.clock(), standing.policy)

            log = events[-1:]

            def append(event: Mapping[str, Any]) -> Mapping[str, Any]:
                whole = self._signed(event, log[-1], standing.policy) if event["kind"] in MOVERS else event
                log.append(Event.following(log[-1].seq, log[-1].hash, whole))
                self.log.append_to(connection, whole)
                return whole

            yield Decision(events=events, tally=tally, standing=standing, append=append)
        if self.witness:
            try:
                self.keep_head(self.witness)
            except StorageError as error:
                what = f"the event is in the log and stays there, but the head is not kept elsewhere: {error.what}"
                then = "Make room or give another place, then: selectune head PLACE --key KEY"
                raise StorageError(what, where=error.where, then=then) from error

    def _signed(self, event: Mapping[str, Any], last: Event, policy: Policy | None) -> Mapping[str, Any]:
        """An event behind `last`, signed by whoever signs here. Raises NotSigned, and what speaks against the signer."""
        if self.signer is None:
            if policy and policy.signed_moves:
                raise not_signed(event["kind"], self.where)
            return event
        if policy is None:
            raise RegistryError("there is no policy that says whose signature counts", where=self.where, then="Leave the key out.")
        whole = {**event, "actor": holder_name(policy, self.signer)}
        motion = Event.following(last.seq, last.hash, whole).motion()
        envelope = move(policy, self.signer, event["kind"], motion, self.clock())
        check_motion(policy, envelope, event["kind"], motion, where=self.where)
        return {**whole, "body": {**event["body"], "signed": envelope.to_json()}}

    def keep_head(self, witness: Witness) -> Head:
        """Signs the end of the log as it is now in the witness's place. Raises VerifyFailed where what is there is not the log's past."""
        events = self.log.recall()
        if kept := witness.kept():
            check_kept(events, self.chains.of(events), kept, witness.place)
        head = Head(count=len(events), hash=events[-1].hash)
        witness.keep(events[0].hash, head.count, head.hash, self.clock())
        return head


def login() -> str:
    """The name under which somebody is logged in. Raises RegistryError where nobody is, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise RegistryError(
            "who does this is not said, and the system knows no login name", then="Say who: --actor WHO, or set LOGNAME."
        ) from error


def demand_said(reason: str, actor: str, *, what: str, where: str) -> None:
    """Raises RegistryError where nobody says why, or who."""
    if not reason.strip() or not actor.strip():
        raise RegistryError(f"{what}: the reason or the actor is empty", where=where, then="Say why, and who: --reason TEXT.")
