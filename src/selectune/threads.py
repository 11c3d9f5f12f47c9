"""Work over a model's tensors on every core: hashing, packing and flipping bits let go of Python's lock."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["cores", "each"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use; 1 at least."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def each(job: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None = None) -> list[Result]:
    """What `job` makes of each item, in their order, on as many threads as there are cores, or as said.

    Where a job raises, those that have not begun are left out, those that have are waited for, and the first error in the items' order is
    raised. So is Ctrl-C: afterwards no job runs any more.
    """
    found: Sequence[Item] = list(items)
    count = min(threads or cores(), len(found))
    if count < 2:
        return [job(item) for item in found]
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(job, item) for item in found]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
