"""Files that are either whole or not there."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

from selectune.errors import StorageError
from selectune.faults import reach

__all__ = ["TEMPORARY", "building", "discard", "ended", "flushed_digest", "process_name", "replacing", "sweep", "temporary_name"]

TEMPORARY = ".partial-"
"""How the name of an unfinished file begins; then come the machine, the process that writes it, and a part of its own."""
_LARGE = 1 << 20
"""Bytes of a file whose hashing takes longer than to start a thread."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving it is flushed to the disk and takes `path`'s place in one step.

    Whatever goes wrong inside, the temporary file is removed and an older file at `path` stays as it was. Raises StorageError for a full
    disk, a folder that is not there or cannot be written.
    """
    temporary = path.parent / temporary_name()
    try:
        # safetensors leaves its files readable by their owner alone; a registry is shared, so the folder's usual mode is put back.
        temporary.touch()
        mode = temporary.stat().st_mode
        reach("file.made")
        yield temporary
        reach("file.written")
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        reach("file.synced")
        temporary.replace(path)
        reach("file.renamed")
        _sync_folder(path.parent)
        reach("file.kept")
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot be written ({error})", where=str(path), then="Free space on that disk, or choose a folder that you may write to."
        ) from error
    finally:
        discard(temporary)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to fill; on leaving it is flushed to the disk and takes its place in one step.

    Whatever goes wrong inside, nothing is left. Raises StorageError for a folder that is there and not empty, and as `replacing` does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError("is there already and not empty", where=str(folder), then="Give a new folder.")
    folder = folder.absolute()
    partial = folder.parent / temporary_name()
    try:
        partial.mkdir(parents=True)
        yield partial
        for place, _, names in os.walk(partial):
            for name in names:
                with Path(place, name).open("rb") as file:
                    os.fsync(file.fileno())
            _sync_folder(Path(place))
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"cannot be written ({error.strerror})", where=str(folder), then="Free space, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flushed_digest(path: Path) -> str:
    """The sha256 of a file that was just written; a large one is flushed to the disk meanwhile, so that `replacing` need not wait for it.

    Raises OSError as `open` and `fsync` do.
    """
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        large = os.fstat(file.fileno()).st_size >= _LARGE
        flushed = pool.submit(os.fsync, file.fileno()) if large else None
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if flushed is not None:
            flushed.result()
    return found


def discard(temporary: Path) -> None:
    """Removes an unfinished file, if it is there and can be removed; `sweep` takes one that stays."""
    # A disk that is read-only refuses even what is not there, and what is to be told is why the file could not be written.
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def temporary_name() -> str:
    """A name for an unfinished file or folder; by it `sweep` can tell whether its writer still lives."""
    return f"{TEMPORARY}{process_name()}-{uuid.uuid4().hex[:16]}"


def process_name() -> str:
    """This process, by which others know it: its machine and its number there."""
    return f"{_machine()}-{os.getpid()}"


def ended(process: str) -> bool:
    """Whether a process, by its `process_name`, is known to be gone; of one of another machine nobody here knows."""
    return process.startswith(f"{_machine()}-") and not _lives(f"{TEMPORARY}{process}")


def sweep(folder: Path) -> list[Path]:
    """Deletes the unfinished files directly in a folder whose writer, a process of this machine, is gone; returns them.

    What another machine writes on a shared disk is left alone, and so is what a living process writes. A folder that is not there has none.
    """
    found = [path for path in folder.glob(f"{TEMPORARY}{_machine()}-*") if not _lives(path.name)]
    for path in found:
        _delete(path)
    return found


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _delete(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _lives(name: str) -> bool:
    number = name.removeprefix(TEMPORARY).split("-")[1]
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        return True
    return True


@cache
def _machine() -> str:
    """Eight hex digits for what numbers processes here: the machine since it was started, the container if that counts for itself."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(str(Path(path).readlink()) if Path(path).is_symlink() else Path(path).read_text())
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
