"""Objects by the hash of their bytes in a store that fsspec reaches: ``PREFIX/sha256/<64 hex digits>``."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from selectune.errors import Oversize, RegistryError, StorageError
from selectune.faults import reach
from selectune.registry.blobs import check_digest, damaged, is_digest, missing, opened
from selectune.registry.multipart import Outline, outline, upload
from selectune.registry.partials import resuming
from selectune.registry.shelves import ObjectShelf, RemoteShelf
from selectune.registry.store import OBJECT_LIMIT, silent

__all__ = ["FetchedBlobs", "RemoteBlobs"]

_CHUNK = 8 << 20
_AHEAD = 4
"""Pieces of a download that are asked for at once."""
_CACHE = 16 << 30
"""Bytes of fetched objects that one process keeps on its disk."""


class _Cache:
    """Objects that were fetched, in a folder of this process; the ones that were used longest ago make room."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock = Lock()

    def path(self, where: str, name: str) -> Path:
        """Where an object of a store lies once it was fetched."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="selectune-"))
                atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}-{name}"

    def make_room(self, size: int) -> None:
        """Removes objects until `size` more bytes are within the limit. Raises StorageError where the disk has no room for them."""
        folder = self.path("", "").parent
        with self._lock:
            kept = sorted((path.stat().st_atime, path.stat().st_size, path) for path in folder.iterdir())
            over = sum(bytes_ for _, bytes_, _ in kept) + size - _CACHE
            for _, bytes_, path in kept:
                if over <= 0:
                    break
                path.unlink(missing_ok=True)
                over -= bytes_
        free = shutil.disk_usage(folder).free
        if size > free:
            raise StorageError(
                f"an object of {size} bytes does not fit into {free}", where=str(folder), then="Free space there, or set TMPDIR."
            )


_cache = _Cache()


class FetchedBlobs:
    """Objects of another machine: what is fetched is hashed as it comes and kept until the process ends. A `store.Blobs`, but for `put`.

    A download that breaks off goes on where it was, in this process or in a later one.
    """

    def __init__(self, shelf: ObjectShelf) -> None:
        self._shelf = shelf

    def read(self, name: str) -> bytes:
        """As `store.Blobs.read`."""
        with self.open(name) as file:
            return file.read()

    @contextmanager
    def open(self, name: str, *, moved: Callable[[int], None] = silent) -> Iterator[BufferedReader]:
        """As `store.Blobs.open`. Raises Oversize for an object of more than 256 GiB."""
        with self._opened(name, moved) as file:
            # Hashed once more where it was fetched earlier: others may have been at the file since.
            if hashlib.file_digest(file, "sha256").hexdigest() != name:
                _cache.path(self._shelf.where, name).unlink(missing_ok=True)
                raise damaged(name, str(file.name))
            file.seek(0)
            yield file

    def _opened(self, name: str, moved: Callable[[int], None]) -> BufferedReader:
        while True:
            try:
                return self.path(name, moved=moved).open("rb")
            except FileNotFoundError:  # it has just made room for another one
                continue

    def path(self, name: str, *, moved: Callable[[int], None] = silent) -> Path:
        """As `store.Blobs.path`: where the object was fetched to."""
        kept = _cache.path(self._shelf.where, check_digest(name))
        if not kept.is_file():
            size = self.size(name)
            if size > OBJECT_LIMIT:
                raise Oversize(f"object {name[:12]} has {size} bytes, over the limit of {OBJECT_LIMIT}", where=self._shelf.where)
            _cache.make_room(size)
            self._fetch(name, size, kept, moved)
        return kept

    def _fetch(self, name: str, size: int, target: Path, moved: Callable[[int], None]) -> None:
        try:
            with resuming(target.name) as path:
                if not self._write(name, size, path, moved):
                    os.truncate(path, 0)
                    raise damaged(name, self._shelf.where)
                path.replace(target)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot be written ({error})", where=str(target.parent), then="Free space there, or set TMPDIR.") from error

    def _write(self, name: str, size: int, path: Path, moved: Callable[[int], None]) -> bool:
        """Writes what is missing of an object to the end of a file; whether the whole is that object.

        Where it is not, and the file had bytes before, it is written anew from the first byte: those were none of the object's.
        """
        hasher = hashlib.sha256()
        with path.open("r+b") as file:
            while data := file.read(_CHUNK):
                hasher.update(data)
                moved(len(data))
            there = file.tell()
            for data in self._pieces(name, size, there):
                hasher.update(data)
                file.write(data)
                moved(len(data))
        if hasher.hexdigest() == name or not there:
            return hasher.hexdigest() == name
        os.truncate(path, 0)
        return self._write(name, size, path, moved)

    def _pieces(self, name: str, size: int, start: int = 0) -> Iterator[bytes]:
        """An object's bytes in order from byte `start` on, a few pieces asked for ahead; no more than `size` altogether."""

        def piece(start: int) -> bytes:
            length = min(_CHUNK, size - start)
            data = self._shelf.get(name, length, start)
            if data is None:
                raise missing(name, self._shelf.where)
            if len(data) != length:
                raise damaged(name, self._shelf.where)
            return data

        if size - start <= _CHUNK:
            if start < size:
                yield piece(start)
            return
        with ThreadPoolExecutor(_AHEAD) as threads:
            asked: deque[Future[bytes]] = deque()
            for begin in range(start, size, _CHUNK):
                asked.append(threads.submit(piece, begin))
                if len(asked) > _AHEAD:
                    yield asked.popleft().result()
            while asked:
                yield asked.popleft().result()

    def size(self, name: str) -> int:
        """As `store.Blobs.size`."""
        found = self._shelf.size(check_digest(name))
        if found is None:
            raise missing(name, self._shelf.where)
        return found

    def has(self, name: str) -> bool:
        """As `store.Blobs.has`."""
        return self._shelf.size(check_digest(name)) is not None

    def modified(self, name: str) -> float:
        """As `store.Blobs.modified`."""
        found = self._shelf.modified(check_digest(name))
        if found is None:
            raise missing(name, self._shelf.where)
        return found

    def fault(self, name: str) -> str | None:
        """As `store.Blobs.fault`; the object is fetched, and not kept."""
        size = self._shelf.size(name) if is_digest(name) else None
        if size is None:
            return "missing"
        hasher = hashlib.sha256()
        try:
            for data in self._pieces(name, size):
                hasher.update(data)
        except RegistryError:
            return "damaged"
        return None if hasher.hexdigest() == name else "damaged"

    def names(self) -> list[str]:
        """As `store.Blobs.names`."""
        return sorted(self._shelf.sizes())

    def delete(self, name: str) -> None:
        """As `store.Blobs.delete`."""
        self._shelf.delete(check_digest(name))
        _cache.path(self._shelf.where, name).unlink(missing_ok=True)


