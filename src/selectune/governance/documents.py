"""Signed documents: canonical JSON inside a DSSE envelope, read as if an enemy had written it.

What is signed are the very bytes that are kept, behind the type of the document, so a signature of one kind of thing never passes for
another's.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from selectune.errors import DocumentError, InputError
from selectune.governance.keys import PrivateKey, PublicKey
from selectune.hashing import canonical, parse_json

__all__ = ["Digest", "Document", "Envelope", "Printed", "Utc", "at", "now_text", "pae", "seal"]

LIMIT = 1 << 20
"""The most bytes that a signed document may have."""
_PREFIX = "application/vnd.selectune."
_UTC = "%Y-%m-%dT%H:%M:%SZ"


def _printable(text: str) -> str:
    # A name is printed in terminals and reports: nothing in it may move a cursor or turn the direction of writing.
    if not text.isprintable() or text != text.strip() or not text:
        raise ValueError("must be printable text without spaces at its ends")
    return text


def _is_utc(text: str) -> str:
    at(text)
    return text


def at(text: str) -> datetime:
    """The time that ``2026-11-24T13:05:00Z`` tells. Raises ValueError for another form."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text, flags=re.ASCII):
        raise ValueError("must be a time such as 2026-11-24T13:05:00Z")
    return datetime.strptime(text, _UTC).replace(tzinfo=UTC)


def now_text(now: datetime) -> str:
    """A time as documents and events write it."""
    return now.astimezone(UTC).strftime(_UTC)


Printed = Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)]
Utc = Annotated[str, AfterValidator(_is_utc)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Document(BaseModel):
    """A document that can be signed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: ClassVar[str] = ""
    """The part of its payload type that names it."""

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """The document in JSON text. Raises DocumentError, naming every fault."""
        try:
            parse_json(data, limit=LIMIT)
            return cls.model_validate_json(data)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'document'}: {fault['msg']}" for fault in error.errors()[:10])
            raise DocumentError(faults[:1000], where=where, then="See docs/reference/signed-formats.md for what it holds.") from error
        except InputError as error:
            raise DocumentError(error.what, where=where, then="See docs/reference/signed-formats.md for what it holds.") from error

    def to_bytes(self) -> bytes:
        """Its canonical JSON: what is signed."""
        return canonical(self.model_dump(mode="json"))


D = TypeVar("D", bound=Document)


class _Signature(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keyid: Digest
    sig: Annotated[str, StringConstraints(max_length=1024)]


class _Packed(BaseModel):
    """An envelope as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    payload: str
    payloadType: str  # noqa: N815 - DSSE's spelling
    signatures: tuple[_Signature]


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """A signed document, not yet checked."""

    payload: bytes
    payload_type: str
    key_id: str
    """Which key says that it signed; nothing is true of it before `verify`."""
    signature: bytes

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """Reads DSSE with one signature. Raises DocumentError for anything else."""
        try:
            parse_json(data, limit=2 * LIMIT)
            packed = _Packed.model_validate_json(data)
            (one,) = packed.signatures
            return cls(
                payload=base64.b64decode(packed.payload, validate=True),
                payload_type=packed.payloadType,
                key_id=one.keyid,
                signature=base64.b64decode(one.sig, validate=True),
            )
        except (ValidationError, InputError, binascii.Error, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DocumentError(f"is no signed document ({reason})", where=where, then="Give the file as selectune wrote it.") from error

    def to_json(self) -> dict[str, Any]:
        """DSSE, as it is kept in files and events."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [{"keyid": self.key_id, "sig": base64.b64encode(self.signature).decode()}],
        }

    def verify(self, key: PublicKey) -> None:
        """Raises BadSignature where `key` did not sign this payload as this type."""
        key.verify(pae(self.payload_type, self.payload), self.signature)

    def read(self, kind: type[D], where: str) -> D:
        """The document inside. Raises DocumentError for one of another type, and for text that is not canonical."""
        if self.payload_type != payload_type(kind):
            raise DocumentError(f"is {self.payload_type[:80]!r}, not {payload_type(kind)!r}", where=where, then="Give the right file.")
        found = kind.parse(self.payload, where)
        if found.to_bytes() != self.payload:
            raise DocumentError("its text is not canonical JSON", where=where, then="Sign it with selectune.")
        return found


def payload_type(kind: type[Document]) -> str:
    """What is signed in front of a document's bytes."""
    return f"{_PREFIX}{kind.kind}+json"


def pae(kind: str, payload: bytes) -> bytes:
    """The bytes that DSSE signs. Source: DSSE v1.0.0, protocol.md, pre-authentication encoding."""
    return b" ".join([b"DSSEv1", str(len(kind.encode())).encode(), kind.encode(), str(len(payload)).encode(), payload])


def seal(document: Document, key: PrivateKey) -> Envelope:
    """The document, signed."""
    payload, kind = document.to_bytes(), payload_type(type(document))
    return Envelope(payload=payload, payload_type=kind, key_id=key.public.id, signature=key.sign(pae(kind, payload)))


def packed(body: Mapping[str, Any], where: str) -> Envelope:
    """The envelope that an event's body holds under "signed". Raises DocumentError where there is none."""
    return Envelope.parse(canonical(body.get("signed")), where)
