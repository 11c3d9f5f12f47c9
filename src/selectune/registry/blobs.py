"""Objects by the hash of their bytes, in a local folder: ``blobs/sha256/<64 hex digits>``, the blob folder of an OCI image layout."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from selectune.delta.files import replacing, sweep
from selectune.errors import RegistryError, StorageError
from selectune.hashing import file_digest

__all__ = ["Blobs"]

_HASH = re.compile(r"[0-9a-f]{64}\Z")


class Blobs:
    """A folder of files named by their sha256; a file never changes once it is there."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "sha256"

    def create(self) -> None:
        """Makes the folder, and removes what a process that is gone left unfinished in it. Raises StorageError where that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
        except OSError as error:
            raise StorageError(
                f"cannot be made ({error.strerror})", where=str(self.folder), then="Choose a folder that you may write to."
            ) from error

    def put(self, source: Path | bytes) -> str:
        """Copies a file (or bytes) in and returns the sha256 of what was copied; flushed to the disk before it has its name.

        A file of that name that is damaged is replaced. Raises StorageError for a source that cannot be read, and for a full disk.
        """
        try:
            data = source if isinstance(source, bytes) else source.read_bytes()
        except OSError as error:
            raise StorageError(f"cannot be read ({error.strerror})", where=str(source), then="Give a file that exists.") from error
        # Hashed and written from the same bytes in memory: nobody can change the file in between.
        name = hashlib.sha256(data).hexdigest()
        if self.fault(name) is not None:
            with replacing(self.folder / name) as temporary:
                temporary.write_bytes(data)
        return name

    def path(self, name: str) -> Path:
        """Where an object lies. Raises RegistryError for what is no sha256, and for an object that is not there."""
        if not _HASH.match(name):
            raise RegistryError(f"{name[:80]!r} is no sha256", then="An object's name has 64 hex digits.")
        path = self.folder / name
        if not path.is_file():
            raise RegistryError(f"object {name[:12]} is missing", where=str(self.folder), then="See what else is: selectune verify")
        return path

    def read(self, name: str) -> bytes:
        """An object's bytes, checked: the very bytes that were hashed. Raises RegistryError for a damaged or missing one."""
        data = self.path(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise RegistryError(f"object {name[:12]} is damaged", where=str(self.folder), then="See what else is: selectune verify")
        return data

    def fault(self, name: str) -> str | None:
        """None for an object that is there and whole, else "missing" or "damaged"."""
        path = self.folder / name
        if not path.is_file():
            return "missing"
        return None if file_digest(path) == name else "damaged"

    def names(self) -> list[str]:
        """Every file of the folder, objects and what a crash left, sorted."""
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
