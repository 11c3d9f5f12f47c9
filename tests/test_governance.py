"""Keys, signed documents, heads in several places, and folders signed as OpenSSF model signing does."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delta_fixtures import quick_disk
from governance_fixtures import policy_of
from selectune.errors import BadSignature, DocumentError, InputError, KeyFileError, OtherBytes, StorageError, UnknownKey
from selectune.governance import (
    Approval,
    Envelope,
    Motion,
    Policy,
    PrivateKey,
    Revocation,
    SignedHead,
    Witness,
    new_key,
    public_path,
    read_head,
    read_private,
    read_public,
    seal,
    sign_folder,
    verify_folder,
)
from selectune.governance.documents import pae
from selectune.hashing import canonical

RECORDED = Path(__file__).parent / "recorded" / "model-signing"
SECRET = b"correct horse"


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="signer", scope="module")
def _signer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrivateKey]:
    folder = tmp_path_factory.mktemp("signer")
    return folder / "signer.pem", new_key("signer", folder, "p256", passphrase=None)


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(RECORDED / "folder", folder)
    return folder


def never(_: Path) -> bytes:
    """Nobody may be asked."""
    raise AssertionError


def test_a_private_key_is_encrypted_and_its_owners_alone(tmp_path: Path) -> None:
    made = new_key("ann", tmp_path / "keys", passphrase=SECRET)
    path = tmp_path / "keys" / "ann.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert read_private(path, lambda _: SECRET).public == made.public == read_public(public_path(path))
    assert made.public.id == hashlib.sha256(public_path(path).read_bytes()).hexdigest()
    with pytest.raises(KeyFileError, match="the passphrase is wrong"):
        read_private(path, lambda _: b"other")
    assert sorted(os.listdir(path.parent)) == ["ann.pem", "ann.pub.pem"]
    assert "PrivateKey(ed25519 " in repr(made)


def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    new_key("ann", tmp_path, passphrase=None)
    (tmp_path / "ann.pem").chmod(0o640)
    with pytest.raises(KeyFileError, match=r"others may read it \(mode 640\).*chmod 600"):
        read_private(tmp_path / "ann.pem", never)


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    new_key("ann", tmp_path, passphrase=None)
    kept = (tmp_path / "ann.pem").read_bytes()
    with pytest.raises(KeyFileError, match="is there already"):
        new_key("ann", tmp_path, passphrase=None)
    assert (tmp_path / "ann.pem").read_bytes() == kept


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a b", "x" * 65, "a\n"])
def test_a_name_that_is_no_plain_word_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="cannot be the name of a key"):
        new_key(name, tmp_path, passphrase=None)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, x25519

    pem = {"encoding": serialization.Encoding.PEM, "format": serialization.PublicFormat.SubjectPublicKeyInfo}
    for text, words in (
        ("", "is no public key in PEM"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is no public key in PEM"),
        (x25519.X25519PrivateKey.generate().public_key().public_bytes(**pem).decode(), "holds a X25519PublicKey"),
        (ec.generate_private_key(ec.SECP256K1()).public_key().public_bytes(**pem).decode(), "is on the curve secp256k1"),
    ):
        with pytest.raises(KeyFileError, match=words):
            read_public(text)
    (tmp_path / "big.pem").write_bytes(bytes(1 << 17))
    with pytest.raises(KeyFileError, match="more than"):
        read_public(tmp_path / "big.pem")
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_private(tmp_path / "none.pem", never)
    (tmp_path / "x.pem").write_text("nothing")
    (tmp_path / "x.pem").chmod(0o600)
    with pytest.raises(KeyFileError, match="is no private key in PEM"):
        read_private(tmp_path / "x.pem", never)


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384", "p521"])
def test_a_signature_fits_its_bytes_and_its_key_alone(tmp_path: Path, kind: Any) -> None:
    key, other = (new_key(name, tmp_path, kind, passphrase=None) for name in ("a", "b"))
    signature = key.sign(b"text")
    key.public.verify(b"text", signature)
    for message, who, what in ((b"texT", key, signature), (b"text", other, signature), (b"text", key, signature[:-1]), (b"text", key, b"")):
        with pytest.raises(BadSignature):
            who.public.verify(message, what)


def test_dsse_signs_the_bytes_that_its_specification_gives() -> None:
    # The example of DSSE v1.0.0, protocol.md.
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_signed_document_comes_back_as_it_was(keys: dict[str, PrivateKey]) -> None:
    policy = policy_of(keys)
    envelope = seal(policy, keys["ada"])
    again = Envelope.parse(json.dumps(envelope.to_json()).encode(), "x")
    again.verify(keys["ada"].public)
    assert again.read(Policy, "x") == policy


HOSTILE = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a key twice": b'{"payload":"","payload":"","payloadType":"","signatures":[]}',
    "NaN": b'{"payload":NaN}',
    "deep": b"[" * 200_000 + b"]" * 200_000,
    "huge": b'"' + b"x" * (3 << 20) + b'"',
    "not UTF-8": b'{"payload":"\xff"}',
    "digits": b'{"payload":' + b"9" * 5000 + b"}",
    "no signature": b'{"payload":"","payloadType":"","signatures":[]}',
    "another field": b'{"payload":"","payloadType":"","signatures":[{"keyid":"%s","sig":""}],"x":1}' % (b"0" * 64),
    "two signatures": b'{"payload":"","payloadType":"","signatures":[{"keyid":"%s","sig":""},{"keyid":"%s","sig":""}]}'
    % (b"0" * 64, b"0" * 64),
    "no key": b'{"payload":"","payloadType":"","signatures":[{"keyid":"x","sig":""}]}',
    "no base64": b'{"payload":"*","payloadType":"","signatures":[{"keyid":"%s","sig":""}]}' % (b"0" * 64),
    "a number": b'{"payload":1,"payloadType":"","signatures":[{"keyid":"%s","sig":""}]}' % (b"0" * 64),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError, match="x: is no signed document"):
        Envelope.parse(data, "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"people": []}, "people: "),
        ({"x": 1}, "x: Extra inputs"),
        ({"format": 2}, "format: "),
        ({"format": "1"}, "format: "),
        ({"single_person": 1}, "single_person: "),
        ({"clock_minutes": 0}, "clock_minutes: "),
        ({"clock_minutes": 1e300}, "clock_minutes: "),
        ({"revoked": ["x"]}, r"revoked\.0: "),
        ({"names": {"production": {"approvals": 0}}}, r"names\.production\.approvals: "),
        ({"names": {"production": {"verdicts": ["good"]}}}, r"names\.production\.verdicts\.0: "),
        ({"people": [{"name": "\x1b[31mAnn", "roles": ["admin"]}]}, r"people\.0\.name: .*printable"),
        ({"people": [{"name": "Ann\u202e", "roles": ["admin"]}]}, r"people\.0\.name: .*printable"),
        ({"people": [{"name": " Ann", "roles": ["admin"]}]}, r"people\.0\.name: .*printable"),
        ({"people": [{"name": "Ann", "roles": []}]}, r"people\.0\.roles: "),
        ({"people": [{"name": "Ann", "roles": ["god"]}]}, r"people\.0\.roles\.0: "),
        ({"people": [{"name": "Ann", "roles": ["admin"]}]}, "nobody with the role admin has a key"),
        ({"people": [{"name": "Ann", "roles": ["admin"], "keys": ["x"]}]}, "is no public key in PEM"),
    ],
)
def test_a_policy_that_is_not_as_it_must_be_is_refused(keys: dict[str, PrivateKey], change: dict[str, Any], words: str) -> None:
    text = {**policy_of(keys).model_dump(mode="json"), **change}
    with pytest.raises(DocumentError, match=words):
        Policy.parse(json.dumps(text).encode(), "policy")


def test_a_key_or_a_person_twice_in_a_policy_is_refused(keys: dict[str, PrivateKey]) -> None:
    one = {"name": "Ann", "roles": ["admin"], "keys": [keys["ann"].public.pem]}
    for people, words in (
        ([one, {**one, "name": "ANN", "keys": []}], "a person is there twice"),
        ([one, {**one, "name": "Bo"}], "a key belongs"),
    ):
        with pytest.raises(DocumentError, match=words):
            Policy.parse(json.dumps({"people": people}).encode(), "policy")


@pytest.mark.parametrize("utc", ["2026-11-24T12:00:00", "2026-13-24T12:00:00Z", "2026-11-24T12:00:00+00:00", "٢026-11-24T12:00:00Z", ""])
def test_a_time_in_another_form_is_refused(utc: str) -> None:
    text = {"name": "A", "role": "author", "meaning": "m", "utc": utc, "update": "0" * 64, "record": "0" * 64}
    with pytest.raises(DocumentError, match="utc: "):
        Approval.parse(canonical(text), "approval")


def test_a_document_of_another_type_is_refused(keys: dict[str, PrivateKey]) -> None:
    with pytest.raises(
        DocumentError, match=r"is 'application/vnd\.selectune\.head\+json', not 'application/vnd\.selectune\.approval\+json'"
    ):
        seal(FIXED["head"], keys["ann"]).read(Approval, "approval")


def test_text_that_is_not_canonical_is_refused_even_if_it_is_signed(keys: dict[str, PrivateKey]) -> None:
    kind = "application/vnd.selectune.head+json"
    payload = b'{"registry": "%s","count":1,"hash":"%s","utc":"2026-11-24T12:00:00Z"}' % (b"0" * 64, b"0" * 64)
    key = keys["ann"]
    envelope = Envelope(payload=payload, payload_type=kind, key_id=key.public.id, signature=key.sign(pae(kind, payload)))
    envelope.verify(key.public)
    with pytest.raises(DocumentError, match="not canonical JSON"):
        envelope.read(SignedHead, "head")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_read_as_a_document_is_refused_in_words(data: bytes, tmp_path: Path, signer: tuple[Path, PrivateKey]) -> None:
    for read in (Policy.parse, Approval.parse, Revocation.parse, SignedHead.parse, Envelope.parse):
        with pytest.raises(DocumentError):
            read(data, "x")
    (tmp_path / "x.sig").write_bytes(data)
    with pytest.raises(DocumentError):
        verify_folder(tmp_path, tmp_path / "x.sig", signer[1].public)


# Formats: what docs/reference/signed-formats.md promises.

FIXED = {
    "approval": Approval(
        name="Ben Boss", role="approver", meaning="approved for production", utc="2026-11-24T12:00:00Z", update="1" * 64, record="2" * 64
    ),
    "revocation": Revocation(
        name="Ada Admin", role="admin", reason="poisoned records", utc="2026-11-24T12:00:00Z", update="1" * 64, record="2" * 64
    ),
    "move": Motion(name="Ann Author", role="author", utc="2026-11-24T12:00:00Z", event="9" * 64),
    "head": SignedHead(registry="3" * 64, count=7, hash="4" * 64, utc="2026-11-24T12:00:00Z"),
}


def fixed_key(tmp_path: Path) -> PrivateKey:
    """The Ed25519 key whose seed is 32 zero bytes."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    path = tmp_path / "zero.pem"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    path.chmod(0o600)
    return read_private(path, never)


