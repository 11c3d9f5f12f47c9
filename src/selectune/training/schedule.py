"""Which records a step sees, and at what rate.

Pure functions of the seed and the step, so that a resumed training goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
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
    replayed: Fraction = Fraction(0)
    """The share of everything drawn that comes from `pools`, in place of one of the `n`."""
    pools: tuple[int, ...] = ()
    """How many samples there are to replay, source by source; their indices come after the `n`."""

    @property
    def total(self) -> int:
        """Steps in all: `max_steps` if it is given, else as many batches as the epochs fill, the last one perhaps in part."""
        return self.optim.max_steps or math.ceil(self._wanted / self.optim.batch)

    @property
    def _wanted(self) -> int:
        """Samples drawn in all, repeats and replays counted."""
        if self.optim.max_steps:
            return self.optim.max_steps * self.optim.batch
        new = max(1, math.ceil(self.n * self.optim.epochs))
        if not self.pools:
            return new
        # The smallest count that holds so many new ones: of d samples ceil(d * (1 - share)) are new.
        return math.floor((new - 1) / (1 - self.replayed)) + 1

    def _replays(self, drawn: int) -> int:
        """How many of the first `drawn` samples are replayed."""
        return math.floor(self.replayed * drawn) if self.pools else 0

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
        """Indices of the samples of step 1, 2, …: the next ones of a shuffled epoch, a new order for each epoch; lengths play no part.

        Replays come last, from one source after the other in turn; each source has epochs of its own.
        """
        first = (step - 1) * self.optim.batch
        last = min(first + self.optim.batch, self._wanted)
        before, after = self._replays(first), self._replays(last)
        new = draw(self.n, first - before, last - first - (after - before), seed=self.seed)
        return new + [self._replay(place) for place in range(before, after)]

    def _replay(self, place: int) -> int:
        pool, at = place % len(self.pools), place // len(self.pools)
        (drawn,) = draw(self.pools[pool], at, 1, seed=self.seed, stream=pool + 1)
        return self.n + sum(self.pools[:pool]) + drawn

    def replays(self) -> tuple[int, ...]:
        """How often each source is drawn from over all steps."""
        drawn, sources = self._replays(self._wanted), len(self.pools)
        return tuple(len(range(pool, drawn, sources)) for pool in range(sources))

    @property
    def repeats(self) -> bool:
        """Whether any sample is drawn twice."""
        replays = self.replays()
        new = self._wanted - sum(replays)
        return new > self.n or any(count > size for count, size in zip(replays, self.pools, strict=True))


def draw(n: int, first: int, count: int, *, seed: int, stream: int = 0) -> list[int]:
    """`count` indices from place `first` on in an endless row of shuffled epochs over `n`; other streams of a seed have other orders."""
    return [_order(n, seed, place // n, stream)[place % n] for place in range(first, first + count)]


@lru_cache(maxsize=64)
def _order(n: int, seed: int, epoch: int, stream: int) -> tuple[int, ...]:
    import numpy as np

    # A generator of its own: the global random state belongs to the user. PCG64 streams are the same on every machine.
    return tuple(np.random.default_rng([seed, epoch, stream] if stream else [seed, epoch]).permutation(n).tolist())


def micro_batches(indices: Sequence[int], lengths: Sequence[int], size: int | None) -> list[list[int]]:
    """The samples of one batch in portions of at most `size`, alike in length to save padding; the batch as a whole stays as drawn."""
    ordered = sorted(indices, key=lambda index: (lengths[index], index))
    size = size or max(1, len(ordered))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
