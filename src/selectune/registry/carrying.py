"""`push` and `pull`: a registry's history and objects to another one, and nothing that is there already.

Where the receiver is new, or its log is the beginning of the sender's, the sender's events are taken over word for word, so that hashes,
approvals and names stay provable. Otherwise single updates can be added, with their ancestors, as the receiver's own events.

The sender is a stranger: its log is checked whole before an object is asked for, each object before it is stored, and the events come last.
What an interrupted transfer leaves are objects that nothing refers to, which the next one does not send again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event as Flag
from threading import Lock
from typing import Any

from selectune.errors import HistoriesDiffer, ObjectDamaged, ObjectMissing, Oversize, RegistryError, Stopped
from selectune.registry.adding import Arrival, commit
from selectune.registry.blobs import FolderBlobs
from selectune.registry.claims import demand_free
from selectune.registry.events import Event
from selectune.registry.finding import ancestry, resolve
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import collected, references, updates
from selectune.registry.snapshots import keep
from selectune.registry.standing import standing
from selectune.registry.store import OBJECT_LIMIT, Blobs, again
from selectune.registry.trusting import Checked, check_delta, check_foreign, check_witnessed_by
from selectune.registry.update import Update

__all__ = ["Carried", "Progress", "Side", "carry"]

Progress = Callable[[int, int], None]
"""Hears how many bytes of how many are done."""
_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two registries."""

    ledger: Ledger
    blobs: Blobs
    there: bool = True
    """Whether there is a registry yet; a receiver without one becomes one."""

    def events(self) -> list[Event]:
        """Its log; empty where there is none yet."""
        return self.ledger.log.read() if self.there else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What a `push` or a `pull` sent, or would send."""

    objects: int
    """How many travelled."""
    bytes: int
    """Their size."""
    skipped: int
    """Objects that were there already."""
    events: int
    """How many were appended."""
    updates: tuple[str, ...]
    """The ids of the updates that are new to the receiver."""
    behind: int
    """Events that the receiver has and the sender has not."""
    done: bool
    """False for a dry run."""

    def to_json(self) -> dict[str, Any]:
        """As `selectune push --json` prints it."""
        return {**asdict(self), "updates": list(self.updates)}


def carry(sender: Side, receiver: Side, *, update: str | None = None, dry_run: bool = False, progress: Progress | None = None) -> Carried:
    """Sends the sender's history, or with `update` one update and its ancestors. Raises what `Registry.pull` raises."""
    where = sender.ledger.where
    theirs = check_foreign(sender.ledger.log.read(), where, receiver.ledger.clock())
    load = _history(theirs, receiver, where) if update is None else _line(theirs, receiver, update, where)
    there = set(receiver.blobs.names())
    sizes = _sizes(sender, [name for name in load.wanted if name not in there])
    if not dry_run:
        if receiver.ledger.witness and load.news:
            receiver.ledger.witness.signer()
        receiver.blobs.create()
        with receiver.blobs.together():
            _Transfer(sender, receiver, sizes, load.news, progress).run()
        events = _take(receiver, theirs, load) if update is None else _add(sender, receiver, load, sizes.keys())
        if receiver.ledger.witness and events:
            receiver.ledger.keep_head(receiver.ledger.witness)
    else:
        events = load.events
    return Carried(
        objects=len(sizes),
        bytes=sum(sizes.values()),
        skipped=len(load.wanted) - len(sizes),
        events=events,
        updates=tuple(one.id for one in load.news),
        behind=load.behind,
        done=not dry_run,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Load:
    """What has to be there in the end."""

    wanted: Mapping[str, str]
    """Every object, by digest: what it is."""
    news: tuple[Update, ...]
    """Updates that the receiver has not."""
    events: int
    """Events that the receiver lacks."""
    behind: int = 0


def _history(theirs: Checked, receiver: Side, where: str) -> _Load:
    """The whole history. Raises HistoriesDiffer, and LogCut by a head that the receiver keeps."""
    mine = receiver.events()
    more = _continued(mine, theirs.events, receiver.ledger.where, where)
    behind = max(0, len(mine) - len(theirs.events))
    if receiver.ledger.witness and not behind:
        check_witnessed_by(theirs.events, receiver.ledger.witness.kept(), where)
    known = {event.subject for event in mine if event.kind == "add"}
    news = tuple(one for one in theirs.updates if one.id not in known)
    return _Load(wanted=references(mine if behind else theirs.events), news=news, events=len(more), behind=behind)


def _continued(mine: Sequence[Event], theirs: Sequence[Event], here: str, where: str) -> Sequence[Event]:
    """What of `theirs` comes after `mine`. Raises HistoriesDiffer where neither is the beginning of the other."""
    for ours, other in zip(mine, theirs, strict=False):
        if ours != other:
            raise HistoriesDiffer(
                f"the histories differ from event {ours.seq} on: {_told(ours)} in {here}, {_told(other)} in {where}",
                then="Take single updates, with their ancestors: --update ID",
            )
    return theirs[len(mine) :]


def _told(event: Event) -> str:
    return f"{event.kind} by {event.actor[:40]} at {event.utc[:40]}"


def _line(theirs: Checked, receiver: Side, update: str, where: str) -> _Load:
    """One update with its ancestors. Raises RevokedVersion and Collected for one that either side has taken out of use."""
    if not receiver.there:
        raise RegistryError(
            "there is no registry here", where=receiver.ledger.where, then="Make one, or take the whole history: without --update."
        )
    line = ancestry(resolve(update, theirs.updates, where), theirs.updates, where)
    mine = receiver.events()
    found = updates(mine)
    ours, gone = standing(mine, found), collected(mine)
    known = {one.id for one in found if one.id not in gone}
    for one in line:
        theirs.standing.demand_alive(one.id)
        ours.demand_alive(one.id)
        if one.id not in known:
            theirs.standing.demand_kept(one.id)
    news = tuple(one for one in line if one.id not in known)
    wanted = {digest: one.id for one in news for digest in (one.delta, *one.attachments.values())}
    return _Load(wanted=wanted, news=news, events=len(news))


def _sizes(sender: Side, names: Sequence[str]) -> dict[str, int]:
    """The bytes of each object. Raises ObjectMissing, and Oversize for one that is larger than is taken."""
    with ThreadPoolExecutor(2 * _THREADS) as threads:
        sizes = dict(zip(names, threads.map(sender.blobs.size, names), strict=True))
    for name, size in sizes.items():
        if size > OBJECT_LIMIT:
            raise Oversize(
                f"object {name[:12]} has {size} bytes, over the limit of {OBJECT_LIMIT}",
                where=sender.ledger.where,
                then="Take nothing from there; find out who put it there.",
            )
    return sizes


class _Transfer:
    """Objects on their way, several at a time."""

    def __init__(self, sender: Side, receiver: Side, sizes: Mapping[str, int], news: Sequence[Update], progress: Progress | None) -> None:
        self._sender, self._receiver, self._sizes, self._progress = sender, receiver, sizes, progress
        self._deltas: dict[str, list[Update]] = {}
        for one in news:
            self._deltas.setdefault(one.delta, []).append(one)
        self._total = sum(sizes.values())
        self._moved = 0
        self._lock = Lock()
        self._over = Flag()

    def run(self) -> None:
        """Every object is there, and every delta is its update's, or this raises; then the threads end with what they are at."""
        with ThreadPoolExecutor(_THREADS) as threads:
            try:
                largest = sorted(self._sizes, key=self._sizes.__getitem__, reverse=True)
                # A delta that was there before is not known to be what a new update says of it.
                known = [name for name in self._deltas if name not in self._sizes]
                futures = [threads.submit(self._carry, name) for name in largest] + [threads.submit(self._look, name) for name in known]
                for one in as_completed(futures):
                    one.result()
            except BaseException:
                self._over.set()
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _carry(self, name: str) -> None:
        with self._sender.blobs.open(name, moved=self._hear) as file:
            if name in self._deltas:
                self._check(name, file.read())
            put = self._receiver.blobs.put(Path(file.name), moved=self._hear)
        if put != name:
            # What was put stays: it may be an object of the receiver's own, and `gc` takes it else.
            raise ObjectDamaged(
                f"object {name[:12]} changed on its way", where=self._sender.ledger.where, then="Take nothing while somebody writes there."
            )

    def _look(self, name: str) -> None:
        self._check(name, self._receiver.blobs.read(name))

    def _check(self, name: str, data: bytes) -> None:
        for one in self._deltas[name]:
            check_delta(data, one, self._sender.ledger.where)

    def _hear(self, count: int) -> None:
        """Bytes were read or written: each is told of twice."""
        if self._over.is_set():
            raise Stopped("the transfer is over", then="Start it again: what is there is not sent again.")
        with self._lock:
            self._moved += count
            if self._progress:
                self._progress(min(self._moved // 2, self._total), self._total)


@again
def _take(receiver: Side, theirs: Checked, load: _Load) -> int:
    """Appends what the receiver lacks of the sender's events, word for word; how many that were."""
    log, here = receiver.ledger.log, receiver.ledger.where
    first = 0 if receiver.there or log.exists() else 1
    if first:
        log.create(theirs.events[0].said())
    with log.deciding() as (now, connection):
        more = _continued(now, theirs.events, here, "the sender")
        if more:
            demand_free(load.wanted.keys(), now, receiver.ledger)
            if lost := sorted(load.wanted.keys() - set(receiver.blobs.names())):
                raise ObjectMissing(f"object {lost[0][:12]} was removed meanwhile", where=here, then="Start it again.")
        for event in more:
            log.append_to(connection, event.said())
    return first + len(more)


def _add(sender: Side, receiver: Side, load: _Load, sent: Collection[str]) -> int:
    """Adds updates as events of the receiver's own, the oldest first and all in one step; how many were new."""
    arrivals = []
    for one in load.news:
        digests = {one.delta, *one.attachments.values()}
        # Asked only for an object that a gc removes in this moment, and of the side that has it as a file.
        sides = {name: sender if name in sent or isinstance(sender.blobs, FolderBlobs) else receiver for name in digests}
        arrivals.append(Arrival(update=one, sources={name: partial(side.blobs.path, name) for name, side in sides.items()}))
    added = commit(receiver.ledger, receiver.blobs, arrivals)
    if load.news:
        keep(receiver.ledger, receiver.blobs, load.news[-1].id)
    return added
