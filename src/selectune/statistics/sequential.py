"""Stopping early, honestly: a betting test of non-inferiority that may be looked at after every item."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from selectune.errors import DataError, InputError
from selectune.statistics.intervals import Floats, check_alpha, checked
from selectune.statistics.paired import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Betting:
    """Where a sequential test stands after the items seen so far."""

    verdict: Outcome
    """Passed (not worse by the margin), failed (worse by more than it) or undecided: see more items."""
    stopped_at: int | None
    """The item, from 1, at which the verdict fell; later items no longer count."""
    evidence: float
    """Largest capital of the bet against "worse by the margin or more", up to the stop; 1/alpha passes."""
    harm: float
    """Largest capital of the bet against "not worse than the margin", up to the stop; 1/alpha fails."""
    n: int
    """Items seen."""


def betting(differences: ArrayLike, margin: float, *, alpha: float = 0.05) -> Betting:
    """The test martingale of non-inferiority over differences D = new - old of scores in 0..1, in the order in which the items were seen.

    The capital K_t = prod_s (1 + lambda_s (D_s + margin)) starts at 1; each stake lambda_s = mean/(variance + mean^2) of what came before,
    kept in 0..0.5/(1 - margin). If the true change is -margin or worse, K ever reaches 1/alpha with a chance of at most alpha, however
    often one looks (Ville's inequality); the mirrored bet shows harm. The items must come in random order. Raises DataError for |D| > 1.
    Source: Waudby-Smith and Ramdas (2024), J. R. Stat. Soc. B 86:1.
    """
    values, _ = checked(differences, None)
    if np.abs(values).max() > 1:
        raise DataError("a difference of scores outside -1..1", then="A bet needs bounded scores, in 0..1.")
    if not 0 <= margin < 1:
        raise InputError(f"a margin of {margin}", then="Give a share from 0 to 1, such as 0.02 for two points.")
    check_alpha(alpha)
    shifted = values + margin
    evidence, harm = _capital(shifted, 0.5 / (1 - margin)), _capital(-shifted, 0.5 / (1 + margin))
    over = np.flatnonzero(np.maximum(evidence, harm) >= -math.log(alpha))
    stop = int(over[0]) if len(over) else None
    seen = slice(None) if stop is None else slice(stop + 1)
    verdict: Outcome = "undecided" if stop is None else "passed" if evidence[stop] >= harm[stop] else "failed"
    return Betting(
        verdict=verdict,
        stopped_at=None if stop is None else stop + 1,
        evidence=math.exp(max(0.0, float(evidence[seen].max()))),
        harm=math.exp(max(0.0, float(harm[seen].max()))),
        n=len(values),
    )


def _capital(gains: Floats, most: float) -> Floats:
    """The logarithm of the capital after each item."""
    count = np.arange(len(gains))
    # Sums over what came before each item: the stake must not know the item it is put on.
    total = np.concatenate(([0.0], np.cumsum(gains)[:-1]))
    squares = np.concatenate(([0.0], np.cumsum(gains**2)[:-1]))
    seen = np.maximum(count, 1)
    # variance + mean^2 is the mean square.
    stake = np.divide(total / seen, squares / seen, out=np.zeros(len(gains)), where=squares > 0)
    logs: Floats = np.cumsum(np.log1p(np.clip(stake, 0.0, most) * gains))
    return logs
