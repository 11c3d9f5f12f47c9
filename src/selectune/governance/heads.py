"""The signed head of an event log, kept in a second place: it shows a tail that was cut, and a log that was rewritten.

A place is a local file, ``git:FILE`` for one in a git work tree, which is committed, or a URL that fsspec can write to. Places come from
whoever runs the program and never from a registry: a registry could be a stranger's.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from selectune.delta.files import replacing, sweep
from selectune.errors import InputError, KeyFileError, MissingPackage, StorageError, UnknownKey
from selectune.faults import reach
from selectune.governance.documents import LIMIT, Digest, Document, Envelope, Utc, now_text, seal
from selectune.governance.keys import PrivateKey, PublicKey

__all__ = ["SignedHead", "Witness", "read_head", "verify_head"]


class SignedHead(Document):
    """The end of a log."""

    kind: ClassVar[str] = "head"

    registry: Digest
    """The hash of the log's first event: which registry it is."""
    count: Annotated[int, Field(ge=1, lt=2**53)]
    hash: Digest
    """Of the last event."""
    utc: Utc


@dataclass(frozen=True, kw_only=True)
class Witness:
    """Where heads are kept, and the key that signs them; to check them the public half is enough."""

    place: str
    key: PrivateKey | PublicKey

    def signer(self) -> PrivateKey:
        """The private key. Raises KeyFileError where there is the public one alone."""
        if not isinstance(self.key, PrivateKey):
            raise KeyFileError("is public, and a head has to be signed", where=f"key {self.key.id[:12]}", then="Give the private key.")
        return self.key

    def kept(self) -> SignedHead | None:
        """The head that is there, checked with this key; None where there is none yet. Raises as `read_head` and `verify_head`."""
        data = _read(self.place)
        if data is None:
            return None
        trusted = self.key.public if isinstance(self.key, PrivateKey) else self.key
        return verify_head(Envelope.parse(data, self.place), [trusted], where=self.place)

    def keep(self, registry: str, count: int, hash_: str, now: datetime) -> None:
        """Signs this head and puts it there. Raises StorageError where that cannot be."""
        head = SignedHead(registry=registry, count=count, hash=hash_, utc=now_text(now))
        _write(self.place, json.dumps(seal(head, self.signer()).to_json(), indent=1).encode() + b"\n", f"head {count} {hash_[:12]}")
        reach("head.written")


def read_head(place: str) -> Envelope:
    """The signed head in a place, not yet checked. Raises StorageError where there is none, DocumentError for something else."""
    data = _read(place)
    if data is None:
        raise StorageError("there is no head", where=place, then="Give the file that the last move wrote.")
    return Envelope.parse(data, place)


def verify_head(envelope: Envelope, keys: Iterable[PublicKey], *, where: str) -> SignedHead:
    """The head, signed by one of these keys. Raises UnknownKey for another key, BadSignature for other bytes."""
    key = next((key for key in keys if key.id == envelope.key_id), None)
    if key is None:
        raise UnknownKey(
            f"the head is signed with key {envelope.key_id[:12]}, which is none of those that may",
            where=where,
            then="Give the public key that you trust with --key, and find out who wrote this head.",
        )
    envelope.verify(key)
    return envelope.read(SignedHead, where)


def _read(place: str) -> bytes | None:
    try:
        if "://" in place:
            with _remote(place, "rb") as stream:
                return bytes(stream.read(2 * LIMIT))
        with Path(place.removeprefix("git:")).open("rb") as stream:
            return stream.read(2 * LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"the head cannot be read ({error})", where=place, then="Can you reach that place?") from error


def _write(place: str, data: bytes, message: str) -> None:
    if "://" in place:
        try:
            with _remote(place, "wb") as stream:
                stream.write(data)
        except OSError as error:
            raise StorageError(f"the head cannot be written ({error})", where=place, then="Can you write to that place?") from error
        return
    path = Path(place.removeprefix("git:"))
    with replacing(path) as temporary:
        sweep(path.parent)  # nobody else would remove what a process that was killed left beside the head
        temporary.write_bytes(data)
    if place.startswith("git:"):
        for arguments in (("add", "--", path.name), ("commit", "--quiet", "-m", message, "--", path.name)):
            _git(path.parent, arguments)


def _git(folder: Path, arguments: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise MissingPackage("a head at git:FILE needs the program git", then="Install git, or give a plain file.") from error
    if done.returncode:
        reason = " ".join(f"{done.stderr} {done.stdout}".split())[-300:]
        raise StorageError(f"git {arguments[0]} failed ({reason})", where=str(folder), then="The head is written there; commit it by hand.")


def _remote(place: str, mode: str) -> Any:
    import fsspec

    try:
        return fsspec.open(place, mode).open()
    except ImportError as error:
        raise MissingPackage(
            f"{place.split('://', maxsplit=1)[0]}:// needs a package ({error})", then="Install it, or give another place."
        ) from error
    except ValueError as error:
        raise InputError(f"is no place that fsspec knows ({error})", where=place, then="Give a file, git:FILE or a URL.") from error
