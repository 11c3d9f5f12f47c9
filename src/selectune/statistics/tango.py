"""Tango's score test and interval for the change in a share right, paired by item."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from selectune.errors import InputError
from selectune.statistics.claims import Test, items_needed, largest
from selectune.statistics.intervals import Estimate, Floats, check_alpha, check_level


def score_statistics(lost: ArrayLike, gained: ArrayLike, n: ArrayLike, bound: ArrayLike) -> Floats:
    """Tango's score statistic of H0 "the share right changes by `bound`", -1 to 1, elementwise; positive speaks for more.

    `bound` 0 gives McNemar's z. Counts may be fractions (effective counts). Source: Tango (1998), Statistics in Medicine 17:891, with the
    share of lost items q under H0 as the larger root of 2n q^2 + B q + C = 0.
    """
    lost, gained, n = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64), np.asarray(n, dtype=np.float64)
    margin = -np.asarray(bound, dtype=np.float64)
    b_term = -(lost + gained) - (2 * n - gained + lost) * margin
    c_term = lost * margin * (1 + margin)
    q = (np.sqrt(np.maximum(0.0, b_term**2 - 8 * n * c_term)) - b_term) / (4 * n)
    variance = n * (2 * q - margin * (1 + margin))
    distance = gained - lost + n * margin
    certain = np.copysign(np.inf, distance)
    found = np.where(variance > 0, distance / np.sqrt(np.where(variance > 0, variance, 1.0)), certain)
    statistics: Floats = np.where(np.abs(distance) <= 1e-12 * n, 0.0, found)
    return statistics


def score_statistic(lost: float, gained: float, n: float, bound: float) -> float:
    """`score_statistics` of one table."""
    return float(score_statistics(lost, gained, n, bound))


def score_interval(lost: int, gained: int, n: int, *, level: float = 0.95) -> Estimate:
    """The change in the share right, (gained - lost)/n, with Tango's score interval: all bounds that his test does not reject.

    Raises InputError for counts that cannot be.
    """
    _check_counts(lost, gained, n)
    low, high = score_ends(lost, gained, n, check_level(level))
    return Estimate(value=(gained - lost) / n, low=low, high=high, n=n, method="Tango")


def noninferiority(lost: int, gained: int, n: int, margin: float, *, alpha: float = 0.05) -> Test:
    """Tango's score test that the new model is not worse than the old by `margin`, on the same `n` items.

    `lost` and `gained` count items that only the old or only the new model got right; `margin` is a share, 0.02 for two points.
    With no discordant item a margin of two points still needs 133 items before it can pass. Source: Tango (1998), Stat. Med. 17:891.
    Raises InputError for counts that cannot be, and for a margin outside 0..1.

    >>> noninferiority(0, 0, 132, 0.02).verdict, noninferiority(0, 0, 133, 0.02).verdict
    ('undecided', 'passed')
    """
    _check_counts(lost, gained, n)
    if not 0 <= margin < 1:
        raise InputError(f"a margin of {margin}", then="Give a share from 0 to 1, such as 0.02 for two points.")
    return score_test(lost, gained, n, -margin, check_alpha(alpha))


def score_test(lost: int, gained: int, n: int, bound: float, alpha: float) -> Test:
    """Tango's test that the change is above `bound`, either way."""
    z, limit = score_statistic(lost, gained, n, bound), float(stats.norm.ppf(1 - alpha))
    low, high = score_ends(lost, gained, n, 1 - 2 * alpha)
    passed, refuted = z >= limit, z <= -limit
    return Test(
        value=(gained - lost) / n,
        z=z,
        p_value=float(stats.norm.sf(z)),
        passed=passed,
        refuted=refuted,
        low=low,
        high=high,
        n=n,
        method="Tango",
        needed=None if passed or refuted else largest([items_needed(n, z, limit)], n),
    )


def score_ends(lost: float, gained: float, n: float, level: float) -> tuple[float, float]:
    """The ends of Tango's interval; counts may be fractions."""
    z = float(stats.norm.ppf((1 + level) / 2))
    value, edge = (gained - lost) / n, 1 - 1e-12

    def distance(bound: float, reach: float) -> float:
        return min(max(score_statistic(lost, gained, n, bound), -1e9), 1e9) - reach

    low = -1.0 if value <= -edge else float(optimize.brentq(distance, -edge, value, args=(z,), xtol=1e-13))
    high = 1.0 if value >= edge else float(optimize.brentq(distance, value, edge, args=(-z,), xtol=1e-13))
    return low, high


def _check_counts(lost: int, gained: int, n: int) -> None:
    if n < 1 or lost < 0 or gained < 0 or lost + gained > n:
        raise InputError(f"{lost} items lost and {gained} gained of {n}", then="Give counts of the same n items, n >= 1.")
