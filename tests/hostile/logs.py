"""Logs that somebody has been at (T12), and what comes from elsewhere: registries, packs of one version, OCI layouts (T19)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import Case, Room

from governance_fixtures import Governed
from selectune.errors import (
    BadSignature,
    EventEdited,
    EventMalformed,
    NotApproved,
    ObjectDamaged,
    ObjectMissing,
    Oversize,
    RegistryError,
    SelectuneError,
    VerifyFailed,
)
from selectune.hashing import canonical
from selectune.registry import Registry
from selectune.registry.oci import add_layout, write_layout
from selectune.registry.packing import MAGIC

Rows = list[dict[str, Any]]


def _ours(room: Room) -> Governed:
    ours = room.govern(room.path / "registry")
    ours.release(0)
    return ours


def _sql(ours: Governed, *statements: str) -> Governed:
    """What an administrator of the database can do, hashes left as they are."""
    connection = sqlite3.connect(Path(ours.registry.where) / "registry.sqlite", isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return ours


def _body(kind: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Rows], None]:
    def edit(rows: Rows) -> None:
        row = next(row for row in rows if row["kind"] == kind)
        body = json.loads(row["body"])
        change(body)
        row["body"] = json.dumps(body, sort_keys=True, separators=(",", ":"))

    return edit


def _set(kind: str, **fields: Any) -> Callable[[Rows], None]:
    return lambda rows: next(row for row in rows if row["kind"] == kind).update(fields)


SQL: dict[str, tuple[str, str]] = {
    "actor": ("UPDATE events SET actor = 'mallory' WHERE seq = 2", "was edited"),
    "utc": ("UPDATE events SET utc = '2020-01-01T00:00:00Z' WHERE seq = 3", "was edited"),
    "kind": ("UPDATE events SET kind = 'revert' WHERE seq = 8", "was edited"),
    "name": ("UPDATE events SET name = 'candidate' WHERE kind = 'promote'", "was edited"),
    "subject": ("UPDATE events SET subject = substr(subject, 2) || '0' WHERE kind = 'promote'", "was edited"),
    "body": ("UPDATE events SET body = replace(body, 'passed', 'failed') WHERE seq = 2", "was edited"),
    "hash": ("UPDATE events SET hash = substr(hash, 2) || '0' WHERE seq = 3", "does not follow"),
    "prev": ("UPDATE events SET prev = substr(prev, 2) || '0' WHERE seq = 3", "does not follow"),
    "an event taken out": ("DELETE FROM events WHERE seq = 3", "number 3 was expected"),
    "the first taken out": ("DELETE FROM events WHERE seq = 1", "number 1 was expected"),
    "an event put in": (
        "INSERT INTO events SELECT 99, utc, actor, kind, name, subject, body, '0', '1' FROM events WHERE seq = 3",
        "does not follow",
    ),
    "a number changed": ("UPDATE events SET seq = 50 WHERE seq = 8", "was expected"),
}
EDITS: dict[str, tuple[Callable[[Rows], None], str]] = {
    "a field less": (_body("add", lambda body: body.pop("delta")), "unknown or missing fields"),
    "a field more": (_body("add", lambda body: body.update(code="x")), "unknown or missing fields"),
    "a delta of a path": (_body("add", lambda body: body.update(delta="../../etc/passwd")), "no sha256"),
    "a delta of a number": (_body("add", lambda body: body.update(delta=1)), "int as delta"),
    "a file of a path": (_body("add", lambda body: body.update(attachments={"x": "/dev/zero"})), "no sha256"),
    "a file of a list": (_body("add", lambda body: body.update(attachments={"x": []})), "no sha256"),
    "a file of 5,000 letters": (_body("add", lambda body: body.update(attachments={"x": "a" * 5000})), "no sha256"),
    "metrics of a list": (_body("add", lambda body: body.update(metrics=[])), "list as metrics"),
    "another verdict": (_body("add", lambda body: body.update(verdict="failed")), "does not fit its text"),
    "another parent": (_body("add", lambda body: body.update(parent="0" * 64)), "was not added before it"),
    "events in another order": (lambda rows: rows.insert(1, rows.pop(2)), "was not added before it"),
    "an update twice": (lambda rows: rows.append(dict(next(row for row in rows if row["kind"] == "add"))), "was added twice"),
    "a name on nothing": (_set("promote", subject="0" * 64), "points to an unknown update"),
    "a move with another past": (_body("promote", lambda body: body.update(previous="0" * 64)), "does not follow the move before it"),
    "a time that goes back": (_set("promote", utc="2020-01-01T00:00:00Z"), "is before that of the event before it"),
    "a time that is none": (_set("promote", utc="<b>now</b>"), "is no time"),
    "an approval less": (
        lambda rows: rows.remove(next(row for row in rows if row["kind"] == "approve" and "Ben" in row["actor"])),
        "NotApproved",
    ),
    "an approval without a signature": (_body("approve", lambda body: body.clear()), "DocumentError"),
    "a forged approval": (_body("approve", lambda body: body["signed"]["signatures"][0].update(sig="AA==")), "BadSignature"),
    "a policy without a signature": (_body("policy", lambda body: body.clear()), "DocumentError"),
    "a policy that is forged": (_body("policy", lambda body: body["signed"]["signatures"][0].update(sig="AA==")), "BadSignature"),
}

PULLED: dict[str, tuple[type[SelectuneError], str]] = {
    **dict.fromkeys(("actor", "utc", "kind", "name", "subject", "body", "hash"), (EventEdited, "was edited: its hash does not fit")),
    "prev": (EventEdited, "does not follow the event before it"),
    "an event taken out": (EventEdited, "number 3 was expected"),
    "the first taken out": (EventEdited, "number 1 was expected"),
    "an event put in": (EventMalformed, "event 99: prev"),
    "a number changed": (EventEdited, "number 8 was expected"),
    "a field less": (EventMalformed, "unknown or missing fields ['delta']"),
    "a field more": (EventMalformed, "unknown or missing fields ['code']"),
    "a delta of a path": (EventMalformed, "as delta, which is no sha256"),
    "a delta of a number": (EventMalformed, "int as delta"),
    **dict.fromkeys(
        ("a file of a path", "a file of a list", "a file of 5,000 letters"), (EventMalformed, "as the file 'x', which is no sha256")
    ),
    "metrics of a list": (EventMalformed, "list as metrics"),
    "another verdict": (VerifyFailed, "its id does not fit its text"),
    "another parent": (VerifyFailed, "was not added before it"),
    "events in another order": (VerifyFailed, "was not added before it"),
    "an update twice": (VerifyFailed, "was added twice"),
    "a name on nothing": (VerifyFailed, "points to an unknown update"),
    "a move with another past": (VerifyFailed, "does not follow the move before it"),
    "a time that goes back": (VerifyFailed, "is before that of the event before it"),
    "a time that is none": (EventMalformed, "event 8: utc"),
    "an approval less": (NotApproved, "0 of 1 approvals"),
    "an approval without a signature": (EventMalformed, "approve: signed"),
    "a forged approval": (BadSignature, "does not fit the bytes"),
    "a policy without a signature": (EventMalformed, "policy: signed"),
    "a policy that is forged": (BadSignature, "does not fit the bytes"),
}
FIELDS = (EventMalformed, "other fields than a pack's")
PACKED: dict[str, tuple[type[SelectuneError], str]] = {
    **dict.fromkeys(("of nothing", "of pickle", "of zip"), (EventMalformed, "it is no pack of a version")),
    "with a huge header": (Oversize, "its header has 18446744073709551615 bytes"),
    "with a header past the end": (EventMalformed, "its header: not strict JSON"),
    "cut": (Oversize, "and its header speaks of"),
    "with a tail": (Oversize, "and its header speaks of"),
    "with a flipped byte": (ObjectDamaged, "has other bytes than its name says"),
    "of loose JSON": (EventMalformed, "its header: not strict JSON"),
    "of 200,000 levels": (EventMalformed, "nested too deeply"),
    "without events": (EventMalformed, "other updates or objects than it says"),
    **dict.fromkeys(("with an event of text", "with a path as object", "with a negative object", "with an object twice"), FIELDS),
    **dict.fromkeys(("with an object of 2**50", "with a field more"), FIELDS),
    "of another update": (EventMalformed, "other updates or objects than it says"),
    "with an edited event": (EventEdited, "event 2 was edited"),
    "with an edited update": (EventEdited, "event 2 was edited"),
}
NO_DESCRIPTOR = (EventMalformed, "no descriptor of application/vnd.oci.image.manifest.v1+json")
LAYOUTS: dict[str, tuple[type[SelectuneError], str]] = {
    "without a version": (RegistryError, "there is no file oci-layout"),
    "of version 9": (RegistryError, "another version than 1.0.0"),
    "of no JSON": (EventMalformed, "index.json: not strict JSON"),
    "of 200,000 levels": (EventMalformed, "index.json: JSON is nested too deeply"),
    "without manifests": (RegistryError, "holds no update"),
    "with manifests of text": (EventMalformed, "has no list of at most"),
    **dict.fromkeys(("with a digest of a path", "with a digest of md5", "with a huge size"), NO_DESCRIPTOR),
    "with a size that lies": (ObjectDamaged, "is not what its descriptor says"),
    "with a swapped manifest": (ObjectDamaged, "is not what its descriptor says"),
    "with a missing manifest": (RegistryError, "there is no file"),
    "with a linked manifest": (VerifyFailed, "is a link"),
}


def _verified(ours: Governed) -> None:
    ours.registry.verify().demand()


def _edited() -> Iterator[Case]:
    def case(
        name: str, error: type[SelectuneError], words: str, make: Callable[[Room], Governed], act: Callable[[Governed], object]
    ) -> Case:
        return Case(threat="T12", name=name, error=error, words=words, make=make, act=act)

    for name, (statement, words) in SQL.items():
        make = lambda room, statement=statement: _sql(_ours(room), statement)  # noqa: E731
        yield case(f"log with another {name}", VerifyFailed, words, make, _verified)
        if name in ("actor", "body", "an event taken out", "hash"):
            yield case(f"load from a log with another {name}", VerifyFailed, words, make, lambda ours: ours.registry.admit("production"))
    for name, (edit, words) in EDITS.items():
        yield case(f"log rehashed with {name}", VerifyFailed, words, lambda room, edit=edit: _rewritten(room, edit), _verified)
    for name, body in {"no JSON": "{", "a list": "[]", "NaN": '{"a":NaN}', "1e999": '{"a":1e999}', "a key twice": '{"a":1,"a":2}'}.items():
        make = lambda room, body=body: _sql(_ours(room), f"UPDATE events SET body = '{body}' WHERE seq = 2")  # noqa: E731
        yield case(f"body of {name}", RegistryError, "event 2 is unreadable", make, lambda ours: ours.registry.log())
    deep = "UPDATE events SET body = replace(hex(zeroblob(90000)), '0', '[') WHERE seq = 2"
    yield case(
        "body of 180,000 levels",
        RegistryError,
        "event 2 is unreadable",
        lambda room: _sql(_ours(room), deep),
        lambda ours: ours.registry.log(),
    )
    half = """UPDATE events SET body = '{"a":"\\ud800"}' WHERE seq = 2"""
    yield case(
        "body with half a pair",
        RegistryError,
        "event 2 is unreadable",
        lambda room: _sql(_ours(room), half),
        lambda ours: ours.registry.log(),
    )
    for name in ("a field less", "a delta of a path", "a file of a path"):
        edit, words = EDITS[name]
        make = lambda room, edit=edit: _rewritten(room, edit)  # noqa: E731
        yield case(f"listing a log with {name}", RegistryError, words, make, lambda ours: ours.registry.log())
    for name, look in {
        "text": {"alpha": "x"},
        "a field more": {"code": 1},
        "a set of a list": {"sets": {"t": []}},
        "sets of a list": {"sets": []},
    }.items():
        make = lambda room, look=look: _looked(room, look)  # noqa: E731
        yield case(f"look of {name}", RegistryError, "is no look at test records", make, lambda ours: ours.registry.looks())


def _rewritten(room: Room, edit: Callable[[Rows], object]) -> Governed:
    ours = _ours(room)
    ours.rewrite(lambda rows: edit(rows) and None)
    return ours


def _looked(room: Room, changes: dict[str, Any]) -> Governed:
    ours = _ours(room)
    body = {"sets": {"t": "0" * 64}, "alpha": 0.1, "total": 0.1, "recipe": ""} | changes
    ours.registry._log.append({**ours.registry._event("look", "x"), "subject": "0" * 64, "body": body})
    return ours


def _objects() -> Iterator[Case]:
    def spoilt(room: Room, data: bytes | None, *, attached: bool = False) -> Governed:
        ours = _ours(room)
        update = ours.registry.show("production")
        path = ours.registry.blob(update.attachments["measurement.json"] if attached else update.delta)
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return ours

    for name, data, words in (("gone", None, "is missing"), ("pickle", b"\x80\x04N.", "is damaged"), ("empty", b"", "is damaged")):
        error = ObjectMissing if data is None else ObjectDamaged
        for attached in (False, True):
            make = lambda room, data=data, attached=attached: spoilt(room, data, attached=attached)  # noqa: E731
            act = lambda ours: ours.registry.admit("production")  # noqa: E731
            what = "measurement" if attached else "delta"
            yield Case(threat="T13", name=f"{what} {name} after approval", error=error, words=words, make=make, act=act)


def _pulled() -> Iterator[Case]:
    def case(name: str, error: type[SelectuneError], words: str, spoil: Callable[[Governed], object]) -> Case:
        def make(room: Room) -> tuple[Governed, Registry]:
            theirs = _ours(room)
            spoil(theirs)
            mine = Registry.open(room.path / "mine", create=True, clock=theirs.clock)
            fresh = Registry.at(room.path / "fresh", clock=theirs.clock)
            del mine
            return theirs, fresh

        return Case(
            threat="T19", name=f"pull of {name}", error=error, words=words, make=make, act=lambda given: given[1].pull(given[0].registry)
        )

    for name, (statement, _) in SQL.items():
        yield case(f"another {name}", *PULLED[name], lambda ours, statement=statement: _sql(ours, statement))
    for name, (edit, _) in EDITS.items():
        yield case(f"rehashed {name}", *PULLED[name], lambda ours, edit=edit: ours.rewrite(lambda rows: edit(rows) and None))


def _packed() -> Iterator[Case]:
    def case(name: str, error: type[SelectuneError], words: str, spoil: Callable[[bytes], bytes]) -> Case:
        def make(room: Room) -> tuple[Registry, Path]:
            theirs = _ours(room)
            path = room.path / "x.pack"
            theirs.registry.export("production", path, "ann")
            path.write_bytes(spoil(path.read_bytes()))
            return Registry.open(room.path / "mine", create=True, clock=theirs.clock), path

        return Case(
            threat="T5", name=f"pack {name}", error=error, words=words, make=make, act=lambda given: given[0].import_pack(given[1], "ann")
        )

    def header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
        def spoil(data: bytes) -> bytes:
            size = int.from_bytes(data[8:16], "little")
            value = json.loads(data[16 : 16 + size])
            change(value)
            text = canonical(value)
            return MAGIC + len(text).to_bytes(8, "little") + text + data[16 + size :]

        return spoil

    spoils: dict[str, Callable[[bytes], bytes]] = {
        "of nothing": lambda _: b"",
        "of pickle": lambda _: b"\x80\x04N.",
        "of zip": lambda _: b"PK\x03\x04" * 9,
        "with a huge header": lambda data: data[:8] + b"\xff" * 8 + data[16:],
        "with a header past the end": lambda data: data[:8] + (1 << 20).to_bytes(8, "little") + data[16:],
        "cut": lambda data: data[:-1],
        "with a tail": lambda data: data + b"x",
        "with a flipped byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        "of loose JSON": lambda data: data[:16] + data[16:].replace(b'{"events"', b'{ "events"', 1),
        "of 200,000 levels": lambda _: MAGIC + (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "without events": header(lambda value: value.update(events=[])),
        "with an event of text": header(lambda value: value.update(events=["x"])),
        "with a path as object": header(lambda value: value.update(objects=[["../../x", 1]])),
        "with a negative object": header(lambda value: value["objects"][0].__setitem__(1, -1)),
        "with an object twice": header(lambda value: value["objects"].append(value["objects"][0])),
        "with an object of 2**50": header(lambda value: value["objects"][0].__setitem__(1, 2**50)),
        "with a field more": header(lambda value: value.update(code="x")),
        "of another update": header(lambda value: value.update(update="0" * 64)),
        "with an edited event": header(lambda value: value["events"][0].update(actor="mallory")),
        "with an edited update": header(lambda value: value["events"][0]["body"].update(verdict="failed")),
    }
    for name, spoil in spoils.items():
        yield case(name, *PACKED[name], spoil)


def _layouts() -> Iterator[Case]:
    def case(name: str, error: type[SelectuneError], words: str, spoil: Callable[[Path], object]) -> Case:
        def make(room: Room) -> tuple[Registry, Path]:
            theirs = _ours(room)
            folder = room.path / "layout"
            write_layout(theirs.registry, [theirs.ids[0]], folder)
            spoil(folder)
            return Registry.open(room.path / "mine", create=True, clock=theirs.clock), folder

        return Case(
            threat="T19",
            name=f"layout {name}",
            error=error,
            words=words,
            make=make,
            act=lambda given: add_layout(given[0], given[1], "ann"),
        )

    def index(change: Callable[[Any], object]) -> Callable[[Path], object]:
        def spoil(folder: Path) -> None:
            value = json.loads((folder / "index.json").read_bytes())
            change(value)
            (folder / "index.json").write_text(json.dumps(value))

        return spoil

    def blob(folder: Path) -> Path:
        name = json.loads((folder / "index.json").read_bytes())["manifests"][0]["digest"].split(":")[1]
        return folder / "blobs" / "sha256" / name

    def swapped(folder: Path) -> None:
        path = blob(folder)
        path.write_bytes(path.read_bytes()[:-1] + b" ")

    def linked(folder: Path) -> None:
        path = blob(folder)
        path.rename(folder / "away")
        path.symlink_to(folder / "away")

    spoils: dict[str, Callable[[Path], object]] = {
        "without a version": lambda folder: (folder / "oci-layout").unlink(),
        "of version 9": lambda folder: (folder / "oci-layout").write_text('{"imageLayoutVersion":"9"}'),
        "of no JSON": lambda folder: (folder / "index.json").write_text("{"),
        "of 200,000 levels": lambda folder: (folder / "index.json").write_text("[" * 200_000),
        "without manifests": index(lambda value: value.update(manifests=[])),
        "with manifests of text": index(lambda value: value.update(manifests="x")),
        "with a digest of a path": index(lambda value: value["manifests"][0].update(digest="sha256:../../../etc/passwd")),
        "with a digest of md5": index(lambda value: value["manifests"][0].update(digest="md5:" + "0" * 32)),
        "with a size that lies": index(lambda value: value["manifests"][0].update(size=1)),
        "with a huge size": index(lambda value: value["manifests"][0].update(size=2**62)),
        "with a swapped manifest": swapped,
        "with a missing manifest": lambda folder: blob(folder).unlink(),
        "with a linked manifest": linked,
    }
    for name, spoil in spoils.items():
        yield case(name, *LAYOUTS[name], spoil)


def cases() -> list[Case]:
    """All of them."""
    return [*_edited(), *_objects(), *_pulled(), *_packed(), *_layouts()]
