"""`gc`: what nothing needs any more goes. Events stay, so that the log always tells what there was.

The event is first: it names what is going. Then the objects go, and a second event says that they are gone. A crash between the two is
finished by the next `gc`. Whoever adds an update looks, in the same step as its event is appended, that none of its objects is on its way
out and that all of them are there; so nothing is lost to an update that is added at the same time. Where the log is kept as objects, and
cannot be locked, only one `gc` may run at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from selectune.delta.files import TEMPORARY
from selectune.errors import RegistryError
from selectune.governance.documents import at
from selectune.registry.checking import check_chain, demand
from selectune.registry.events import Event
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import collected, condemned, moves, pointers, references, updates
from selectune.registry.marks import holds, tags
from selectune.registry.store import Blobs, again
from selectune.registry.update import Update

__all__ = ["CANDIDATE_DAYS", "KEEP_DAYS", "Collection", "Item", "Keep", "collect"]

KEEP_DAYS = 3650
"""Ten years: how long a version stays after it last had a name, or was approved."""
CANDIDATE_DAYS = 30
"""How long one stays that never had a name."""
ROUND = 1000
"""Updates, and leftovers, that one event names."""
_DAY = 24 * 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """How long versions stay that nothing points to."""

    days: int = KEEP_DAYS
    """After a version last had a name or was approved."""
    candidate_days: int = CANDIDATE_DAYS
    """After one was added that never had either."""

    def __post_init__(self) -> None:
        for days in (self.days, self.candidate_days):
            if not 0 <= days <= 365_000:
                raise RegistryError(f"{days} days", where="gc", then="Give a number from 0 to 365000.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A file that goes."""

    name: str
    bytes: int
    of: str
    """What it was, such as: the delta of update 0123456789ab."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """What a `gc` takes, or would take."""

    updates: tuple[Update, ...]
    """Newest first: an update never goes before those that stand on it."""
    objects: tuple[Item, ...]
    leftovers: tuple[Item, ...]
    """Files that no update refers to, written more than a day ago."""
    kept: dict[str, str]
    """Why each update stays, by its id."""
    deleted: bool

    @property
    def bytes(self) -> int:
        """Of all files that go."""
        return sum(item.bytes for item in (*self.objects, *self.leftovers))

    def to_json(self) -> dict[str, Any]:
        """As `selectune gc --json` prints it."""
        return {
            "deleted": self.deleted,
            "bytes": self.bytes,
            "updates": [update.id for update in self.updates],
            "objects": [{"name": item.name, "bytes": item.bytes, "of": item.of} for item in self.objects],
            "leftovers": [{"name": item.name, "bytes": item.bytes} for item in self.leftovers],
            "kept": dict(self.kept),
        }


def collect(ledger: Ledger, blobs: Blobs, keep: Keep, actor: str, *, delete: bool) -> Collection:
    """Takes what nothing needs; without `delete` it only says what that would be. Raises what `Registry.gc` raises."""
    if not delete:
        return _survey(ledger.log.read(), blobs, keep, ledger, most=None)
    _finish(ledger, blobs, actor)
    taken: list[Collection] = []
    while (one := _condemn(ledger, blobs, keep, actor)) is not None:
        _finish(ledger, blobs, actor)
        taken.append(one)
    last = _survey(ledger.log.read(), blobs, keep, ledger, most=None)
    return Collection(
        updates=tuple(update for one in taken for update in one.updates),
        objects=tuple(item for one in taken for item in one.objects),
        leftovers=tuple(item for one in taken for item in one.leftovers),
        kept=last.kept,
        deleted=True,
    )


@again
def _condemn(ledger: Ledger, blobs: Blobs, keep: Keep, actor: str) -> Collection | None:
    """Names in the log what goes next; None where nothing does."""
    with ledger.deciding() as now:
        found = _survey(now.events, blobs, keep, ledger, most=ROUND)
        if not found.updates and not found.leftovers:
            return None
        body = {
            "updates": [update.id for update in found.updates],
            "objects": [item.name for item in found.objects],
            "leftovers": [item.name for item in found.leftovers],
            "keep_days": keep.days,
            "candidate_days": keep.candidate_days,
        }
        now.append({**ledger.event("gc", actor), "body": body})
    return found


@again
def _finish(ledger: Ledger, blobs: Blobs, actor: str) -> None:
    """Removes what the log says is going, and then says that it is gone. Nobody can add an update in between."""
    with ledger.deciding() as now:
        going, needed = condemned(now.events), references(now.events)
        if not going:
            return
        for name in going:
            if name not in needed:
                blobs.delete(name)
        now.append({**ledger.event("gc", actor), "body": {"finished": sorted(set(going.values()))}})


def _survey(events: Sequence[Event], blobs: Blobs, keep: Keep, ledger: Ledger, *, most: int | None) -> Collection:
    """What goes now; at most so many updates and leftovers. Raises VerifyFailed for a log that was changed."""
    demand(check_chain(events, None), ledger.where)
    found, now = updates(events), ledger.clock()
    kept, gone = _kept(events, found, keep, now), collected(events)
    going = [update for update in reversed(found) if update.id not in kept and update.id not in gone][:most]
    before = references(events)
    after = references([*events, _gc_event(events[-1].seq + 1, going)])
    return Collection(
        updates=tuple(going),
        objects=tuple(_item(blobs, name, of) for name, of in before.items() if name not in after),
        leftovers=tuple(_leftovers(blobs, {*before, *condemned(events)}, now))[:most],
        kept=kept,
        deleted=False,
    )


def _gc_event(seq: int, going: Sequence[Update]) -> Event:
    """An event as if they were gone."""
    body = {"updates": [update.id for update in going]}
    return Event(seq=seq, utc="", actor="", kind="gc", name=None, subject=None, body=body, prev="", hash="")


def _item(blobs: Blobs, name: str, of: str) -> Item:
    return Item(name=name, bytes=blobs.size(name) if blobs.has(name) else 0, of=of)


def _leftovers(blobs: Blobs, needed: set[str], now: datetime) -> Iterator[Item]:
    """Old files that nothing refers to and that this program wrote: what an interrupted write leaves, and what was never recorded."""
    for name in blobs.names():
        ours = name.startswith(TEMPORARY) or (len(name) == 64 and set(name) <= set("0123456789abcdef"))
        if name in needed or not ours:
            continue
        try:
            if now.timestamp() - blobs.modified(name) > _DAY:
                yield Item(name=name, bytes=0 if name.startswith(TEMPORARY) else blobs.size(name), of="nothing")
        except RegistryError:
            continue  # whoever wrote it has just finished it


def _kept(events: Sequence[Event], found: Sequence[Update], keep: Keep, now: datetime) -> dict[str, str]:
    """Why each update stays that does."""
    today = now.astimezone(UTC).date()
    why: dict[str, str] = {}
    for name, id_ in pointers(events).items():
        why.setdefault(id_, f"{name} points to it")
    for name, id_ in tags(events).items():
        why.setdefault(id_, f"its tag is {name}")
    for id_, hold in holds(events).items():
        if date.fromisoformat(hold.until) >= today:
            why.setdefault(id_, f"held until {hold.until}: {hold.reason}")
    for id_, (day, what) in _served(events).items():
        until = day + timedelta(days=keep.days)
        if until >= today:
            why.setdefault(id_, f"{what} {day}, stays until {until}")
    for update in found:
        until = at(update.created).date() + timedelta(days=keep.candidate_days)
        if until >= today:
            why.setdefault(update.id, f"added {update.created[:10]}, stays until {until}")
    by_id = {update.id: update for update in found}
    for id_ in list(why):
        child = by_id.get(id_)
        while child is not None and child.parent is not None:
            if child.parent in why:
                break
            why[child.parent] = f"{child.id[:12]} stands on it"
            child = by_id.get(child.parent)
    return why


def _served(events: Sequence[Event]) -> dict[str, tuple[date, str]]:
    """The last day on which a name pointed to each update, or on which it was approved."""
    found: dict[str, tuple[date, str]] = {}

    def on(id_: str | None, utc: str, what: str) -> None:
        day = at(utc).date()
        if id_ and (id_ not in found or day >= found[id_][0]):
            found[id_] = (day, what)

    for event in events:
        if event.kind == "approve":
            on(event.subject, event.utc, "approved on")
    for move in moves(events):
        on(move.update, move.created, f"got the name {move.name} on")
        on(move.previous, move.created, f"had the name {move.name} until")
    return found
