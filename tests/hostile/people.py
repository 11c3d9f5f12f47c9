"""Policies, approvals, revocations, heads and bundles: forged, edited, replayed, stale (T11, T13), and versions that were revoked (T17)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cases import Case, Room

from governance_fixtures import Governed, policy_of
from moves_fixtures import FORGED
from selectune.errors import (
    BadSignature,
    ClockApart,
    DocumentError,
    NotApproved,
    OtherBytes,
    OwnApproval,
    PolicyRefused,
    RegistryError,
    RevokedKey,
    RevokedVersion,
    SelectuneError,
    StaleApproval,
    StorageError,
    UnknownKey,
    VerdictRefused,
    WrongMeaning,
    WrongRole,
)
from selectune.governance import Approval, Envelope, Policy, approve, new_key, seal, sign_folder, verify_folder
from selectune.governance.heads import SignedHead, verify_head
from selectune.hashing import canonical
from selectune.registry.signatures import target_of

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of Ed25519's group."""


def _ours(room: Room) -> Governed:
    return room.govern(room.path / "registry")


def _said(ours: Governed, number: int = 0, who: str = "ben", *, role: str = "approver", minutes: int = 0) -> Envelope:
    target = target_of(ours.registry.show(ours.ids[number]))
    return approve(ours.policy, ours.keys[who], (role, "production"), target, ours.clock() + timedelta(minutes=minutes))  # type: ignore[arg-type]


def _with(envelope: Envelope, **changes: Any) -> Envelope:
    return replace(envelope, payload=canonical(json.loads(envelope.payload) | changes))


def _approvals() -> Iterator[Case]:
    def case(name: str, error: type[SelectuneError], words: str, forge: Callable[[Governed], Envelope], threat: str = "T11") -> Case:
        def make(room: Room) -> tuple[Governed, Envelope]:
            ours = _ours(room)
            return ours, forge(ours)

        return Case(
            threat=threat,
            name=f"approval {name}",
            error=error,
            words=words,
            make=make,
            act=lambda given: given[0].registry.record(given[1]),
        )

    for field, value in {
        "name": "Ada Admin",
        "meaning": "approved for production!",
        "utc": "2026-11-24T12:00:59Z",
        "record": "0" * 64,
    }.items():
        yield case(f"edited at {field}", BadSignature, "does not fit the bytes", lambda ours, c={field: value}: _with(_said(ours), **c))
    yield case("moved to another update", BadSignature, "does not fit", lambda ours: _with(_said(ours), update=ours.ids[1]))
    yield case("with role author", BadSignature, "does not fit", lambda ours: _with(_said(ours), role="author"))
    yield case("with role admin", DocumentError, "role", lambda ours: _with(_said(ours), role="admin"))
    yield case("with a field more", DocumentError, "extra", lambda ours: _with(_said(ours), extra=1))
    yield case("with an escape as name", DocumentError, "printable", lambda ours: _with(_said(ours), name="\x1b[31mBen"))
    yield case("with turned text", DocumentError, "printable", lambda ours: _with(_said(ours), name="Ben\u202e"))
    yield case("at no time", DocumentError, "utc", lambda ours: _with(_said(ours), utc="yesterday"))
    yield case("of no JSON", DocumentError, "strict JSON", lambda ours: replace(_said(ours), payload=b"{"))
    yield case("of loose JSON", DocumentError, "not canonical", lambda ours: replace(_said(ours), payload=b" " + _said(ours).payload))
    yield case("signed with nothing", BadSignature, "does not fit", lambda ours: replace(_said(ours), signature=b""))
    yield case("signed with zeros", BadSignature, "does not fit", lambda ours: replace(_said(ours), signature=bytes(64)))
    yield case(
        "signed with a tail", BadSignature, "does not fit", lambda ours: replace(_said(ours), signature=_said(ours).signature + b"\0")
    )
    yield case("signed malleably", BadSignature, "does not fit", _malleable)
    yield case("under another key's id", BadSignature, "does not fit", lambda ours: replace(_said(ours), key_id=ours.keys["cy"].public.id))
    yield case("under an unknown key", UnknownKey, "is not in the policy", lambda ours: replace(_said(ours), key_id="0" * 64))
    yield case("by a stranger", UnknownKey, "is not in the policy", lambda ours: seal(_read(ours), ours.keys["mallory"]))
    yield case("by an author", WrongRole, "is author, not approver", lambda ours: _said(ours, who="ann"))
    yield case("in another's name", WrongMeaning, "signed as Ben Boss, with a key of Cy", lambda ours: seal(_read(ours), ours.keys["cy"]))
    yield case("by its author", OwnApproval, "is its author", lambda ours: (ours.submit(0, "cy"), _said(ours, who="cy"))[1])
    yield case(
        "of a revoked key", RevokedKey, "is revoked", lambda ours: (_said(ours), ours.change(revoked=[ours.keys["ben"].public.id]))[0]
    )
    yield case("from the past", ClockApart, "minutes apart", lambda ours: _said(ours, minutes=-20))
    yield case("from the future", ClockApart, "minutes apart", lambda ours: _said(ours, minutes=20))
    yield case(
        "of another type",
        DocumentError,
        "neither an approval",
        lambda ours: replace(_said(ours), payload_type="application/vnd.in-toto+json"),
    )
    yield case(
        "as a policy",
        DocumentError,
        "neither an approval",
        lambda ours: replace(_said(ours), payload_type="application/vnd.selectune.policy+json"),
    )
    retyped = "application/vnd.selectune.revocation+json"
    yield case("as a revocation", DocumentError, "reason: Field required", lambda ours: replace(_said(ours), payload_type=retyped))
    yield case(
        "with markup as type", DocumentError, "neither an approval", lambda ours: replace(_said(ours), payload_type="<img onerror=x>")
    )
    yield case("of an unknown update", RegistryError, "is not in this registry", _elsewhere)
    yield case("of an old record", StaleApproval, "the record was", _stale, "T13")
    yield case("of a revoked version", RevokedVersion, "was revoked", _ended, "T17")


