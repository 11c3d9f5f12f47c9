"""Which records a step sees, and at what rate.

Pure functions of the seed and the step, so that a resumed training goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectune.recipe import Optim


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of one training over `n` samples."""

    n: int
    optim: Optim
    seed: int

    @property
    def total(self) -> int:
        """Steps in all: `max_steps` if it is given, else as many batches as the epochs fill, the last one perhaps in part."""
        return self.optim.max_steps or math.ceil(self._wanted / self.optim.batch)

    @property
    def _wanted(self) -> int:
        """Samples drawn in all, repeats counted."""
        if self.optim.max_steps:
            return self.optim.max_steps * self.optim.batch
        return max(1, math.ceil(self.n * self.optim.epochs))

    @property
    def warmup(self) -> int:
        """Steps below the peak rate at the start; always fewer than all."""
        return min(math.ceil(self.optim.warmup * self.total), self.total - 1)

    def lr(self, step: int) -> float:
        """The rate of step 1, 2, …

        After warm-up it is Hugging Face's `get_cosine_schedule_with_warmup` at `step - 1`; during warm-up it rises from one part in
        `warmup + 1`, never from zero, so that step 1 already moves something and the proof after it means something.
        """
        done = step - 1
        if done < self.warmup:
            return self.optim.lr * step / (self.warmup + 1)
        share = (done - self.warmup) / (self.total - self.warmup)
        if self.optim.schedule == "cosine":
            return self.optim.lr * 0.5 * (1.0 + math.cos(math.pi * share))
        return self.optim.lr * (1.0 - share if self.optim.schedule == "linear" else 1.0)

    def batch(self, step: int) -> list[int]:
        """Indices of the samples of step 1, 2, …: the next ones of a shuffled epoch, a new order for each epoch; lengths play no part."""
        first = (step - 1) * self.optim.batch
        places = range(first, min(first + self.optim.batch, self._wanted))
        return [_order(self.n, self.seed, place // self.n)[place % self.n] for place in places]


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    import numpy as np

    # A generator of its own: the global random state belongs to the user. PCG64 streams are the same on every machine.
    return tuple(np.random.default_rng([seed, epoch]).permutation(n).tolist())


def micro_batches(indices: Sequence[int], lengths: Sequence[int], size: int | None) -> list[list[int]]:
    """The samples of one batch in portions of at most `size`, alike in length to save padding; the batch as a whole stays as drawn."""
    ordered = sorted(indices, key=lambda index: (lengths[index], index))
    size = size or max(1, len(ordered))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
