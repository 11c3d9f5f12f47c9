"""Old against new on the same items: McNemar, Tango's score test and interval, cluster-robust bounds, equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from selectune.errors import DataError, InputError
from selectune.statistics.intervals import (
    Codes,
    Estimate,
    Floats,
    bootstrap,
    check_alpha,
    check_level,
    checked,
    effective_n,
    is_binary,
    is_bounded,
    mean,
    standard_error,
)

Outcome = Literal["passed", "failed", "undecided"]

FEW_CLUSTERS = 40
"""Below this many independent units a t interval leans on a normal mean that need not be there yet."""
SKEW_FACTOR = 25
"""Cochran's rule: a normal mean needs more than 25 times the squared skewness in independent units."""
FEW_CHANGES = 10
"""With fewer changed units than this the spread of the differences says little about what larger samples would show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Test:
    """What the data say about a claim of the form "the mean change is above a bound"."""

    __test__ = False  # pytest would otherwise collect it where a test module imports it

    value: float
    """The mean change that was seen."""
    statistic: float
    """Distance from the bound in standard errors; positive speaks for the claim."""
    p: float
    """One-sided: how often data speak for the claim at least this clearly when the change just equals the bound."""
    passed: bool
    """The claim is shown: the lower bound clears it."""
    refuted: bool
    """The opposite is shown: the upper bound lies below."""
    low: float
    """One-sided lower bound of the change at 1 - alpha."""
    high: float
    """One-sided upper bound of the change at 1 - alpha."""
    n: int
    """Items compared."""
    method: str
    """Which test, in words."""
    needed: int | None
    """Items that would settle it at the rates seen; None where it is settled, or where no number of items would."""

    @property
    def verdict(self) -> Outcome:
        """Passed, failed or undecided."""
        return "passed" if self.passed else "failed" if self.refuted else "undecided"


def paired(differences: ArrayLike, clusters: Sequence[str] | None = None, *, level: float = 0.95) -> Estimate:
    """The mean of paired differences with its t interval, G - 1 degrees of freedom for G clusters: `mean` under the name of its use."""
    return mean(differences, clusters=clusters, level=level)


def mcnemar(lost: int, gained: int, *, method: Literal["mid-p", "exact"] = "mid-p") -> float:
    """The two-sided p value that an item is as likely lost as gained, by McNemar's exact test or its less cautious mid-p form.

    `lost` and `gained` count items that only the old or only the new model got right. Without any the p value is 1. Raises InputError for a
    negative count. Source: Fagerland, Lydersen, Laake (2013), BMC Medical Research Methodology 13:91.
    """
    if lost < 0 or gained < 0:
        raise InputError(f"{lost} items lost and {gained} gained", then="Counts are not negative.")
    fewer, n = min(lost, gained), lost + gained
    both = 2 * float(stats.binom.cdf(fewer, n, 0.5))
    if method == "mid-p":
        both -= float(stats.binom.pmf(fewer, n, 0.5))
    return min(1.0, both)


def score_statistic(lost: float, gained: float, n: float, bound: float) -> float:
    """Tango's score statistic of H0 "the share right changes by `bound`", -1 to 1; positive speaks for more, and `bound` 0 is McNemar's z.

    Counts may be fractions (effective counts). Source: Tango (1998), Statistics in Medicine 17:891, with the share of lost items q under H0
    as the larger root of 2n q^2 + B q + C = 0.
    """
    margin = -bound
    b_term = -(lost + gained) - (2 * n - gained + lost) * margin
    c_term = lost * margin * (1 + margin)
    q = (math.sqrt(max(0.0, b_term**2 - 8 * n * c_term)) - b_term) / (4 * n)
    variance = n * (2 * q - margin * (1 + margin))
    distance = gained - lost + n * margin
    if abs(distance) <= 1e-12 * n:
        return 0.0
    return math.copysign(math.inf, distance) if variance <= 0 else distance / math.sqrt(variance)


def score_interval(lost: int, gained: int, n: int, *, level: float = 0.95) -> Estimate:
    """The change in the share right, (gained - lost)/n, with Tango's score interval: all bounds that his test does not reject.

    Raises InputError for counts that cannot be.
    """
    _check_counts(lost, gained, n)
    low, high = _score_ends(lost, gained, n, check_level(level))
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
    return _score_test(lost, gained, n, -margin, check_alpha(alpha))


def change(before: ArrayLike, after: ArrayLike, clusters: Sequence[str] | None = None, *, level: float = 0.95) -> Estimate:
    """The mean change of a score from `before` to `after`, item by item in the same order, with the interval that its kind of scores needs.

    - Right or wrong (0 or 1), no clusters: Tango's score interval.
    - Right or wrong in clusters: the wider of the cluster-robust t interval and Tango's at the effective number of items. The first alone
      would call a perfectly silent update certain.
    - Anything else: t; with fewer than 40 independent units or skewed differences the wider of t and the BCa bootstrap over clusters.
      Where fewer than ten units changed at all and the scores lie in 0..1, at least the reach 1 - alpha^(1/G): what G units without a
      surprise leave unseen. An unbounded score has no such floor.
    """
    old, new, codes = _aligned(before, after, clusters)
    check_level(level)
    differences = new - old
    if is_binary(old) and is_binary(new):
        return _binary_change(differences, codes, clusters, level)
    found = mean(differences, clusters=clusters, level=level)
    groups = int(codes.max()) + 1
    if groups >= 2 and (groups < FEW_CLUSTERS or groups < SKEW_FACTOR * _skewness(differences, codes) ** 2):
        found = _wider(found, bootstrap(differences, clusters=clusters, level=level))
    if not _is_nearly_silent(old, new, codes):
        return found
    unseen = _unseen(groups, (1 - level) / 2)
    low = max(-1.0, min(found.low, found.value - unseen))
    high = min(1.0, max(found.high, found.value + unseen))
    return Estimate(value=found.value, low=low, high=high, n=found.n, method=found.method)


def paired_test(before: ArrayLike, after: ArrayLike, *, bound: float, alpha: float = 0.05, clusters: Sequence[str] | None = None) -> Test:
    """Whether the mean change is above `bound`: minus the margin for "not worse than", the least gain for "better by more than".

    Passed when the lower end of `change` at 1 - 2 alpha clears the bound, refuted when the upper end lies below it, so each is wrong at
    most a share alpha of the time. Scores in the unit of `bound`; items in the same order. Raises DataError for unequal lengths or no
    finite scores, and InputError for an alpha outside 0..0.5 or, with right-or-wrong scores, a bound outside -1..1.
    """
    old, new, codes = _aligned(before, after, clusters)
    check_alpha(alpha)
    differences = new - old
    lost, gained, n = int((differences < 0).sum()), int((differences > 0).sum()), len(differences)
    binary = is_binary(old) and is_binary(new)
    if binary and not -1 < bound < 1:
        raise InputError(f"a bound of {bound} for a change in a share", then="Give a share between -1 and 1.")
    if binary and int(codes.max()) + 1 == n:
        return _score_test(lost, gained, n, bound, alpha)
    found = change(old, new, clusters, level=1 - 2 * alpha)
    error, groups = standard_error(differences, codes)
    statistic = _studentized(found.value - bound, error)
    freedom = max(groups - 1, 1)
    needed = [_needed(n, statistic, float(stats.t.ppf(1 - alpha, freedom)))]
    if binary:
        share = _effective(differences, codes) / n
        score = score_statistic(lost * share, gained * share, n * share, bound)
        statistic = min(statistic, score, key=abs)
        needed.append(_needed(n, score, float(stats.norm.ppf(1 - alpha))))
    elif _is_nearly_silent(old, new, codes):
        needed.append(_needed_unseen(found.value - bound, n / groups, alpha))
    settled = found.low > bound or found.high < bound
    return Test(
        value=found.value,
        statistic=statistic,
        p=float(stats.t.sf(statistic, freedom)),
        passed=found.low > bound,
        refuted=found.high < bound,
        low=found.low,
        high=found.high,
        n=n,
        method=found.method,
        needed=None if settled else _largest(needed, n),
    )


def tost(differences: ArrayLike, epsilon: float, *, alpha: float = 0.05, clusters: Sequence[str] | None = None) -> Test:
    """Two one-sided tests that a mean shift is negligible: its interval at 1 - 2 alpha lies inside (-epsilon, epsilon).

    Refuted when the interval lies wholly outside. `statistic` is the distance to the nearer limit in standard errors, `p` the larger of
    the two. Raises InputError unless epsilon is above 0. Source: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15:657.
    """
    if epsilon <= 0:
        raise InputError(f"epsilon of {epsilon}", then="Give the largest shift that does not matter, above 0.")
    numbers, codes = checked(differences, clusters)
    found = mean(numbers, clusters=clusters, level=1 - 2 * check_alpha(alpha))
    error, groups = standard_error(numbers, codes)
    freedom = max(groups - 1, 1)
    statistic = _studentized(epsilon - abs(found.value), error)
    passed = -epsilon < found.low and found.high < epsilon
    refuted = found.low > epsilon or found.high < -epsilon
    needed = None if passed or refuted else _largest([_needed(found.n, statistic, float(stats.t.ppf(1 - alpha, freedom)))], found.n)
    p = float(stats.t.sf(statistic, freedom))
    return Test(
        value=found.value, statistic=statistic, p=p, passed=passed, refuted=refuted, low=found.low, high=found.high, n=found.n,
        method=f"TOST, {found.method}", needed=needed,
    )  # fmt: skip


def _check_counts(lost: int, gained: int, n: int) -> None:
    if n < 1 or lost < 0 or gained < 0 or lost + gained > n:
        raise InputError(f"{lost} items lost and {gained} gained of {n}", then="Give counts of the same n items, n >= 1.")


def _aligned(before: ArrayLike, after: ArrayLike, clusters: Sequence[str] | None) -> tuple[Floats, Floats, Codes]:
    old, codes = checked(before, clusters)
    new, _ = checked(after, clusters)
    if len(old) != len(new):
        raise DataError(f"{len(old)} scores before and {len(new)} after", then="Compare the same items, in the same order.")
    return old, new, codes


def _score_ends(lost: float, gained: float, n: float, level: float) -> tuple[float, float]:
    z = float(stats.norm.ppf((1 + level) / 2))
    value, edge = (gained - lost) / n, 1 - 1e-12

    def distance(bound: float, reach: float) -> float:
        return float(np.clip(score_statistic(lost, gained, n, bound), -1e9, 1e9)) - reach

    low = -1.0 if value <= -edge else float(optimize.brentq(distance, -edge, value, args=(z,), xtol=1e-13))
    high = 1.0 if value >= edge else float(optimize.brentq(distance, value, edge, args=(-z,), xtol=1e-13))
    return low, high


def _score_test(lost: int, gained: int, n: int, bound: float, alpha: float) -> Test:
    statistic, limit = score_statistic(lost, gained, n, bound), float(stats.norm.ppf(1 - alpha))
    low, high = _score_ends(lost, gained, n, 1 - 2 * alpha)
    passed, refuted = statistic >= limit, statistic <= -limit
    return Test(
        value=(gained - lost) / n,
        statistic=statistic,
        p=float(stats.norm.sf(statistic)),
        passed=passed,
        refuted=refuted,
        low=low,
        high=high,
        n=n,
        method="Tango",
        needed=None if passed or refuted else _largest([_needed(n, statistic, limit)], n),
    )


def _binary_change(differences: Floats, codes: Codes, clusters: Sequence[str] | None, level: float) -> Estimate:
    lost, gained, n = int((differences < 0).sum()), int((differences > 0).sum()), len(differences)
    if int(codes.max()) + 1 == n:
        return score_interval(lost, gained, n, level=level)
    share = _effective(differences, codes) / n
    low, high = _score_ends(lost * share, gained * share, n * share, level)
    robust = mean(differences, clusters=clusters, level=level)
    method = f"Tango at {n * share:.1f} effective items and t, {int(codes.max()) + 1} clusters"
    return Estimate(value=robust.value, low=max(-1.0, min(low, robust.low)), high=min(1.0, max(high, robust.high)), n=n, method=method)


def _effective(differences: Floats, codes: Codes) -> float:
    return effective_n(differences, codes, float(differences.var()))


def _skewness(differences: Floats, codes: Codes) -> float:
    sums = np.bincount(codes, differences)
    return float(stats.skew(sums)) if np.ptp(sums) > 1e-12 else 0.0


def _is_nearly_silent(old: Floats, new: Floats, codes: Codes) -> bool:
    changed = np.unique(codes[old != new])
    return len(changed) < FEW_CHANGES and is_bounded(old) and is_bounded(new)


def _wider(first: Estimate, second: Estimate) -> Estimate:
    low, high = min(first.low, second.low), max(first.high, second.high)
    return Estimate(value=first.value, low=low, high=high, n=first.n, method=f"{first.method} and {second.method}")


def _unseen(groups: int, alpha: float) -> float:
    return float(1 - alpha ** (1 / groups))


def _studentized(distance: float, error: float) -> float:
    if error > 0:
        return distance / error
    return 0.0 if distance == 0 else math.copysign(math.inf, distance)


def _needed(n: int, statistic: float, limit: float) -> float:
    """Items at which the statistic, which grows with the root of their number, reaches its limit on the side it is on; infinite at zero."""
    return math.inf if statistic == 0 else n * (limit / statistic) ** 2


def _needed_unseen(distance: float, cluster_size: float, alpha: float) -> float:
    if distance == 0:
        return math.inf
    return 0.0 if abs(distance) >= 1 else cluster_size * math.log(alpha) / math.log1p(-abs(distance))


def _largest(needed: Sequence[float], n: int) -> int | None:
    largest = max(needed)
    # The rounding guard: 12.000000001 items are 12.
    return max(n + 1, math.ceil(largest - 1e-9)) if math.isfinite(largest) else None
