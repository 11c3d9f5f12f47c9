"""One version as one file: its ancestors, their objects, and the events that concern them.

A pack is eight bytes of magic, the length of its header (eight bytes, little-endian), the header as canonical JSON, and the objects one
after the other in the order of the header, which is that of their hashes. Nothing in it is compressed and nothing in it is a path, so that
it can hold no bomb and lead nowhere; the same version of the same registry gives the same bytes.

What comes in is a stranger's: every event and every object is checked before the first is recorded. Updates keep their ids, which are
hashes of what they hold; an approval counts if the policy here knows its signer; what was revoked there does not come in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from selectune.delta.files import replacing
from selectune.errors import EventEdited, EventMalformed, InputError, ObjectDamaged, Oversize, RevokedVersion, SelectuneError, StorageError
from selectune.governance.documents import packed
from selectune.hashing import canonical, parse_json
from selectune.registry.adding import Arrival, arriving, check_place
from selectune.registry.blobs import is_digest
from selectune.registry.events import Event, extended
from selectune.registry.finding import ancestry, resolve
from selectune.registry.kinds import check_event
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import collected, update_of, updates
from selectune.registry.marking import note
from selectune.registry.signing import signed_event
from selectune.registry.snapshots import keep
from selectune.registry.standing import Standing, standing
from selectune.registry.store import Blobs, again
from selectune.registry.update import Update

__all__ = ["MAGIC", "Packed", "Unpacked", "is_pack", "pack", "unpack"]

MAGIC = b"SLCTUNE1"
HEADER_LIMIT = 64 << 20
OBJECTS_LIMIT = 100_000
_CHUNK = 1 << 20
_CONCERNS = ("add", "promote", "revert", "tag", "retire", "revoke", "approve")


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A version in a file."""

    update: str
    updates: int
    objects: int
    bytes: int
    sha256: str
    """Of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """A version that came from a file."""

    update: str
    added: tuple[str, ...]
    """Ids of the updates that were not here before, the oldest first."""
    approvals: int
    """How many approvals count here."""
    refused: tuple[str, ...]
    """Why the others do not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    update: str
    events: tuple[Event, ...]
    objects: Mapping[str, int]
    """Bytes by digest, in the order in which they lie in the file."""


def is_pack(path: Path) -> bool:
    """Whether a file begins as a pack does, whatever it is called."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def pack(ledger: Ledger, blobs: Blobs, id_or_name: str, path: Path, actor: str) -> Packed:
    """Writes a version to a file, and keeps in the log that it went out. Raises what `Registry.export` raises."""
    events = ledger.log.read()
    found = updates(events)
    update = resolve(id_or_name, found, ledger.where)
    line = ancestry(update, found, ledger.where)
    gone = Standing(collected=collected(events))
    for one in line:
        gone.demand_kept(one.id)
    mine = {one.id for one in line}
    said = [event for event in events if event.kind in _CONCERNS and event.subject in mine]
    sizes = {digest: blobs.size(digest) for digest in sorted({one for row in line for one in (row.delta, *row.attachments.values())})}
    header = canonical({"update": update.id, "events": [asdict(event) for event in said], "objects": list(sizes.items())})
    if len(header) > HEADER_LIMIT:
        raise Oversize(f"its header has {len(header)} bytes, over the limit of {HEADER_LIMIT}", where=str(path))
    hasher = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as file:
        for data in (MAGIC, len(header).to_bytes(8, "little"), header):
            hasher.update(data)
            file.write(data)
        for digest in sizes:
            with blobs.open(digest) as source:
                while data := source.read(_CHUNK):
                    hasher.update(data)
                    file.write(data)
    size = len(MAGIC) + 8 + len(header) + sum(sizes.values())
    done = Packed(update=update.id, updates=len(line), objects=len(sizes), bytes=size, sha256=hasher.hexdigest())
    note(ledger, "export", update.id, {"form": "selectune", "sha256": done.sha256}, actor)
    return done


def unpack(ledger: Ledger, blobs: Blobs, path: Path, actor: str) -> Unpacked:
    """Records what a pack holds, after all of it was checked: all in one step. Raises what `Registry.import_pack` raises."""
    where = str(path)
    try:
        with path.open("rb") as file:
            header, start = _header(file, where)
            line = _line(header, where)
            _check_objects(file, start, header.objects, where)
            _check_deltas(file, start, header.objects, line, where)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            read = partial(_read, file, start, header.objects)
            events = ledger.log.read()
            here = {event.subject for event in events if event.kind == "add"} - collected(events).keys()
            news = [update for update in line if update.id not in here]
            with blobs.together():
                for digest in sorted({digest for update in news for digest in (update.delta, *update.attachments.values())}):
                    if blobs.put(read(digest)) != digest:
                        raise _damaged(digest, where)
            done = _record(ledger, blobs, header, _arrivals(line, read), (actor, sha256))
    except FileNotFoundError as error:
        raise StorageError("there is no such file", where=where, then="Give a file that `selectune export` wrote.") from error
    keep(ledger, blobs, header.update)
    return done


def _arrivals(line: Sequence[Update], read: Callable[[str], bytes]) -> list[Arrival]:
    return [
        Arrival(update=update, sources={digest: partial(read, digest) for digest in (update.delta, *update.attachments.values())})
        for update in line
    ]


@again
def _record(ledger: Ledger, blobs: Blobs, header: _Header, arrivals: Sequence[Arrival], by: tuple[str, str]) -> Unpacked:
    """Appends the updates that are new, the approvals that count here, and that a pack came in, whose sha256 comes with who brought it."""
    actor, sha256 = by
    with ledger.deciding() as now:
        said = arriving(ledger, blobs, now.events, arrivals)
        added = tuple(str(event["subject"]) for event in said)
        approvals, refused = _approvals(ledger, extended(now.events, said), header.events)
        if added or approvals:
            body = {"sha256": sha256, "updates": list(added), "approvals": len(approvals), "refused": refused}
            for event in (*said, *approvals, {**ledger.event("import", actor), "subject": header.update, "body": body}):
                now.append(event)
    return Unpacked(update=header.update, added=added, approvals=len(approvals), refused=tuple(refused))


def _approvals(ledger: Ledger, mine: list[Event], theirs: Sequence[Event]) -> tuple[list[dict[str, Any]], list[str]]:
    """The events of approvals that count after the events `mine`, and why the others do not."""
    known = {event.body.get("signed", {}).get("payload") for event in mine if event.kind == "approve"}
    taken: list[dict[str, Any]] = []
    refused: list[str] = []
    for event in theirs:
        if event.kind != "approve" or event.body["signed"].get("payload") in known:
            continue
        try:
            found = updates(mine)
            said = signed_event(
                packed(event.body, f"event {event.seq}"), standing(mine, found), {one.id: one for one in found}, ledger.clock()
            )
        except SelectuneError as error:
            refused.append(f"the approval by {event.actor[:200]}: {type(error).__name__}: {error.what[:500]}")
        else:
            taken.append({**ledger.event(said["kind"], said["actor"]), **said})
            mine = extended(mine, taken[-1:])
    return taken, refused


def _header(file: BinaryIO, where: str) -> tuple[_Header, int]:
    """The header, checked in form and against the file's length, and where the objects begin."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(len(MAGIC) + 8)
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 8:
        raise EventMalformed("it is no pack of a version", where=where, then="Give a file that `selectune export` wrote.")
    if length > HEADER_LIMIT:
        raise Oversize(f"its header has {length} bytes, over the limit of {HEADER_LIMIT}", where=where, then="Take nothing from it.")
    text = file.read(length)
    try:
        value = parse_json(text, limit=HEADER_LIMIT)
        if canonical(value) != text:
            raise InputError("not canonical JSON")
    except InputError as error:
        raise EventMalformed(f"its header: {error.what}", where=where, then="Take nothing from it.") from error
    header = _parsed(value, where)
    if (ends := len(start) + length + sum(header.objects.values())) != size:
        raise Oversize(f"the file has {size} bytes, and its header speaks of {ends}", where=where, then="Fetch it again.")
    return header, len(start) + length