def _moves() -> Iterator[Case]:
    for name, (forge, error, words) in FORGED.items():

        def make(room: Room, forge: Callable[[Governed], dict[str, Any]] = forge) -> tuple[Governed, str]:
            ours = _ours(room)
            ours.change(signed_moves=True)
            event = forge(ours)
            ours.registry._log.append(event)
            return ours, event["name"]

        yield Case(
            threat="T11", name=f"move {name}", error=error, words=words, make=make, act=lambda given: given[0].registry.admit(given[1])
        )


def _read(ours: Governed) -> Approval:
    return _said(ours).read(Approval, "x")


def _malleable(ours: Governed) -> Envelope:
    """S + L signs the same for a reader that does not look."""
    made = _said(ours)
    number = int.from_bytes(made.signature[32:], "little") + ORDER
    return replace(made, signature=made.signature[:32] + number.to_bytes(32, "little"))


def _elsewhere(ours: Governed) -> Envelope:
    document = _read(ours).model_copy(update={"update": "0" * 64})
    return seal(document, ours.keys["ben"])


def _stale(ours: Governed) -> Envelope:
    document = _read(ours).model_copy(update={"record": "0" * 64})
    return seal(document, ours.keys["ben"])


def _ended(ours: Governed) -> Envelope:
    made = _said(ours)
    ours.registry.revoke(ours.ids[0], "poisoned", "ben", ours.keys["ben"])
    return made


def _envelopes() -> Iterator[Case]:
    good = {"payload": "e30=", "payloadType": "x", "signatures": [{"keyid": "0" * 64, "sig": "AA=="}]}
    rows: dict[str, dict[str, Any]] = {
        "without signatures": {"signatures": []},
        "with two signatures": {"signatures": good["signatures"] * 2},  # type: ignore[operator]
        "with no base64": {"payload": "<img>"},
        "with base64 of URLs": {"payload": "-_8="},
        "with payload of a number": {"payload": 1},
        "with a field more": {"code": 1},
        "with a short key id": {"signatures": [{"keyid": "0", "sig": "AA=="}]},
        "with a key id of capitals": {"signatures": [{"keyid": "A" * 64, "sig": "AA=="}]},
        "with a signature of 2 KiB": {"signatures": [{"keyid": "0" * 64, "sig": "A" * 2048}]},
        "with no signature": {"signatures": [{"keyid": "0" * 64}]},
        "with an algorithm": {"signatures": [{"keyid": "0" * 64, "sig": "AA==", "alg": "none"}]},
    }
    for name, changes in rows.items():
        data = json.dumps(good | changes).encode()
        act = lambda data: Envelope.parse(data, "x.json")  # noqa: E731
        yield Case(
            threat="T11",
            name=f"envelope {name}",
            error=DocumentError,
            words="is no signed document",
            make=lambda _, data=data: data,
            act=act,
        )


