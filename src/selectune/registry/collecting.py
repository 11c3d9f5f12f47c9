"""`gc`: what nothing needs any more goes. Events stay, so that the log always tells what there was.

The event is first: it names what is going, and who removes it. Then the objects go, and a second event says that they are gone. A crash
between the two is finished by the next `gc`. Whoever adds an update looks, in the same step as its event is appended, that none of its
objects is on its way out and that all of them are there; so nothing is lost to an update that is added at the same time. Several may
collect at once: each removes what it named itself, and what somebody left who is gone (`claims`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from selectune.delta.files import TEMPORARY
from selectune.errors import ObjectMissing, RegistryError
from selectune.governance.documents import at
from selectune.registry.checking import check_chain, demand
from selectune.registry.claims import WORK, claims, working
from selectune.registry.events import Event
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import collected, condemned, moves, pointers, references, updates
from selectune.registry.marks import tags
from selectune.registry.standing import standing
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
_FRESH = WORK / 10
"""How long ago a `gc` may have named what it removes when it begins to."""


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
    busy: int = 0
    """Objects that somebody else is removing."""

    @property
    def bytes(self) -> int:
        """Of all files that go."""
        return sum(item.bytes for item in (*self.objects, *self.leftovers))

    def to_json(self) -> dict[str, Any]:
        """As `selectune gc --json` prints it."""
        return {
            "deleted": self.deleted,
            "bytes": self.bytes,
            "busy": self.busy,
            "updates": [update.id for update in self.updates],
            "objects": [{"name": item.name, "bytes": item.bytes, "of": item.of} for item in self.objects],
            "leftovers": [{"name": item.name, "bytes": item.bytes} for item in self.leftovers],
            "kept": dict(self.kept),
        }


def collect(ledger: Ledger, blobs: Blobs, keep: Keep, actor: str, *, delete: bool) -> Collection:
    """Takes what nothing needs; without `delete` it only says what that would be. Raises what `Registry.gc` raises."""
    taken: list[Collection] = []
    if delete:
        with working() as by:
            _remove(ledger, blobs, actor, by)
            while (one := _condemn(ledger, blobs, keep, (actor, by))) is not None:
                _remove(ledger, blobs, actor, by)
                taken.append(one)
    events = ledger.log.read()
    last = _survey(events, {} if delete else _leftovers(blobs, ledger), keep, ledger, most=None)
    now = ledger.clock()
    busy = sum(len(claim.names) for claim in claims(events).values() if claim.live(now))
    if not delete:
        return replace(_measured(last, blobs), busy=busy)
    return Collection(
        updates=tuple(update for one in taken for update in one.updates),
        objects=tuple(item for one in taken for item in one.objects),
        leftovers=tuple(item for one in taken for item in one.leftovers),
        kept=last.kept,
        deleted=True,
        busy=busy,
    )


@again
def _condemn(ledger: Ledger, blobs: Blobs, keep: Keep, who: tuple[str, str]) -> Collection | None:
    """Names in the log what goes next; None where nothing does. `who`: the actor, and by what name this `gc` is known."""
    old = _leftovers(blobs, ledger)
    with ledger.deciding() as now:
        found = _survey(now.events, old, keep, ledger, most=ROUND)
        if not found.updates and not found.leftovers:
            return None
        body = {
            "updates": [update.id for update in found.updates],
            "objects": [item.name for item in found.objects],
            "leftovers": [item.name for item in found.leftovers],
            "keep_days": keep.days,
            "candidate_days": keep.candidate_days,
            "by": who[1],
        }
        now.append({**ledger.event("gc", who[0]), "body": body})
    return _measured(found, blobs)


def _remove(ledger: Ledger, blobs: Blobs, actor: str, by: str) -> None:
    """Removes what the log says is going, but for what others are at, and then says that it is gone."""
    gone: set[str] = set()
    while True:
        since = ledger.clock()
        going = _claim(ledger, actor, by)
        if going is None:
            return
        for name in sorted(going - gone):
            if not timedelta(0) <= ledger.clock() - since < WORK:
                break  # and says that it is still at it
            blobs.delete(name)
            gone.add(name)
        else:
            _finish(ledger, actor, by)
            return


@again
def _claim(ledger: Ledger, actor: str, by: str) -> set[str] | None:
    """What this `gc` is to remove, after the log says that it does; None where there is nothing. From now on it has ten minutes."""
    with ledger.deciding() as now:
        time = ledger.clock()
        mine = {seq: claim for seq, claim in claims(now.events).items() if claim.by == by or not claim.live(time)}
        if not mine:
            return None
        # What it has just named itself needs no second word.
        if not all(claim.by == by and time - at(claim.utc) < _FRESH for claim in mine.values()):
            now.append({**ledger.event("gc", actor), "body": {"taken": sorted(mine), "by": by}})
    return {name for claim in mine.values() for name in claim.names} - references(now.events).keys()


@again
def _finish(ledger: Ledger, actor: str, by: str) -> None:
    """Says that what this `gc` removed is gone; nothing is said where somebody took over who believed it gone."""
    with ledger.deciding() as now:
        mine = sorted(seq for seq, claim in claims(now.events).items() if claim.by == by)
        if mine:
            now.append({**ledger.event("gc", actor), "body": {"finished": mine}})


def _survey(events: Sequence[Event], old: Mapping[str, int], keep: Keep, ledger: Ledger, *, most: int | None) -> Collection:
    """What goes now, by the log and by the `old` files of the store; at most so many updates and leftovers. Nothing is measured yet.

    Raises VerifyFailed for a log that was changed.
    """
    demand(check_chain(events, None), ledger.where)
    found, now = updates(events), ledger.clock()
    kept, gone = _kept(events, found, keep, now), collected(events)
    going = [update for update in reversed(found) if update.id not in kept and update.id not in gone][:most]
    before = references(events)
    after = references([*events, _gc_event(events[-1].seq + 1, going)])
    needed = {*before, *condemned(events)}
    return Collection(
        updates=tuple(going),
        objects=tuple(Item(name=name, bytes=0, of=of) for name, of in before.items() if name not in after),
        leftovers=tuple(Item(name=name, bytes=size, of="nothing") for name, size in old.items() if name not in needed)[:most],
        kept=kept,
        deleted=False,
    )


def _measured(found: Collection, blobs: Blobs) -> Collection:
    """With the objects' bytes; none for one that is missing."""

    def item(one: Item) -> Item:
        try:
            return replace(one, bytes=blobs.size(one.name))
        except ObjectMissing:
            return one

    return replace(found, objects=tuple(map(item, found.objects)))


