"""Stopping early, honestly: a betting test of non-inferiority that may be looked at after every item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from selectune.errors import DataError, InputError
from selectune.statistics.claims import Outcome
from selectune.statistics.intervals import Codes, Floats, check_alpha, checked

STAKES = (np.arange(16) + 0.5) / 16
"""Shares of the largest stake that cannot ruin, over which the capital is spread evenly at the start.

Such a mixture was the quickest of the stakes tried in `benchmarks/gates.py` on harmless and on harmful updates alike.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Betting:
    """Where a sequential test stands after the items seen so far."""

    verdict: Outcome
    """Passed (not worse by the margin), failed (worse by more than it) or undecided: see more items."""
    stopped_at: int | None
    """The item, from 1, at which the verdict fell; later items no longer count."""
    value: float
    """The mean difference of the items up to the stop."""
    low: float
    """Lower bound of the true mean difference at 1 - alpha, however often one looked (a confidence sequence)."""
    high: float
    """Upper bound of the same kind."""
    evidence: float
    """Largest capital of the bet against "worse by the margin or more", up to the stop; 1/alpha passes."""
    harm: float
    """Largest capital of the bet against "not worse than the margin", up to the stop; 1/alpha fails."""
    n: int
    """Items seen."""
    needed: int | None
    """About how many items would settle it at the rates seen; None where it is settled, or where no number of items would."""


def betting(
    differences: ArrayLike, margin: float, *, alpha: float = 0.05, clusters: Sequence[str] | None = None, largest: int | None = None
) -> Betting:
    """The test martingale of non-inferiority over differences D = new - old of scores in 0..1, in the order in which the items were seen.

    A bet with stake s has the capital K_t = prod_i (1 + s (D_i + margin)), 0 <= s < 1/(1 - margin), and starts at 1; the capital is spread
    evenly over 16 stakes in that range. If the true change is -margin or worse, the sum ever reaches 1/alpha with a chance of at most
    alpha, however often one looks (Ville's inequality); the mirrored bet shows harm.

    The items must come in random order, or with `clusters` (one label for each item) whole clusters in random order: then a cluster is
    one bet, on the sum of its D + margin over `largest`, the items of the largest cluster that the plan holds (of those seen without it).
    Raises DataError for |D| > 1, InputError for a margin that is none and for a cluster above `largest`. Source: Waudby-Smith and Ramdas
    (2024), J. R. Stat. Soc. B 86:1; the mixture is Cover's universal portfolio (1991), Mathematical Finance 1:1, on a grid.
    """
    values, codes = checked(differences, clusters)
    if np.abs(values).max() > 1:
        raise DataError("a difference of scores outside -1..1", then="A bet needs bounded scores, in 0..1.")
    if not 0 <= margin < 1:
        raise InputError(f"a margin of {margin}", then="Give a share from 0 to 1, such as 0.02 for two points.")
    limit = -math.log(check_alpha(alpha))
    bets = _Bets.of(values, codes, largest)
    evidence, harm = bets.capital(-margin), bets.mirrored().capital(margin)
    over = np.flatnonzero(np.maximum(evidence, harm) >= limit)
    stop = int(over[0]) if len(over) else None
    seen = len(evidence) if stop is None else stop + 1
    verdict: Outcome = "undecided" if stop is None else "passed" if evidence[stop] >= harm[stop] else "failed"
    until, evidence, harm = bets.first(seen), evidence[:seen], harm[:seen]
    items = int(until.sizes.sum())
    value = float(until.sums.sum() / items)
    side, log, change = (until, evidence, -margin) if value >= -margin else (until.mirrored(), harm, margin)
    return Betting(
        verdict=verdict,
        stopped_at=None if stop is None else items,
        value=value,
        low=min(value, until.low(limit)),
        high=max(value, -until.mirrored().low(limit)),
        evidence=math.exp(max(0.0, float(evidence.max()))),
        harm=math.exp(max(0.0, float(harm.max()))),
        n=len(values),
        needed=None if stop is not None else side.needed(change, limit, float(log[-1])),
    )


@dataclass(frozen=True, slots=True)
class _Bets:
    """What is bet on, one entry for each item or cluster in the order seen."""

    sums: Floats
    """Of the differences."""
    sizes: Floats
    """Items."""
    largest: int
    """Items of the largest cluster there is, so that no bet can lose more than its stake."""

    @classmethod
    def of(cls, values: Floats, codes: Codes, largest: int | None) -> _Bets:
        sizes = np.bincount(codes).astype(np.float64)
        most = int(sizes.max()) if largest is None else largest
        if sizes.max() > most:
            raise InputError(f"a cluster of {int(sizes.max())} items where the largest has {most}", then="Give the size of the largest.")
        return cls(np.bincount(codes, values).astype(np.float64), sizes, most)

    def mirrored(self) -> _Bets:
        return _Bets(-self.sums, self.sizes, self.largest)

    def first(self, count: int) -> _Bets:
        return _Bets(self.sums[:count], self.sizes[:count], self.largest)

    def gains(self, bound: float) -> Floats:
        """What each of `STAKES` wins on each bet that the mean difference is above `bound`, less 1: [stakes, bets]."""
        won: Floats = np.outer(STAKES / (1 + bound), (self.sums - bound * self.sizes) / self.largest)
        return won

    def capital(self, bound: float) -> Floats:
        """The logarithm of the capital after each bet."""
        logs = np.cumsum(np.log1p(self.gains(bound)), axis=1)
        most = logs.max(axis=0)
        found: Floats = most + np.log(np.exp(logs - most).mean(axis=0))
        return found

    def low(self, limit: float) -> float:
        """The largest bound that the capital has beaten at any time: it falls as the bound rises, stake by stake."""

        def excess(bound: float) -> float:
            return float(self.capital(bound).max()) - limit

        edge = 1 - 1e-9
        if excess(-edge) < 0:
            return -1.0
        return edge if excess(edge) >= 0 else float(optimize.brentq(excess, -edge, edge, xtol=1e-6))

    def needed(self, bound: float, limit: float, log: float) -> int | None:
        """Items at which the capital reaches its limit if it goes on to grow as its best stake did."""
        rate = float(np.log1p(self.gains(bound)).mean(axis=1).max())
        if rate <= 0:
            return None
        bets = len(self.sums)
        # The mixture lags behind its best stake by what it cost to find that.
        count = bets + (limit - log) / rate
        return max(int(self.sizes.sum()) + 1, math.ceil(count / bets * float(self.sizes.sum()) - 1e-9))