def test_the_formats_are_what_the_reference_says(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "signed-formats.md").read_text(encoding="utf-8")
    key = fixed_key(tmp_path)
    assert key.public.id in page
    policy = Policy.model_validate_json(
        json.dumps({"people": [{"name": "Ada Admin", "roles": ["admin"], "keys": [key.public.pem]}], "names": {"production": {}}})
    )
    assert policy.digest in page
    for kind, document in {**FIXED, "policy": policy}.items():
        envelope = seal(document, key)
        assert f"`application/vnd.selectune.{kind}+json`" in page
        assert hashlib.sha256(envelope.payload).hexdigest() in page, f"{kind}: {hashlib.sha256(envelope.payload).hexdigest()}"
        assert hashlib.sha256(envelope.signature).hexdigest() in page, f"{kind}: {hashlib.sha256(envelope.signature).hexdigest()}"
    assert FIXED["head"].to_bytes().decode() in page


def test_a_record_is_what_the_reference_says() -> None:
    from selectune.registry import Update
    from selectune.registry.signatures import record_of

    update = Update(base="5" * 64, child="6" * 64, delta="7" * 64, verdict="passed", attachments={"measurement.json": "8" * 64})
    page = (Path(__file__).parent.parent / "docs" / "reference" / "signed-formats.md").read_text(encoding="utf-8")
    assert record_of(update) in page, record_of(update)


