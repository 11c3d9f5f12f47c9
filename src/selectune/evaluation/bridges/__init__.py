"""Other evaluators: their logs as measurements, lmms-eval run in an environment of its own, and vLLM as what writes the answers.

Nothing here imports another evaluator or torch; everything that is read was written by a stranger.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selectune.errors import InputError
from selectune.evaluation.bridges.harness import is_samples, read_harness
from selectune.evaluation.bridges.inspecting import read_inspect
from selectune.evaluation.bridges.log import Log, Row, measured

__all__ = ["Log", "Row", "measured", "read_log"]


def read_log(paths: Sequence[Path]) -> Log:
    """What lm-eval, lmms-eval or Inspect logged of one evaluation.

    `paths` are files of samples, one Inspect log, or one folder that holds files of samples (of all tasks, of one evaluation). Raises
    InputError for none of these, DataError for a damaged or hostile file.
    """
    then = "Give samples_*.jsonl of lm-eval, *_samples_*.jsonl of lmms-eval, or a .eval or .json log of Inspect."
    found = [one for path in paths for one in (sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])]
    samples = [path for path in found if is_samples(path)]
    if samples and len(samples) == len(found):
        return read_harness(samples)
    if len(found) == 1 and found[0].suffix in (".eval", ".json"):
        return read_inspect(found[0])
    odd = next((str(path) for path in found if path not in samples), ", ".join(map(str, paths)))
    raise InputError("no log of an evaluation, or one of several kinds", where=odd, then=then)