class RemoteBlobs(FetchedBlobs):
    """A prefix of an object store. A `store.Blobs`."""

    def __init__(self, url: str) -> None:
        self._store = RemoteShelf(f"{url.rstrip('/')}/sha256")
        super().__init__(self._store)

    def create(self) -> None:
        """Nothing: a store has no folders. Uploads that nobody finished are the store's own to remove; a bucket has a rule for that."""

    def together(self) -> AbstractContextManager[None]:
        """As `store.Blobs.together`: each lasts as soon as it is put."""
        return nullcontext()

    def put(self, source: Path | bytes, *, moved: Callable[[int], None] = silent) -> str:
        """As `store.Blobs.put`. Large files go in parts, and go on where an earlier upload was interrupted."""
        with opened(source) as file:
            about = outline(file, len(source) if isinstance(source, bytes) else os.fstat(file.fileno()).st_size)
            there = self._store.size(about.sha256)
            if there is None:
                self._send(file, about, moved)
            elif there != about.size:
                raise damaged(about.sha256, self._store.where)
        reach("blob.written")
        return about.sha256

    def _send(self, file: BinaryIO, about: Outline, moved: Callable[[int], None]) -> None:
        alone = Lock()

        def read(start: int, length: int) -> bytes:
            with alone:
                file.seek(start)
                return file.read(length)

        if len(about.parts) > 1 and self._store.kind != "memory":
            try:
                with self._store.using("written"):
                    upload(self._store.fs, self._store.path(about.sha256), read, about, moved)
            except FileExistsError:
                return
            except FileNotFoundError as error:
                raise StorageError("there is no such bucket", where=self._store.where, then="Make it, or give another.") from error
            return
        data = read(0, about.size)
        if hashlib.sha256(data).hexdigest() != about.sha256:
            raise StorageError("changed while it was read", where=self._store.where, then="Leave the file alone until it is stored.")
        self._store.create(about.sha256, data)
        moved(about.size)
