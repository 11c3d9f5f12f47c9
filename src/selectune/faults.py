"""Named points in what writes to the disk, at which a test can kill the process."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter

from selectune.errors import InputError

__all__ = ["KILL_AT", "passed", "reach"]

KILL_AT = "SELECTUNE_KILL_AT"
"""The environment variable that says where: ``event.committed:3``, at the third passing of that point."""
_FORM = re.compile(r"[a-z]+\.[a-z]+:[1-9][0-9]*", flags=re.ASCII)

passed: Counter[str] = Counter()
"""How often each point was passed since the variable is set."""


def reach(point: str) -> None:
    """Ends the process by SIGKILL if this is where `SELECTUNE_KILL_AT` says; without it nothing happens.

    SIGKILL, because nothing may run afterwards: no `finally`, no exit handler, no flush of a buffer. Raises InputError for a value that
    names no passing of a point, since a test that sets it would kill nothing.
    """
    wanted = os.environ.get(KILL_AT)
    if wanted is None:
        return
    if not _FORM.fullmatch(wanted):
        raise InputError(f"{wanted[:80]!r} is no passing of a point", where=KILL_AT, then="Write the point and a number: event.committed:3")
    passed[point] += 1
    if wanted == f"{point}:{passed[point]}":
        os.kill(os.getpid(), signal.SIGKILL)