def _parsed(value: Any, where: str) -> _Header:
    names = {one.name for one in fields(Event)}
    match value:
        case {"update": str(update), "events": [*events], "objects": [*objects]} if len(value) == 3 and len(objects) <= OBJECTS_LIMIT:
            if all(isinstance(event, dict) and event.keys() == names for event in events) and all(map(_is_object, objects)):
                digests = [digest for digest, _ in objects]
                if digests == sorted(set(digests)):
                    return _Header(update=update, events=tuple(Event(**event) for event in events), objects=dict(objects))
    raise EventMalformed("its header has other fields than a pack's", where=where, then="Take nothing from it.")


def _is_object(row: Any) -> bool:
    match row:
        case [str(digest), int(size)] if is_digest(digest) and not isinstance(size, bool) and 0 <= size < 2**48:
            return True
    return False


def _line(header: _Header, where: str) -> list[Update]:
    """The updates of a pack, the oldest first, each on the one before; with every event checked by itself."""
    found: list[Update] = []
    wanted: set[str] = set()
    for event in header.events:
        check_event(event, where)
        if event.computed_hash() != event.hash:
            raise EventEdited(f"event {event.seq} was edited: its hash does not fit its text", where=where, then="Take nothing from it.")
        if event.kind not in _CONCERNS:
            raise EventMalformed(f"an event of kind {event.kind} is none of a version's", where=where, then="Take nothing from it.")
        if event.kind == "revoke":
            raise RevokedVersion(
                f"update {(event.subject or '')[:12]} was revoked there by {event.actor}", where=where, then="Use another version."
            )
        if event.kind == "add" and event.subject not in {update.id for update in found}:
            update = update_of(event)
            parent = found[-1] if found else None
            if update.computed_id() != event.subject or update.parent != (parent.id if parent else None):
                raise EventEdited(f"update {update.id[:12]} is not what its id says, or does not follow", where=where)
            found.append(update)
            wanted |= {update.delta, *update.attachments.values()}
    if not found or found[-1].id != header.update or wanted != header.objects.keys():
        raise EventMalformed("it holds other updates or objects than it says", where=where, then="Take nothing from it.")
    return found


def _check_objects(file: BinaryIO, start: int, objects: Mapping[str, int], where: str) -> None:
    file.seek(start)
    for digest, size in objects.items():
        hasher, left = hashlib.sha256(), size
        while left and (data := file.read(min(left, _CHUNK))):
            hasher.update(data)
            left -= len(data)
        if hasher.hexdigest() != digest:
            raise _damaged(digest, where)


def _check_deltas(file: BinaryIO, start: int, objects: Mapping[str, int], line: Sequence[Update], where: str) -> None:
    from selectune.delta.format import Delta

    for number, update in enumerate(line):
        delta = Delta.from_bytes(_read(file, start, objects, update.delta), where=f"{where}: {update.delta[:12]}")
        check_place(update, delta, line[number - 1] if number else None)


def _read(file: BinaryIO, start: int, objects: Mapping[str, int], digest: str) -> bytes:
    place = start
    for name, size in objects.items():
        if name == digest:
            break
        place += size
    file.seek(place)
    return file.read(objects[digest])


def _damaged(digest: str, where: str) -> ObjectDamaged:
    return ObjectDamaged(f"object {digest[:12]} has other bytes than its name says", where=where, then="Fetch the file again.")