def test_what_a_move_signs_is_what_the_reference_says() -> None:
    from selectune.registry.events import Event

    body = {"previous": None, "reason": "passed every gate", "verdict": "passed"}
    made = {"seq": 5, "utc": "2026-11-24T12:00:00Z", "actor": "Ann Author", "kind": "promote", "name": "production", "subject": "1" * 64}
    event = Event(**made, body=body, prev="4" * 64, hash="")
    page = (Path(__file__).parent.parent / "docs" / "reference" / "signed-formats.md").read_text(encoding="utf-8")
    assert event.motion() in page, event.motion()
    assert dataclasses.replace(event, body={**body, "signed": {"payload": "…"}}).motion() == event.motion()


# Heads in their places.


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def test_a_head_is_kept_in_a_file_and_read_again(tmp_path: Path, keys: dict[str, PrivateKey]) -> None:
    from datetime import UTC, datetime

    witness = Witness(place=str(tmp_path / "head.json"), key=keys["ada"])
    assert witness.kept() is None
    witness.keep("0" * 64, 3, "1" * 64, datetime(2026, 11, 24, 12, tzinfo=UTC))
    assert witness.kept() == SignedHead(registry="0" * 64, count=3, hash="1" * 64, utc="2026-11-24T12:00:00Z")
    with pytest.raises(StorageError, match="there is no head"):
        read_head(str(tmp_path / "none.json"))
    with pytest.raises(StorageError, match="cannot be written"):
        Witness(place=str(tmp_path / "none" / "head.json"), key=keys["ada"]).keep("0" * 64, 1, "1" * 64, datetime.now(UTC))


