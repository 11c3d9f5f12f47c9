"""Files that are either whole or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from selectune.errors import StorageError

__all__ = ["TEMPORARY", "replacing"]

TEMPORARY = ".partial-"
"""How the name of an unfinished file begins; one that a crash left behind may be deleted."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving it is flushed to the disk and takes `path`'s place in one step.

    Whatever goes wrong inside, the temporary file is removed and an older file at `path` stays as it was. Raises StorageError for a full
    disk, a folder that is not there or cannot be written.
    """
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        # safetensors leaves its files readable by their owner alone; a registry is shared, so the folder's usual mode is put back.
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot be written ({error})", where=str(path), then="Free space on that disk, or choose a folder that you may write to."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
