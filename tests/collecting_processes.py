"""One of several processes that add to a registry and collect from it at once.

python tests/collecting_processes.py add|collect URL DELTA ROUNDS ADDERS

Who adds does so twice in each round: an update that was due yesterday, and one that stays and has the same file attached. Who collects does
so until everybody has added everything. Prints the ids of the updates that stay, and how many were collected.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selectune.registry import Registry, Update
from selectune.registry.blobs import FolderBlobs
from selectune.registry.collecting import Keep
from selectune.registry.remote import FetchedBlobs

YESTERDAY = datetime(2026, 6, 1, 23, 0, tzinfo=UTC)
TODAY = datetime(2026, 6, 2, 1, 0, tzinfo=UTC)
NOW = Keep(days=0, candidate_days=0)


def slowed(delete: Callable[..., None]) -> Callable[..., None]:
    """Time for others between a decision and what it removes."""

    def slow(blobs: Any, name: str) -> None:
        time.sleep(random.uniform(0, 0.1))
        delete(blobs, name)

    return slow


def main() -> None:
    """The program."""
    FolderBlobs.delete = slowed(FolderBlobs.delete)  # type: ignore[method-assign]
    FetchedBlobs.delete = slowed(FetchedBlobs.delete)  # type: ignore[method-assign]
    what, url, delta, rounds, adders = sys.argv[1:]
    old, new = Registry.open(url, clock=lambda: YESTERDAY), Registry.open(url, clock=lambda: TODAY)
    stay, gone = list[str](), 0
    for number in range(int(rounds) if what == "add" else 0):
        files: dict[str, Path | bytes] = {"result.json": b"%d of %d" % (number, os.getpid())}
        old.add(Update(skill=f"{os.getpid()} {number} goes"), delta, files)
        time.sleep(random.uniform(0, 0.1))
        stay.append(new.add(Update(skill=f"{os.getpid()} {number} stays"), delta, files))
    while what == "collect":
        done = sum(update.skill.endswith("stays") for update in new.log()) == int(rounds) * int(adders)
        gone += len(new.gc(keep=NOW, delete=True, actor=what).updates)
        if done:
            break
    print(json.dumps({"stay": stay, "gone": gone}))


if __name__ == "__main__":
    main()