@pytest.mark.skipif(shutil.which("git") is None, reason="the program git is not installed")
def test_a_head_in_a_git_work_tree_is_committed(tmp_path: Path, keys: dict[str, PrivateKey], monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "witness")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "witness@example.org")
    witness = Witness(place=f"git:{tmp_path / 'head.json'}", key=keys["ada"])
    with pytest.raises(StorageError, match="git add failed"):
        witness.keep("0" * 64, 3, "1" * 64, datetime.now(UTC))
    _git(tmp_path, "init", "--quiet")
    (tmp_path / "other").write_text("stays out")
    _git(tmp_path, "add", "other")
    for count in (3, 4):
        witness.keep("0" * 64, count, "1" * 64, datetime.now(UTC))
    assert _git(tmp_path, "log", "--format=%s").splitlines() == ["head 4 111111111111", "head 3 111111111111"]
    assert _git(tmp_path, "status", "--short") == "A  other\n"


def test_a_head_goes_to_what_fsspec_can_write(keys: dict[str, PrivateKey]) -> None:
    from datetime import UTC, datetime

    witness = Witness(place="memory://selectune/head.json", key=keys["ada"])
    assert witness.kept() is None
    witness.keep("0" * 64, 3, "1" * 64, datetime.now(UTC))
    kept = witness.kept()
    assert kept is not None
    assert kept.count == 3
    with pytest.raises(InputError, match="no place that fsspec knows"):
        Witness(place="nowhere://x", key=keys["ada"]).kept()


# Folders.


def test_model_signings_own_signature_is_accepted(model: Path) -> None:
    key = read_public(RECORDED / "signer.pub.pem")
    signed = verify_folder(model, RECORDED / "theirs.sig", key)
    assert (signed.name, signed.files, signed.key) == ("folder", 5, key.id)


def test_what_model_signing_accepted_is_what_is_written_today(model: Path, signer: tuple[Path, PrivateKey]) -> None:
    assert json.loads((RECORDED / "about.json").read_text())["said of ours"] == "Verification succeeded"
    accepted = json.loads((RECORDED / "ours.sig").read_text())
    made = json.loads(sign_folder(model, signer[1], name="folder").read_text())
    assert made["dsseEnvelope"]["payload"] == accepted["dsseEnvelope"]["payload"]
    for one in (made, accepted):
        one["dsseEnvelope"]["signatures"][0]["sig"] = one["dsseEnvelope"]["payload"] = ""
        one["verificationMaterial"]["publicKey"]["hint"] = ""
    assert made == accepted
    theirs = json.loads((RECORDED / "theirs.sig").read_text())
    statements = [
        json.loads(base64.b64decode(json.loads((RECORDED / name).read_text())["dsseEnvelope"]["payload"]))
        for name in ("ours.sig", "theirs.sig")
    ]
    assert theirs["mediaType"] == accepted["mediaType"]
    assert statements[0]["subject"] == statements[1]["subject"], "the digest over all files is the same"


@pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None, reason="model-signing is not installed: pip install model-signing pyopenssl"
)
def test_model_signing_accepts_what_is_signed_here(model: Path, signer: tuple[Path, PrivateKey]) -> None:
    sign_folder(model, signer[1])
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        model,
        "--signature",
        model / "model.sig",
        "--public_key",
        public_path(signer[0]),
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_signed_folder_is_checked_to_the_byte(model: Path, signer: tuple[Path, PrivateKey]) -> None:
    signature = sign_folder(model, signer[1])
    public = signer[1].public
    assert verify_folder(model, signature, public).files == 5
    moved = model.rename(model.parent / "renamed")
    signature = moved / "model.sig"
    assert verify_folder(moved, signature, public).name == "model"
    for change, words in (
        (lambda: (moved / "model.safetensors").write_bytes(bytes(64)), "'model.safetensors' changed"),
        ((moved / "config.json").unlink, "'config.json' is missing"),
        (lambda: (moved / "a" / "evil.py").write_text("import os"), "'a/evil.py' was added"),
    ):
        change()
        with pytest.raises(OtherBytes, match=words):
            verify_folder(moved, signature, public)


def test_a_folder_with_a_link_is_not_signed(model: Path, signer: tuple[Path, PrivateKey]) -> None:
    (model / "link").symlink_to("/etc/passwd")
    with pytest.raises(StorageError, match="is a link"):
        sign_folder(model, signer[1])


def test_an_ed25519_key_signs_no_folder(model: Path, keys: dict[str, PrivateKey]) -> None:
    with pytest.raises(KeyFileError, match=r"Ed25519.*--kind p256"):
        sign_folder(model, keys["ann"])


def test_a_folder_signed_by_somebody_else_is_refused(model: Path, signer: tuple[Path, PrivateKey]) -> None:
    with pytest.raises(UnknownKey, match="it is signed with key"):
        verify_folder(model, RECORDED / "theirs.sig", signer[1].public)


def resigned(key: PrivateKey, path: Path, change: Any) -> Path:
    """The recorded statement with a change, signed again."""
    bundle = json.loads((RECORDED / "ours.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement, bundle)
    payload = canonical(statement)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(key.sign(pae("application/vnd.in-toto+json", payload))).decode()
    bundle["verificationMaterial"]["publicKey"]["hint"] = key.public.id
    path.write_text(json.dumps(bundle))
    return path


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda said, _: said["predicate"].update(resources=[]), BadSignature),
        (lambda said, _: said["subject"][0]["digest"].update(sha256="0" * 64), BadSignature),
        (lambda said, _: said["predicate"]["serialization"].update(ignore_paths=["model.safetensors"]), BadSignature),
        (lambda said, _: said["predicate"]["serialization"].update(ignore_paths=["../x.sig"]), BadSignature),
        (lambda said, _: said["predicate"]["serialization"].update(method="shards"), DocumentError),
        (lambda said, _: said["predicate"]["serialization"].update(allow_symlinks=True), DocumentError),
        (lambda said, _: said.update(predicateType="https://model_signing/Digests/v0.1"), DocumentError),
        (lambda said, _: said.update(_type="https://in-toto.io/Statement/v0.1"), DocumentError),
        (lambda said, _: said["predicate"]["resources"][0].update(algorithm="md5"), DocumentError),
        (lambda _, bundle: bundle.update(mediaType="x"), DocumentError),
        (lambda _, bundle: bundle["dsseEnvelope"]["signatures"].append({"sig": "", "keyid": ""}), DocumentError),
        (lambda _, bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"), DocumentError),
    ],
)
def test_a_bundle_that_says_something_else_is_refused(
    model: Path, signer: tuple[Path, PrivateKey], change: Any, error: type[Exception]
) -> None:
    path = resigned(signer[1], model.parent / "x.sig", change)
    with pytest.raises(error):
        verify_folder(model, path, signer[1].public)
    assert verify_folder(model, resigned(signer[1], path, lambda *_: None), signer[1].public).files == 5


def test_a_bundle_whose_text_was_edited_is_refused(model: Path, signer: tuple[Path, PrivateKey]) -> None:
    path = resigned(signer[1], model.parent / "x.sig", lambda *_: None)
    bundle = json.loads(path.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"a.txt", b"b.txt")).decode()
    path.write_text(json.dumps(bundle))
    with pytest.raises(BadSignature, match="does not fit the bytes"):
        verify_folder(model, path, signer[1].public)
