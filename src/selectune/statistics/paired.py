"""Old against new on the same items: McNemar, cluster-robust bounds, equivalence; right-or-wrong scores go to Tango's test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from selectune.errors import DataError, InputError
from selectune.statistics.claims import Test, items_needed, largest
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
from selectune.statistics.tango import score_ends, score_interval, score_statistic, score_test

FEW_CLUSTERS = 40
"""Below this many independent units a t interval leans on a normal mean that need not be there yet."""
SKEW_FACTOR = 25
"""Cochran's rule: a normal mean needs more than 25 times the squared skewness in independent units."""
FEW_CHANGES = 10
"""With fewer changed units than this the spread of the differences says little about what larger samples would show."""

WORST_CLUSTERS = 5
"""Changed clusters that speak for the worst design effect, beside those that were seen."""


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


def change(before: ArrayLike, after: ArrayLike, clusters: Sequence[str] | None = None, *, level: float = 0.95) -> Estimate:
    """The mean change of a score from `before` to `after`, item by item in the same order, with the interval that its kind of scores needs.

    - Right or wrong (0 or 1), no clusters: Tango's score interval.
    - Right or wrong in clusters: the wider of the cluster-robust t interval and Tango's at the effective number of items. The first alone
      would call a perfectly silent update certain. The fewer clusters changed, the nearer that number is to one item for each cluster.
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
        return score_test(lost, gained, n, bound, alpha)
    found = change(old, new, clusters, level=1 - 2 * alpha)
    error, groups = standard_error(differences, codes)
    z = _studentized(found.value - bound, error)
    freedom = max(groups - 1, 1)
    needed = [items_needed(n, z, float(stats.t.ppf(1 - alpha, freedom)))]
    if binary:
        share = _effective(differences, codes) / n
        score = score_statistic(lost * share, gained * share, n * share, bound)
        z = min(z, score, key=abs)
        needed.append(items_needed(n, score, float(stats.norm.ppf(1 - alpha))))
    elif _is_nearly_silent(old, new, codes):
        needed.append(_needed_unseen(found.value - bound, n / groups, alpha))
    settled = found.low > bound or found.high < bound
    return Test(
        value=found.value,
        z=z,
        p_value=float(stats.t.sf(z, freedom)),
        passed=found.low > bound,
        refuted=found.high < bound,
        low=found.low,
        high=found.high,
        n=n,
        method=found.method,
        needed=None if settled else largest(needed, n),
    )


def p_value_of_change(before: ArrayLike, after: ArrayLike, clusters: Sequence[str] | None = None) -> float:
    """The two-sided p value that the mean score did not change, item by item in the same order.

    Right or wrong without clusters: McNemar's mid-p. Else that of `paired_test` at bound 0; where fewer than ten units changed, not less
    than McNemar's mid-p of the units that fell and rose, as so few say little of their spread. Raises DataError for unequal lengths.
    """
    old, new, codes = _aligned(before, after, clusters)
    sums = np.bincount(codes, new - old)
    fell, rose = int((sums < -1e-12).sum()), int((sums > 1e-12).sum())
    if is_binary(old) and is_binary(new) and int(codes.max()) + 1 == len(old):
        return mcnemar(fell, rose)
    test = paired_test(old, new, bound=0.0, clusters=clusters)
    both = 2 * min(test.p_value, 1 - test.p_value)
    return max(both, mcnemar(fell, rose)) if fell + rose < FEW_CHANGES else both


def tost(differences: ArrayLike, epsilon: float, *, alpha: float = 0.05, clusters: Sequence[str] | None = None) -> Test:
    """Two one-sided tests that a mean shift is negligible: its interval at 1 - 2 alpha lies inside (-epsilon, epsilon).

    Refuted when the interval lies wholly outside. `z` is the distance to the nearer limit in standard errors, `p_value` the larger of
    the two. Raises InputError unless epsilon is above 0. Source: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15:657.
    """
    if epsilon <= 0:
        raise InputError(f"epsilon of {epsilon}", then="Give the largest shift that does not matter, above 0.")
    numbers, codes = checked(differences, clusters)
    found = mean(numbers, clusters=clusters, level=1 - 2 * check_alpha(alpha))
    error, groups = standard_error(numbers, codes)
    freedom = max(groups - 1, 1)
    z = _studentized(epsilon - abs(found.value), error)
    passed = -epsilon < found.low and found.high < epsilon
    refuted = found.low > epsilon or found.high < -epsilon
    needed = None if passed or refuted else largest([items_needed(found.n, z, float(stats.t.ppf(1 - alpha, freedom)))], found.n)
    p_value = float(stats.t.sf(z, freedom))
    return Test(
        value=found.value, z=z, p_value=p_value, passed=passed, refuted=refuted, low=found.low, high=found.high, n=found.n,
        method=f"TOST, {found.method}", needed=needed,
    )  # fmt: skip


def _aligned(before: ArrayLike, after: ArrayLike, clusters: Sequence[str] | None) -> tuple[Floats, Floats, Codes]:
    old, codes = checked(before, clusters)
    new, _ = checked(after, clusters)
    if len(old) != len(new):
        raise DataError(f"{len(old)} scores before and {len(new)} after", then="Compare the same items, in the same order.")
    return old, new, codes


def _binary_change(differences: Floats, codes: Codes, clusters: Sequence[str] | None, level: float) -> Estimate:
    lost, gained, n = int((differences < 0).sum()), int((differences > 0).sum()), len(differences)
    if int(codes.max()) + 1 == n:
        return score_interval(lost, gained, n, level=level)
    share = _effective(differences, codes) / n
    low, high = score_ends(lost * share, gained * share, n * share, level)
    robust = mean(differences, clusters=clusters, level=level)
    method = f"Tango at {n * share:.1f} effective items and t, {int(codes.max()) + 1} clusters"
    return Estimate(value=robust.value, low=max(-1.0, min(low, robust.low)), high=min(1.0, max(high, robust.high)), n=n, method=method)


def _effective(differences: Floats, codes: Codes) -> float:
    """How many independent items the clustered ones are worth: with few changed clusters the design effect is drawn to its worst.

    It is seen on changed clusters alone, and few that happen to hold one change each would call the clusters harmless: at 500 items in
    fours with 3 % changed, 9 % of updates at the margin would pass at alpha 0.05 (docs/reference/statistics.md).
    """
    n = len(differences)
    changed = len(np.unique(codes[differences != 0]))
    seen, worst = n / effective_n(differences, codes, float(differences.var())), n / effective_n(differences, codes, 0.0)
    return n * (changed + WORST_CLUSTERS) / (changed * seen + WORST_CLUSTERS * worst)


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


def _needed_unseen(distance: float, cluster_size: float, alpha: float) -> float:
    if distance == 0:
        return math.inf
    return 0.0 if abs(distance) >= 1 else cluster_size * math.log(alpha) / math.log1p(-abs(distance))