def _policies() -> Iterator[Case]:
    def case(name: str, error: type[SelectuneError], words: str, forge: Callable[[Governed], Envelope]) -> Case:
        def make(room: Room) -> tuple[Governed, Envelope]:
            ours = _ours(room)
            return ours, forge(ours)

        return Case(
            threat="T11",
            name=f"policy {name}",
            error=error,
            words=words,
            make=make,
            act=lambda given: given[0].registry.set_policy(given[1]),
        )

    def next_(ours: Governed, **changes: Any) -> Policy:
        return policy_of(ours.keys, ours.policy, **changes)

    for who in ("ben", "ann", "mallory"):
        yield case(
            f"signed by {who}", PolicyRefused, "no admin of the policy before it", lambda ours, who=who: seal(next_(ours), ours.keys[who])
        )
    yield case("edited", BadSignature, "does not fit", lambda ours: _with(seal(next_(ours), ours.keys["ada"]), single_person=True))
    yield case(
        "that follows nothing",
        PolicyRefused,
        "says that the policy before it is none",
        lambda ours: seal(policy_of(ours.keys), ours.keys["ada"]),
    )
    yield case("that is put back", PolicyRefused, "the policy before it is", _put_back)
    yield case("as an approval", DocumentError, "not 'application/vnd.selectune.policy+json'", _said)
    texts: dict[str, tuple[dict[str, Any], str]] = {
        "without people": ({"people": []}, "people"),
        "without an admin": ({"people": [{"name": "x", "roles": ["author"], "keys": []}]}, "nobody with the role admin"),
        "with a role of root": ({"people": [{"name": "x", "roles": ["root"]}]}, "people.0.roles"),
        "with a key that is none": ({"people": [{"name": "x", "roles": ["admin"], "keys": ["x"]}]}, "no public key"),
        "with no approvals": ({"names": {"production": {"approvals": 0}}}, "names.production.approvals"),
        "with 17 approvals": ({"names": {"production": {"approvals": 17}}}, "names.production.approvals"),
        "with no verdicts": ({"names": {"production": {"verdicts": []}}}, "names.production.verdicts"),
        "with clocks of a year": ({"clock_minutes": 525600}, "clock_minutes"),
        "with a truth of text": ({"single_person": "yes"}, "single_person"),
        "with a field more": ({"allow_all": True}, "allow_all"),
        "with format 2": ({"format": 2}, "format"),
    }
    for name, (changes, words) in texts.items():
        yield case(name, DocumentError, words, lambda ours, changes=changes: _with(seal(next_(ours), ours.keys["ada"]), **changes))


def _put_back(ours: Governed) -> Envelope:
    made = seal(ours.policy, ours.keys["ada"])
    ours.change()
    return made


def _loads() -> Iterator[Case]:
    """What is loaded or named against the policy."""

    def case(
        threat: str, name: str, error: type[SelectuneError], words: str, make: Callable[[Room], Governed], act: Callable[[Governed], object]
    ) -> Case:
        return Case(threat=threat, name=name, error=error, words=words, make=make, act=act)

    def released(room: Room, *, revoked: bool = False) -> Governed:
        ours = _ours(room)
        ours.release(0)
        ours.release(1)
        if revoked:
            ours.registry.revoke(ours.ids[0], "poisoned", "ben", ours.keys["ben"])
        return ours

    def signed(room: Room, *who: str) -> Governed:
        ours = _ours(room)
        if "ann" in who:
            ours.submit(0)
        for one in who:
            if one != "ann":
                ours.approve(0, one)
        return ours

    def revoked(room: Room) -> Governed:
        return released(room, revoked=True)

    yield case("T17", "revoked version loaded by id", RevokedVersion, "was revoked", revoked, lambda ours: ours.registry.admit(ours.ids[0]))
    yield case(
        "T17",
        "revoked version loaded by a prefix",
        RevokedVersion,
        "was revoked",
        revoked,
        lambda ours: ours.registry.admit(ours.ids[0][:9]),
    )
    yield case("T17", "revoked version named", RevokedVersion, "was revoked", revoked, lambda ours: ours.promote(0))
    yield case("T17", "revoked version named otherwise", RevokedVersion, "was revoked", revoked, lambda ours: ours.promote(0, "candidate"))
    yield case(
        "T17",
        "name taken back to a revoked version",
        RevokedVersion,
        "was revoked",
        revoked,
        lambda ours: ours.registry.revert("production", "x", "y"),
    )
    yield case("T17", "revoked version signed as author", RevokedVersion, "was revoked", revoked, lambda ours: ours.submit(0))
    yield case("T11", "promotion without approval", NotApproved, "0 of 1 approvals", _ours, lambda ours: ours.promote(0))
    yield case(
        "T11", "promotion without an author", NotApproved, "its author", lambda room: signed(room, "ben"), lambda ours: ours.promote(0)
    )
    yield case(
        "T11", "promotion with an author alone", NotApproved, "0 of 1", lambda room: signed(room, "ann"), lambda ours: ours.promote(0)
    )
    yield case("T11", "promotion of a failed update", VerdictRefused, "the gate's word is failed", _ours, lambda ours: ours.promote(2))

    def fooled(room: Room) -> Governed:
        ours = signed(room, "ann", "ben")
        ours.rewrite(lambda rows: [row.update(body=row["body"].replace('"passed"', '"failed"')) for row in rows if row["kind"] == "add"])
        return ours

    yield case(
        "T13", "delta or verdict changed after approval", VerdictRefused, "the gate's word is failed", fooled, lambda ours: ours.promote(0)
    )

    def passed(room: Room) -> Governed:
        ours = _ours(room)
        ours.submit(2)
        ours.approve(2)
        ours.rewrite(lambda rows: [row.update(body=row["body"].replace('"failed"', '"passed"')) for row in rows if row["kind"] == "add"])
        return ours

    yield case("T13", "failed turned to passed after approval", StaleApproval, "the record was", passed, lambda ours: ours.promote(2))


