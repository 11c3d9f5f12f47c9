"""Named byte strings side by side in one place, each written once: a local folder, or a prefix of a store that fsspec reaches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from selectune.delta.files import TEMPORARY, replacing, sweep, temporary_name
from selectune.errors import MissingPackage, NotYet, RegistryError, StorageError

__all__ = ["KNOWN", "FolderShelf", "ObjectShelf", "RemoteShelf", "Shelf"]

KNOWN = ("s3", "s3a", "memory")
"""Stores that can refuse to write what is there already, which a log needs."""
_EXISTS = ("PreconditionFailed", "412")
_BUSY = ("ConditionalRequestConflict", "409")
_memory = Lock()


class Shelf(Protocol):
    """Where an `objects.ObjectLog` keeps its events. Every method raises StorageError where the place cannot be used."""

    where: str

    def prepare(self) -> None:
        """Makes the place, where that is needed."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes what is not there yet, whole and lasting; False, and nothing is changed, where that name is taken."""

    def get(self, name: str, limit: int) -> bytes | None:
        """At most `limit` bytes from the beginning; None where that name is not there."""

    def sizes(self) -> dict[str, int]:
        """Every name, with its bytes."""


class ObjectShelf(Protocol):
    """Where objects are fetched from, a piece at a time. Every method raises StorageError where the place cannot be used."""

    where: str

    def get(self, name: str, limit: int, start: int = 0) -> bytes | None:
        """At most `limit` bytes from byte `start` on; None where that name is not there."""

    def size(self, name: str) -> int | None:
        """The bytes of one, or None where it is not there."""

    def modified(self, name: str) -> float | None:
        """When one was written, in seconds since 1970 by the store's clock, or None where it is not there."""

    def sizes(self) -> dict[str, int]:
        """Every name, with its bytes."""

    def delete(self, name: str) -> None:
        """Removes one; nothing happens where it is not there."""


class FolderShelf:
    """A local or shared folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def prepare(self) -> None:
        """Makes the folder, and removes what a process that is gone left unfinished in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
        except OSError as error:
            raise _unusable(error, self.where) from error

    def create(self, name: str, data: bytes) -> bool:
        """As `Shelf.create`; what is written is on the disk before it has its name."""
        whole = self.folder / temporary_name()
        with replacing(whole) as temporary:
            temporary.write_bytes(data)
        try:
            # Unlike a rename, a link never takes the place of what is there.
            os.link(whole, self.folder / name)
        except FileExistsError:
            return False
        except OSError as error:
            raise _unusable(error, self.where) from error
        finally:
            whole.unlink(missing_ok=True)
        return True

    def get(self, name: str, limit: int) -> bytes | None:
        """As `Shelf.get`."""
        try:
            with (self.folder / name).open("rb") as file:
                return file.read(limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(error, self.where) from error

    def sizes(self) -> dict[str, int]:
        """As `Shelf.sizes`; unfinished files are not among them."""
        try:
            entries = [entry for entry in os.scandir(self.folder) if not entry.name.startswith(TEMPORARY)]
            return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unusable(error, self.where) from error


class RemoteShelf:
    """A prefix of an object store: ``s3://bucket/prefix`` or, within one process, ``memory://prefix``."""

    def __init__(self, url: str) -> None:
        self.kind, _, rest = url.partition("://")
        if self.kind not in KNOWN:
            known = ", ".join(f"{kind}://" for kind in KNOWN)
            raise NotYet(
                f"a registry at {self.kind[:20]}://", then=f"Use a folder, {known} or postgresql+psycopg://host/database?blobs=FOLDER"
            )
        if any(character in rest for character in "@?#") or ".." in rest.split("/"):
            raise RegistryError(
                f"{self.kind}://{rest.rpartition('@')[2][:80]} is no plain address of a registry",
                then="Give s3://bucket/prefix; the key, the secret and the endpoint come from the environment (AWS_ENDPOINT_URL).",
            )
        self.where = url.rstrip("/")
        self.fs, self.root = _filesystem(self.where)
        # fsspec's store in memory looks and then writes; a real one does both in one step.
        self._alone: AbstractContextManager[Any] = _memory if self.kind == "memory" else nullcontext()

    def path(self, name: str) -> str:
        """A name's path as the store's driver takes it."""
        return f"{self.root}/{name}"

    def prepare(self) -> None:
        """Nothing: a store has no folders, and buckets are made by whoever pays for them."""

    def create(self, name: str, data: bytes) -> bool:
        """As `Shelf.create`."""
        for _ in range(8):
            try:
                with self.using("written"), self._alone:
                    self.fs.pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                return False
            except FileNotFoundError as error:
                raise StorageError("there is no such bucket", where=self.where, then="Make it, or give another.") from error
            except _Busy:
                continue
            else:
                return True
        raise StorageError("another writer was in the way, again and again", where=self.where, then="Try again.")

    def get(self, name: str, limit: int, start: int = 0) -> bytes | None:
        """As `Shelf.get`, from byte `start` on."""
        try:
            with self.using("read"):
                return bytes(self.fs.cat_file(self.path(name), start=start, end=start + limit))
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """The bytes of one, or None where it is not there."""
        try:
            with self.using("read"):
                return int(self.fs.info(self.path(name))["size"])
        except FileNotFoundError:
            return None

    def modified(self, name: str) -> float | None:
        """When one was written, in seconds since 1970 by the store's clock, or None where it is not there."""
        try:
            with self.using("read"):
                written: datetime = self.fs.modified(self.path(name))
                return written.timestamp()
        except FileNotFoundError:
            return None

    def sizes(self) -> dict[str, int]:
        """As `Shelf.sizes`."""
        try:
            with self.using("listed"):
                found = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        inside = f"{self.root}/"
        return {
            one["name"].removeprefix(inside): int(one["size"])
            for one in found
            if one["type"] == "file" and one["name"].startswith(inside) and one["name"] != inside
        }

    def delete(self, name: str) -> None:
        """Removes one; nothing happens where it is not there."""
        try:
            with self.using("removed"):
                self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    @contextmanager
    def using(self, done: str) -> Iterator[None]:
        """Makes errors of the store errors of ours. FileNotFoundError, FileExistsError and _Busy are for whoever calls."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, StorageError):
            raise
        except _failures(self.kind) as error:
            code = _code(error)
            if code in _EXISTS:
                raise FileExistsError(self.where) from error
            if code in _BUSY:
                raise _Busy from error
            raise StorageError(
                f"cannot be {done} ({type(error).__name__}: {str(error)[:200]})",
                where=self.where,
                then="Can you reach it, and may you use it? AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY say where and who.",
            ) from error


class _Busy(Exception):
    """Two wrote the same name in the same moment, and the store took neither's side."""


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        # A listing that is kept would hide what others have written since.
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise MissingPackage(f"{url.partition('://')[0]}:// needs the package s3fs", then="pip install 'selectune[s3]'") from error
    return fs, root.rstrip("/")


def _failures(kind: str) -> tuple[type[Exception], ...]:
    """What the driver of a store raises where the store, and not our code, is at fault."""
    if kind == "memory":
        return (OSError,)
    from botocore.exceptions import BotoCoreError, ClientError

    return (OSError, BotoCoreError, ClientError)


def _code(error: Exception) -> str:
    """The store's own word for an error, empty where there is none."""
    response = getattr(error.__cause__ or error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _unusable(error: OSError, where: str) -> StorageError:
    return StorageError(f"cannot be used ({error.strerror or error})", where=where, then="Choose a folder that you may write to.")
