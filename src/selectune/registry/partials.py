"""Downloads that were broken off: what had arrived lies in a folder of this user's, and the next download of that object goes on with it.

Also in another process, and also where the first one was killed. Nothing that lies there is believed: an object is hashed from its first
byte to its last.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selectune.delta.files import ended, process_name
from selectune.errors import StorageError

__all__ = ["resuming"]

_LEFT = "left"
"""Who writes a file that nobody writes any more."""
_SECONDS = 7 * 24 * 3600
"""How long one is kept that nobody asks for."""


@contextmanager
def resuming(key: str) -> Iterator[Path]:
    """A file of this download alone, with what an earlier one of the same key left; whoever is done renames it.

    What is in it when the block is left by an error stays for the next one; an empty file does not. Raises StorageError where the folder
    for temporary files cannot be used.
    """
    folder = _folder()
    mine = folder / f"{key}.{process_name()}-{uuid.uuid4().hex[:16]}"
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # somebody else took it
            if time.time() - path.stat().st_mtime > _SECONDS:
                path.unlink()
            elif path.stem == key and not mine.exists() and _is_free(path):
                path.rename(mine)
    mine.touch()
    try:
        yield mine
    except BaseException:
        with suppress(OSError):
            if mine.stat().st_size:
                mine.replace(folder / f"{key}.{_LEFT}")
        raise
    finally:
        mine.unlink(missing_ok=True)


def _is_free(path: Path) -> bool:
    writer = path.suffix.removeprefix(".")
    return writer == _LEFT or ended(writer.rpartition("-")[0])


def _folder() -> Path:
    """Where they lie, which nobody else may read or write. Raises StorageError where that cannot be."""
    folder = Path(tempfile.gettempdir()) / f"selectune-partial-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(f"cannot be made ({error.strerror})", where=str(folder), then="Set TMPDIR to a folder of yours.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StorageError("is not a folder of yours alone", where=str(folder), then="Remove it, or set TMPDIR to a folder of yours.")
    return folder