def _gc_event(seq: int, going: Sequence[Update]) -> Event:
    """An event as if they were gone."""
    body = {"updates": [update.id for update in going]}
    return Event(seq=seq, utc="", actor="", kind="gc", name=None, subject=None, body=body, prev="", hash="")


def _leftovers(blobs: Blobs, ledger: Ledger) -> dict[str, int]:
    """Files that nothing refers to and that this program wrote more than a day ago, with their bytes.

    What an interrupted write leaves, and what was never recorded.
    """
    events, now = ledger.log.read(), ledger.clock()
    needed, found = {*references(events), *condemned(events)}, {}
    for name in blobs.names():
        ours = name.startswith(TEMPORARY) or (len(name) == 64 and set(name) <= set("0123456789abcdef"))
        if name in needed or not ours:
            continue
        try:
            if now.timestamp() - blobs.modified(name) > _DAY:
                found[name] = 0 if name.startswith(TEMPORARY) else blobs.size(name)
        except RegistryError:
            continue  # whoever wrote it has just finished it
    return found


def _kept(events: Sequence[Event], found: Sequence[Update], keep: Keep, now: datetime) -> dict[str, str]:
    """Why each update stays that does."""
    today = now.astimezone(UTC).date()
    why: dict[str, str] = {}
    for name, id_ in pointers(events).items():
        why.setdefault(id_, f"{name} points to it")
    for name, id_ in tags(events).items():
        why.setdefault(id_, f"its tag is {name}")
    for id_, hold in standing(events, found).held.items():
        if date.fromisoformat(hold.until) >= today:
            why.setdefault(id_, f"held until {hold.until}: {hold.reason}")
    for id_, (day, what) in _served(events).items():
        until = day + timedelta(days=keep.days)
        if until >= today:
            why.setdefault(id_, f"{what} {day}, stays until {until}")
    # One that was collected and added again was added anew.
    for id_, added in {event.subject or "": event.utc for event in events if event.kind == "add"}.items():
        until = at(added).date() + timedelta(days=keep.candidate_days)
        if until >= today:
            why.setdefault(id_, f"added {added[:10]}, stays until {until}")
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
