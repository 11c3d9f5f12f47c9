"""Freed memory is kept for the next step.

A step asks for the same hundreds of tensors as the one before it. glibc gives large ones back to the system at once, and the system
clears every page anew: on the embedded model that was 45,000 page faults and 8 % of a step's time. tcmalloc, where it was loaded in glibc's
place, keeps what is freed by itself, leaves fewer holes and is faster (docs/why/speed.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Allocator = Literal["glibc", "tcmalloc", "other"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_KEPT_AT_MOST = (1 << 31) - 1
_LARGEST_BLOCK = 32 << 20
"""glibc's own upper limit for the second threshold; larger blocks always go back."""
_MARKS: tuple[tuple[str, Allocator], ...] = (
    ("MallocExtension_ReleaseFreeMemory", "tcmalloc"),
    ("mallctl", "other"),
    ("gnu_get_libc_version", "glibc"),
)
"""Functions that only one allocator has, a preloaded one before the C library's; ``mallctl`` is jemalloc's."""


def allocator() -> Allocator:
    """Whose ``malloc`` this process uses."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return "other"
    for mark, name in _MARKS:
        try:
            getattr(library, mark)
        except AttributeError:
            continue
        return name
    return "other"


def give_back() -> None:
    """Returns freed memory to the system. Does nothing for an allocator that it does not know."""
    match allocator():
        case "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        case "tcmalloc":
            ctypes.CDLL(None).MallocExtension_ReleaseFreeMemory()
        case "other":
            pass


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, memory that was freed stays with the process; afterwards it goes back. Does nothing for an allocator it does not know."""
    mallopt = ctypes.CDLL(None).mallopt if allocator() == "glibc" else lambda *_: None
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_AT_MOST)
    try:
        yield
    finally:
        # What glibc's own adaptation arrives at once a block of the largest size was freed.
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_BLOCK)
        give_back()
