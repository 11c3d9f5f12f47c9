"""Registries as the environment says: with a signed head of the log in a second place, and keys by their names."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from selectune.errors import InputError, KeyFileError
from selectune.governance import PrivateKey, Witness, key_folder, public_path, read_private, read_public
from selectune.registry import Registry

__all__ = ["HEAD", "HEAD_KEY", "PASSPHRASE", "ask_passphrase", "find_key", "find_public", "open_key", "open_registry", "witness"]

HEAD = "SELECTUNE_HEAD"
"""Where the signed head of the log is kept: a file, ``git:FILE``, or a URL."""
HEAD_KEY = "SELECTUNE_HEAD_KEY"
"""The key that signs heads, by its name or its path; a program that only loads needs its public half alone."""
PASSPHRASE = "SELECTUNE_PASSPHRASE"
"""The passphrase of key files, where nobody can be asked."""


def open_registry(url: str, *, signing: bool = False, key: str | None = None) -> Registry:
    """The registry, with the witness that the environment names, and moves signed by the `key` of this name or path.

    Raises as `Registry.open`, `witness` and `open_key`.
    """
    return Registry.open(url, witness=witness(signing=signing), signer=open_key(key) if key else None)


def witness(*, signing: bool) -> Witness | None:
    """Who keeps heads, as ``SELECTUNE_HEAD`` and ``SELECTUNE_HEAD_KEY`` say; where nothing is signed the key's public half is enough.

    Raises InputError where one of the two is missing, KeyFileError for a key that cannot be read.
    """
    place, key = os.environ.get(HEAD), os.environ.get(HEAD_KEY)
    if place is None and key is None:
        return None
    if not place or not key:
        raise InputError(f"{HEAD if not place else HEAD_KEY} is not set", where="environment", then="Set both of them, or neither.")
    return Witness(place=place, key=open_key(key) if signing else read_public(find_public(key)))


def open_key(name: str) -> PrivateKey:
    """A private key by its name in the folder of keys, or by its path; asks for its passphrase. Raises KeyFileError."""
    return read_private(find_key(name), ask_passphrase)


def find_key(name: str) -> Path:
    """A private key's file by the name of the key, or by its path."""
    return Path(name) if "/" in name or name.endswith(".pem") else key_folder() / f"{name}.pem"


def find_public(name: str) -> Path:
    """The file of a key's public half, by the name of the key or by either file's path."""
    return Path(name) if name.endswith(".pub.pem") else public_path(find_key(name))


def ask_passphrase(path: Path) -> bytes:
    """The passphrase of a key file, from ``SELECTUNE_PASSPHRASE`` or the terminal. Raises KeyFileError where there is neither."""
    known = os.environ.get(PASSPHRASE)
    if known is not None:
        return known.encode()
    if not sys.stdin.isatty():
        raise KeyFileError("has a passphrase, and there is no terminal to ask on", where=str(path), then=f"Set {PASSPHRASE}.")
    return getpass.getpass(f"Passphrase of {path}: ").encode()
