"""A run by several processes: the first writes and says, the others do the same work beside it in a folder of their own that goes.

`torchrun --nproc-per-node 4 -m selectune run recipe.yaml` starts them. All see the same files: a disk that they share, as such jobs have.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from selectune.pipeline.progress import Progress, Silent

if TYPE_CHECKING:
    from selectune.training.processes import Processes


@contextmanager
def own_place(path: Path, progress: Progress, processes: Processes) -> Iterator[tuple[Path, Progress]]:
    """Where this process works on the run at `path`, and to whom it speaks: for the first one there and aloud.

    The others get a copy of what the run holds so far, so that they pass over the same finished stages, and are silent.
    """
    if processes.is_first:
        processes.wait()
        yield path, progress
        return
    with tempfile.TemporaryDirectory(prefix="selectune-") as scratch:
        copy = Path(scratch) / "runs" / path.name
        shutil.copytree(path, copy)
        processes.wait()
        yield copy, Silent()
