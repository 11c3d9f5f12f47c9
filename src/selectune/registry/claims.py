"""Which objects somebody is removing right now.

A `gc` says in the log what it is going to remove, and which process it is, before it removes anything; when that takes long it says so
again; and in the end, that all of it is gone. As long as it may be at work, nobody records anything that needs one of those objects, and
nobody else removes them: so an object that is put again after it was removed is never hit by somebody who is late. The log alone decides
that, whether it can be locked or not, and nothing is locked while objects are removed.

Whether a process of this machine is gone, the system knows. One of another machine is taken for gone when it has said nothing for half an
hour; it stops by itself after ten minutes unless it could say that it goes on, so clocks may be twenty minutes apart.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from selectune.delta.files import ended, process_name
from selectune.errors import Overtaken
from selectune.governance.documents import at
from selectune.registry.events import Event
from selectune.registry.lineage import condemned

if TYPE_CHECKING:
    from selectune.registry.ledger import Ledger

__all__ = ["LEASE", "WORK", "Claim", "claims", "demand_free", "working"]

LEASE = timedelta(minutes=30)
"""How long a `gc` of another machine counts as being at work since it last said so."""
WORK = timedelta(minutes=10)
"""How long a `gc` removes objects until it says again that it is at work."""
_AHEAD = timedelta(days=1)
"""How far a clock may be ahead of ours; what it says of later than that is no time."""

_at_work: set[str] = set()
"""Those of this process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A `gc` that has said what it removes, and not yet that it is gone."""

    by: str
    """Machine, process, and a word of its own; empty where a version before this one wrote the event."""
    actor: str
    utc: str
    """When it last said so."""
    names: frozenset[str]

    def live(self, now: datetime) -> bool:
        """Whether it may still be at work."""
        process = self.by.rpartition("-")[0]
        if process == process_name():
            return self.by in _at_work
        try:
            return not ended(process) and -_AHEAD < now - at(self.utc) < LEASE
        except ValueError:  # no time
            return False


@contextmanager
def working() -> Iterator[str]:
    """A name by which a `gc` of this process is known, and is at work, until the block ends."""
    by = f"{process_name()}-{uuid.uuid4().hex[:16]}"
    _at_work.add(by)
    try:
        yield by
    finally:
        _at_work.discard(by)


def claims(events: Sequence[Event]) -> Mapping[int, Claim]:
    """Those whose objects are not said to be gone, each by the number of the event that named the objects."""
    names: dict[int, set[str]] = {}
    for name, seq in condemned(events).items():
        names.setdefault(seq, set()).add(name)
    said: dict[int, Event] = {}
    for event in events:
        if event.kind == "gc":
            taken = event.body.get("taken")
            said |= {seq: event for seq in (event.seq, *(taken if isinstance(taken, list) else ())) if seq in names}
    return {
        seq: Claim(by=str(event.body.get("by", "")), actor=event.actor, utc=event.utc, names=frozenset(names[seq]))
        for seq, event in said.items()
    }


def demand_free(digests: Collection[str], events: Sequence[Event], ledger: Ledger) -> None:
    """Raises Overtaken where a `gc` that may be at work is removing one of these objects."""
    if not condemned(events).keys() & set(digests):
        return
    now = ledger.clock()
    for claim in claims(events).values():
        if claim.names & set(digests) and claim.live(now):
            raise Overtaken(
                f"a gc by {claim.actor} is removing an object of this since {claim.utc}",
                where=ledger.where,
                then=f"Let it end; one that broke off on another machine counts as gone {LEASE // timedelta(minutes=1)} minutes later.",
            )
