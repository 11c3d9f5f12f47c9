"""Keys: private ones in files of their owner, public ones as text; what they sign, and whether a signature fits.

The id of a key is the sha256 of its public half as PEM, which is also what the bundles of OpenSSF model signing call the hint.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selectune.delta.files import temporary_name
from selectune.errors import BadSignature, KeyFileError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

__all__ = ["Kind", "PrivateKey", "PublicKey", "key_folder", "new_key", "public_path", "read_private", "read_public"]

Kind = Literal["ed25519", "p256", "p384", "p521"]
Passphrase = Callable[[Path], bytes]
"""Asked for the passphrase of a key file, only if it has one."""
_CURVES: dict[str, Kind] = {"secp256r1": "p256", "secp384r1": "p384", "secp521r1": "p521"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_LIMIT = 1 << 16
_OTHERS = 0o077


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """What checks a signature."""

    kind: Kind
    pem: str
    """As `cryptography` writes it: SubjectPublicKeyInfo."""

    @cached_property
    def id(self) -> str:
        """sha256 of the PEM text, 64 hex digits."""
        return hashlib.sha256(self.pem.encode()).hexdigest()

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises BadSignature where this key did not sign these bytes."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        key = _public(self.pem.encode(), self.id[:12])
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, message, _ecdsa(self.kind))
            else:
                key.verify(signature, message)
        except InvalidSignature as error:
            raise BadSignature(
                "the signature does not fit the bytes", where=f"key {self.id[:12]}", then="Trust nothing in it; ask who signed it."
            ) from error


@dataclass(frozen=True, kw_only=True)
class PrivateKey:
    """What signs."""

    public: PublicKey
    _key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.kind} {self.public.id[:12]})"

    def sign(self, message: bytes) -> bytes:
        """The signature of these bytes: 64 bytes of Ed25519, or ECDSA's as DER over the hash of the curve's size."""
        from cryptography.hazmat.primitives.asymmetric import ec

        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(message, _ecdsa(self.public.kind))
        return self._key.sign(message)


def key_folder() -> Path:
    """Where keys are by their names: ``SELECTUNE_KEYS``, else ``~/.config/selectune/keys``."""
    named = os.environ.get("SELECTUNE_KEYS")
    return Path(named) if named else Path.home() / ".config" / "selectune" / "keys"


def public_path(private: Path) -> Path:
    """Where the public half lies beside a private key's file."""
    return private.with_suffix(".pub.pem")


def new_key(name: str, folder: Path, kind: Kind = "ed25519", *, passphrase: bytes | None) -> PrivateKey:
    """Makes a key: ``NAME.pem``, which only its owner may read, encrypted with the passphrase if one is given, and ``NAME.pub.pem``.

    Raises KeyFileError for a name that is no plain word, a file that is there already, a folder that cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if not _NAME.match(name):
        raise KeyFileError(f"{name[:80]!r} cannot be the name of a key", then="Use letters, digits, `_`, `.` and `-`, at most 64.")
    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
    key = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(curves[kind])
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
    made = PrivateKey(public=_described(key.public_key()), _key=key)
    path = folder / f"{name}.pem"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_once(path, private, 0o600)
        _write_once(public_path(path), made.public.pem.encode(), 0o644)
    except FileExistsError as error:
        raise KeyFileError(
            "is there already", where=str(error.filename2 or path), then="Choose another name: a key is never replaced."
        ) from error
    except OSError as error:
        raise KeyFileError(
            f"cannot be written ({error.strerror})", where=str(path), then="Choose another folder: SELECTUNE_KEYS."
        ) from error
    return made


def read_private(path: Path, passphrase: Passphrase) -> PrivateKey:
    """The private key in a PEM file. Raises KeyFileError for a file that others may read, a wrong passphrase, and what is no such key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    data = _read(path)
    if os.name == "posix" and (mode := path.stat().st_mode & 0o777) & _OTHERS:
        raise KeyFileError(f"others may read it (mode {mode:o})", where=str(path), then=f"chmod 600 {path}")
    secret = passphrase(path) if b"ENCRYPTED" in data else None
    try:
        key = serialization.load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "the passphrase is wrong, or the file is damaged" if secret is not None else "is no private key in PEM"
        raise KeyFileError(what, where=str(path), then="See the keys that there are: selectune keys list") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise KeyFileError(f"holds a {type(key).__name__}", where=str(path), then="Use Ed25519, or ECDSA on P-256, P-384 or P-521.")
    return PrivateKey(public=_described(key.public_key(), str(path)), _key=key)


def read_public(source: Path | str, *, where: str = "key") -> PublicKey:
    """The public key in a PEM file, or in PEM text. Raises KeyFileError for anything else."""
    data, where = (_read(source), str(source)) if isinstance(source, Path) else (source.encode(), where)
    return _described(_public(data, where), where)


def _public(data: bytes, where: str) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError("is no public key in PEM", where=where, then="Give the file that ends in .pub.pem.") from error
    if not isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey):
        raise KeyFileError(f"holds a {type(key).__name__}", where=where, then="Use Ed25519, or ECDSA on P-256, P-384 or P-521.")
    return key


def _described(key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey, where: str = "key") -> PublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return PublicKey(kind="ed25519", pem=pem)
    if key.curve.name not in _CURVES:
        raise KeyFileError(f"is on the curve {key.curve.name}", where=where, then="Use Ed25519, or ECDSA on P-256, P-384 or P-521.")
    return PublicKey(kind=_CURVES[key.curve.name], pem=pem)


def _ecdsa(kind: Kind) -> ec.ECDSA:
    """With the hash that Sigstore's specification gives each curve."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    by_kind = {"p256": hashes.SHA256(), "p384": hashes.SHA384(), "p521": hashes.SHA512()}
    return ec.ECDSA(by_kind[kind])


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LIMIT + 1)
    except OSError as error:
        raise KeyFileError(
            f"cannot be read ({error.strerror})", where=str(path), then="See the keys that there are: selectune keys list"
        ) from error
    if len(data) > _LIMIT:
        raise KeyFileError(f"has more than {_LIMIT} bytes", where=str(path), then="That is no key.")
    return data


def _write_once(path: Path, data: bytes, mode: int) -> None:
    """A file that nobody else could read at any moment, whole or not there, and never in the place of another."""
    temporary = path.parent / temporary_name()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink()
