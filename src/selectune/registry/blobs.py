"""Objects by the hash of their bytes, in a local folder: ``blobs/sha256/<64 hex digits>``, the blob folder of an OCI image layout."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path

from selectune.delta.files import TEMPORARY, discard, flushed_digest, replacing, sweep, temporary_name
from selectune.errors import ObjectDamaged, ObjectMissing, RegistryError, StorageError
from selectune.faults import reach
from selectune.hashing import file_digest
from selectune.registry.store import silent

__all__ = ["FolderBlobs", "check_digest", "damaged", "is_digest", "missing", "opened"]

_HASH = re.compile(r"[0-9a-f]{64}\Z")
_CHUNK = 1 << 20


class FolderBlobs:
    """A folder of files named by their sha256; a file never changes once it is there. A `store.Blobs`."""

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

    def put(self, source: Path | bytes, *, moved: Callable[[int], None] = silent) -> str:
        """Copies a file (or bytes) in and returns the sha256 of what was copied; flushed to the disk before it has its name.

        A file of that name that is damaged is replaced. Raises StorageError for a source that cannot be read, and for a full disk.
        """
        copy = self.folder / temporary_name()
        try:
            _copy(source, copy, moved)
            # Of the copy, which nobody else knows: the source may be another by now.
            name = flushed_digest(copy)
            reach("blob.copied")
            if self.fault(name) is not None:
                with replacing(self.folder / name) as temporary:
                    copy.replace(temporary)
            reach("blob.written")
        except OSError as error:
            raise _unwritten(error, self.folder) from error
        finally:
            discard(copy)
        return name

    def together(self) -> AbstractContextManager[None]:
        """As `store.Blobs.together`: each lasts as soon as it is put."""
        return nullcontext()

    def path(self, name: str) -> Path:
        """Where an object lies; it is not hashed. Raises RegistryError for what is no sha256, and for an object that is not there."""
        path = self.folder / check_digest(name)
        if not path.is_file():
            raise missing(name, str(self.folder))
        return path

    def read(self, name: str) -> bytes:
        """An object's bytes, checked: the very bytes that were hashed. Raises RegistryError for a damaged or missing one."""
        data = self.path(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise damaged(name, str(self.folder))
        return data

    @contextmanager
    def open(self, name: str, *, moved: Callable[[int], None] = silent) -> Iterator[BufferedReader]:
        """An object's file, hashed through the descriptor that is given out. Raises RegistryError for a damaged or missing one."""
        moved(self.size(name))
        with self.path(name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != name:
                raise damaged(name, str(self.folder))
            file.seek(0)
            yield file

    def size(self, name: str) -> int:
        """An object's bytes. Raises RegistryError for a missing one."""
        return self.path(name).stat().st_size

    def has(self, name: str) -> bool:
        """Whether a file of that name is there; it is not hashed."""
        return (self.folder / check_digest(name)).is_file()

    def modified(self, name: str) -> float:
        """When a file of the folder was last written, in seconds since 1970. Raises RegistryError for what is not there."""
        try:
            return (self.folder / _removable(name)).stat().st_mtime
        except FileNotFoundError as error:
            raise missing(name, str(self.folder)) from error

    def fault(self, name: str) -> str | None:
        """None for an object that is there and whole, else "missing" or "damaged"."""
        path = self.folder / name
        if not is_digest(name) or not path.is_file():
            return "missing"
        return None if file_digest(path) == name else "damaged"

    def names(self) -> list[str]:
        """Every file of the folder, objects and what a crash left, sorted."""
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def delete(self, name: str) -> None:
        """Removes an object or what a crash left; nothing happens where it is not there. Raises StorageError where it cannot be removed."""
        try:
            (self.folder / _removable(name)).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot be removed ({error.strerror})", where=str(self.folder / name), then="May you write there?"
            ) from error


def is_digest(name: str) -> bool:
    """Whether this is a sha256 as it is written here."""
    return _HASH.match(name) is not None


def _removable(name: str) -> str:
    return name if name.startswith(TEMPORARY) and "/" not in name else check_digest(name)


def check_digest(name: str) -> str:
    """The name itself. Raises RegistryError for what is no sha256, before anything makes a path of it."""
    if not is_digest(name):
        raise RegistryError(f"{name[:80]!r} is no sha256", then="An object's name has 64 hex digits.")
    return name


def missing(name: str, where: str) -> ObjectMissing:
    """The error for an object that is not there."""
    return ObjectMissing(f"object {name[:12]} is missing", where=where, then="See what else is: selectune verify")


def damaged(name: str, where: str) -> ObjectDamaged:
    """The error for an object whose bytes are others."""
    return ObjectDamaged(f"object {name[:12]} is damaged", where=where, then="See what else is: selectune verify")


def _copy(source: Path | bytes, target: Path, moved: Callable[[int], None]) -> None:
    """Writes the source to `target`. Raises StorageError for a source that cannot be read."""
    with opened(source) as stream, target.open("wb") as file:
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
            reach("blob.chunk")
            moved(len(chunk))


def opened(source: Path | bytes) -> io.BufferedReader | io.BytesIO:
    """A file, or bytes as one. Raises StorageError for a file that cannot be read."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", where=str(source), then="Give a file that exists.") from error


def _unwritten(error: OSError, folder: Path) -> StorageError:
    if isinstance(error, StorageError):
        return error
    return StorageError(
        f"cannot be written ({error})", where=str(folder), then="Free space on that disk, or choose a folder that you may write to."
    )
