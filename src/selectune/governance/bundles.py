"""A folder's signature in the form of OpenSSF model signing 1.0: an in-toto statement over every file's sha256, inside a Sigstore bundle.

Written with `cryptography` alone; the tool `model_signing verify key` accepts what is written here, and what it signs is accepted here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from selectune.delta.files import replacing
from selectune.errors import BadSignature, DocumentError, InputError, KeyFileError, OtherBytes, StorageError, UnknownKey
from selectune.governance.documents import Digest, pae
from selectune.governance.keys import PrivateKey, PublicKey
from selectune.hashing import canonical, file_digest, parse_json

__all__ = ["SIGNATURE", "Signed", "sign_folder", "verify_folder"]

SIGNATURE = "model.sig"
"""The signature's name inside the folder, where tools look for it; it is left out of what is signed."""
_MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"
_IN_TOTO = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_GIT = (".git", ".gitattributes", ".github", ".gitignore")
_LIMIT = 64 << 20


class _Read(BaseModel):
    """Theirs may grow fields; what is read here must be as it is known."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Hint(_Read):
    hint: Digest


class _Material(_Read):
    publicKey: _Hint  # noqa: N815 - Sigstore's spelling


class _Sig(_Read):
    sig: Annotated[str, StringConstraints(max_length=1024)]


class _Envelope(_Read):
    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815
    signatures: tuple[_Sig]


class _Bundle(_Read):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]  # noqa: N815
    verificationMaterial: _Material  # noqa: N815
    dsseEnvelope: _Envelope  # noqa: N815


class _Root(_Read):
    sha256: Digest


class _Subject(_Read):
    name: str
    digest: _Root


class _Resource(_Read):
    name: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    algorithm: Literal["sha256"]
    digest: Digest


class _Serialization(_Read):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]
    ignore_paths: tuple[str, ...] = ()


class _Predicate(_Read):
    resources: tuple[_Resource, ...]
    serialization: _Serialization


class _Statement(_Read):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject]
    predicateType: Literal["https://model_signing/signature/v1.0"]  # noqa: N815
    predicate: _Predicate


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """A folder whose signature fits."""

    name: str
    """What the folder was called when it was signed."""
    files: int
    key: str
    """The key's id."""


def sign_folder(folder: Path, key: PrivateKey, *, name: str | None = None) -> Path:
    """Signs every file of a folder, however deep, and writes ``model.sig`` into it.

    Raises KeyFileError for an Ed25519 key, which the tools of that format do not take, StorageError for links and what cannot be read.
    """
    if key.public.kind == "ed25519":
        raise KeyFileError(
            "is an Ed25519 key, and bundles of model signing are on elliptic curves",
            where=f"key {key.public.id[:12]}",
            then="Make another: selectune keys new NAME --kind p256",
        )
    digests = _digests(folder, {SIGNATURE})
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests.values())).hexdigest()
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name or folder.resolve().name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in digests.items()],
        },
    }
    payload = canonical(statement)
    bundle = {
        "mediaType": _MEDIA,
        "verificationMaterial": {"publicKey": {"hint": key.public.id}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _IN_TOTO,
            "signatures": [{"sig": base64.b64encode(key.sign(pae(_IN_TOTO, payload))).decode(), "keyid": ""}],
        },
    }
    with replacing(folder / SIGNATURE) as temporary:
        temporary.write_bytes(json.dumps(bundle).encode())
    return folder / SIGNATURE


def verify_folder(folder: Path, signature: Path, key: PublicKey) -> Signed:
    """Checks a signature with the key that is trusted, then every file of the folder against it.

    Raises DocumentError for what is no such bundle, UnknownKey for another key's, BadSignature for a forged one, OtherBytes for files that
    were changed, added or removed.
    """
    where = str(signature)
    statement = _statement(_bytes(signature), key, where)
    resources = statement.predicate.resources
    said = {resource.name: resource.digest for resource in resources}
    root = hashlib.sha256(b"".join(bytes.fromhex(resource.digest) for resource in resources)).hexdigest()
    if root != statement.subject[0].digest.sha256 or len(said) != len(resources):
        raise BadSignature("its digest is not that of the files that it lists", where=where, then="Trust nothing in it.")
    ignored = set(statement.predicate.serialization.ignore_paths)
    if odd := sorted(path for path in ignored - set(_GIT) if PurePosixPath(path).name != path or not path.endswith(".sig")):
        raise BadSignature(f"it leaves out {odd[0][:200]!r}", where=where, then="Let the whole folder be signed.")
    left_out = {*ignored, *((signature.name,) if signature.resolve().parent == folder.resolve() else ())}
    found = _digests(folder, left_out)
    changes = _changes(said, found)
    if changes:
        raise OtherBytes(
            f"{len(changes)} files are not as they were signed: {', '.join(changes[:5])}", where=str(folder), then="Do not use it."
        )
    return Signed(name=statement.subject[0].name, files=len(said), key=key.id)


def _statement(data: bytes, key: PublicKey, where: str) -> _Statement:
    try:
        parse_json(data, limit=_LIMIT)
        bundle = _Bundle.model_validate_json(data)
        if bundle.verificationMaterial.publicKey.hint != key.id:
            raise UnknownKey(
                f"it is signed with key {bundle.verificationMaterial.publicKey.hint[:12]}, not {key.id[:12]}",
                where=where,
                then="Give the public key of whom you trust.",
            )
        payload = base64.b64decode(bundle.dsseEnvelope.payload, validate=True)
        key.verify(pae(_IN_TOTO, payload), base64.b64decode(bundle.dsseEnvelope.signatures[0].sig, validate=True))
        parse_json(payload, limit=_LIMIT)
        return _Statement.model_validate_json(payload)
    except (ValidationError, InputError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DocumentError(
            f"is no bundle that can be read ({reason})", where=where, then="Signatures by key over sha256 of whole files are read."
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_LIMIT + 1)
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", where=str(path), then="Give the signature's file.") from error


def _digests(folder: Path, left_out: set[str]) -> dict[str, str]:
    """sha256 of every file by its path with slashes, in the order of the paths' parts, which is theirs."""
    found: list[PurePosixPath] = []
    try:
        for place, folders, files in os.walk(folder, onerror=_raise):
            relative = PurePosixPath(Path(place).relative_to(folder).as_posix())
            folders[:] = [name for name in folders if (relative / name).as_posix() not in left_out]
            for name in [*folders, *files]:
                if (Path(place) / name).is_symlink():
                    raise StorageError("is a link", where=str(Path(place) / name), then="Put the file itself there: links are not signed.")
            for name in files:
                if not (Path(place) / name).is_file():
                    raise StorageError("is neither a file nor a folder", where=str(Path(place) / name), then="Delete it: it has no end.")
            found += [relative / name for name in files if (relative / name).as_posix() not in left_out]
        return {path.as_posix(): file_digest(folder / path) for path in sorted(found)}
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot be read ({error.strerror})", where=str(folder), then="Give a folder that you may read.") from error


def _raise(error: OSError) -> None:
    raise error


def _changes(said: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    def plain(path: str) -> str:
        return repr(path[:200])

    changed = [f"{plain(path)} changed" for path in said.keys() & found.keys() if said[path] != found[path]]
    gone = [f"{plain(path)} is missing" for path in said.keys() - found.keys()]
    return sorted([*changed, *gone, *(f"{plain(path)} was added" for path in found.keys() - said.keys())])