def _heads() -> Iterator[Case]:
    good = {"registry": "0" * 64, "count": 1, "hash": "0" * 64, "utc": "2026-11-24T12:00:00Z"}
    rows: list[tuple[str, type[SelectuneError], str, dict[str, Any], str]] = [
        ("edited", BadSignature, "does not fit", {"count": 2}, "ada"),
        ("of another key", UnknownKey, "none of those that may", {}, "mallory"),
    ]
    for name, error, words, changes, who in rows:

        def make(room: Room, changes: dict[str, Any] = changes, who: str = who) -> tuple[Envelope, Room]:
            return _with(seal(SignedHead.model_validate(good), room.keys[who]), **changes), room

        act = lambda given: verify_head(given[0], [given[1].keys["ada"].public], where="head.json")  # noqa: E731
        yield Case(threat="T12", name=f"head {name}", error=error, words=words, make=make, act=act)


def _bundles() -> Iterator[Case]:
    def case(name: str, error: type[SelectuneError], words: str, spoil: Callable[[Path, dict[str, Any]], None]) -> Case:
        def make(room: Room) -> tuple[Path, Any]:
            path = room.path / "model"
            (path / "sub").mkdir(parents=True)
            (path / "a.txt").write_text("a")
            (path / "sub" / "b.txt").write_text("b")
            keys = room.path / "keys"
            keys.mkdir()
            key = new_key("signer", keys, "p256", passphrase=None)
            signature = sign_folder(path, key)
            bundle = json.loads(signature.read_text())
            spoil(path, bundle)
            signature.write_text(json.dumps(bundle))
            return path, key.public

        return Case(
            threat="T11",
            name=f"bundle {name}",
            error=error,
            words=words,
            make=make,
            act=lambda given: verify_folder(given[0], given[0] / "model.sig", given[1]),
        )

    def payload(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, dict[str, Any]], None]:
        def spoil(_: Path, bundle: dict[str, Any]) -> None:
            statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
            change(statement)
            bundle["dsseEnvelope"]["payload"] = base64.b64encode(canonical(statement)).decode()

        return spoil

    def fifo(path: Path, _: dict[str, Any]) -> None:
        import os

        os.mkfifo(path / "pipe")

    yield case("of a changed file", OtherBytes, "'a.txt' changed", lambda path, _: (path / "a.txt").write_text("x"))  # type: ignore[arg-type,return-value]
    yield case("of a file more", OtherBytes, "'c.txt' was added", lambda path, _: (path / "c.txt").write_text("x"))  # type: ignore[arg-type,return-value]
    yield case("of a file less", OtherBytes, "'sub/b.txt' is missing", lambda path, _: (path / "sub" / "b.txt").unlink())
    yield case("of a link", StorageError, "is a link", lambda path, _: (path / "l").symlink_to("a.txt"))
    yield case("of a pipe", StorageError, "is neither a file nor a folder", fifo)
    yield case("with an edited statement", BadSignature, "does not fit", payload(lambda one: one["subject"][0].update(name="x")))
    yield case(
        "with a path out", BadSignature, "does not fit", payload(lambda one: one["predicate"]["resources"][0].update(name="../../x"))
    )
    yield case("with sha1", BadSignature, "does not fit", payload(lambda one: one["predicate"]["serialization"].update(hash_type="sha1")))
    yield case("with no signature", BadSignature, "does not fit", lambda _, one: one["dsseEnvelope"]["signatures"][0].update(sig=""))
    yield case(
        "with two signatures",
        DocumentError,
        "no bundle",
        lambda _, one: one["dsseEnvelope"].update(signatures=one["dsseEnvelope"]["signatures"] * 2),
    )
    yield case(
        "of another key", UnknownKey, "it is signed with key", lambda _, one: one["verificationMaterial"]["publicKey"].update(hint="0" * 64)
    )
    yield case("of another type", DocumentError, "no bundle", lambda _, one: one["dsseEnvelope"].update(payloadType="text/html"))
    yield case("of another medium", DocumentError, "no bundle", lambda _, one: one.update(mediaType="application/x"))
    yield case("with no base64", DocumentError, "no bundle", lambda _, one: one["dsseEnvelope"].update(payload="<img>"))


def cases() -> list[Case]:
    """All of them."""
    return [*_approvals(), *_moves(), *_envelopes(), *_policies(), *_loads(), *_heads(), *_bundles()]
