"""The log with what every event needs: the time, where the registry is, and who keeps the head of the log in a second place."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from selectune.errors import RegistryError, StorageError
from selectune.governance.documents import now_text
from selectune.governance.heads import Witness
from selectune.registry.checking import check_chain, demand
from selectune.registry.events import Event, Head
from selectune.registry.lineage import updates
from selectune.registry.signing import check_kept, check_now, check_witnessed
from selectune.registry.standing import Standing, standing
from selectune.registry.store import EventLog
from selectune.registry.update import Update

__all__ = ["Decision", "Ledger", "demand_said", "login"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What an event is decided on. Nobody else can append until it is taken."""

    events: list[Event]
    updates: list[Update]
    standing: Standing
    append: Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """A log, and how events get into it."""

    log: EventLog
    where: str
    """The registry's place, for errors."""
    clock: Callable[[], datetime]
    witness: Witness | None = None

    def event(self, kind: str, actor: str) -> dict[str, Any]:
        """An event of now, without name, subject and body; who does not say who it is goes by the login name."""
        actor = actor if actor.strip() else login()
        return {"utc": now_text(self.clock()), "actor": actor, "kind": kind, "name": None, "subject": None}

    @contextmanager
    def deciding(self) -> Iterator[Decision]:
        """What a move, an approval or a policy is decided on; once its event is appended, the head is kept elsewhere."""
        kept = None
        if self.witness:
            self.witness.signer()
            kept = self.witness.kept()
        with self.log.deciding() as (events, connection):
            check_kept(events, kept, self.witness.place if self.witness else "head")
            found = updates(events)
            signed = standing(events, found)
            check_witnessed(signed, self.witness)
            if signed.policy:
                demand(check_chain(events, None), self.where)
                check_now(events, self.clock(), signed.policy)

            def append(event: Mapping[str, Any]) -> None:
                self.log.append_to(connection, event)

            yield Decision(events=events, updates=found, standing=signed, append=append)
        if self.witness:
            try:
                self.keep_head(self.witness)
            except StorageError as error:
                what = f"the event is in the log and stays there, but the head is not kept elsewhere: {error.what}"
                then = "Make room or give another place, then: selectune head PLACE --key KEY"
                raise StorageError(what, where=error.where, then=then) from error

    def keep_head(self, witness: Witness) -> Head:
        """Signs the end of the log as it is now in the witness's place. Raises VerifyFailed where what is there is not the log's past."""
        events = self.log.read()
        check_kept(events, witness.kept(), witness.place)
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
