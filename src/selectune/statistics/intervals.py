"""Estimates with their intervals: shares, means with and without clusters, bootstrap, correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from selectune.errors import DataError, InputError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A measured number that travels with its count and its interval."""

    value: float
    """The estimate, in the unit of what was measured (shares for accuracies, -1 to 1 for their changes)."""
    low: float
    """Lower end of the interval; minus infinity where the data bound nothing (one value of an unbounded score)."""
    high: float
    """Upper end of the interval."""
    n: int
    """How many items the value rests on."""
    method: str
    """How the interval was made, in words."""
    label: str | None = None
    """What the value belongs to where that is itself a finding: the worst stage's or the worst task's name."""

    def to_json(self) -> dict[str, Any]:
        """`{"value", "low", "high", "n", "method"}`, and `"label"` where there is one; an infinite end becomes null."""
        ends = {"low": finite_or_none(self.low), "high": finite_or_none(self.high)}
        body: dict[str, Any] = {"value": self.value, **ends, "n": self.n, "method": self.method}
        return body if self.label is None else {**body, "label": self.label}


def finite_or_none(number: float) -> float | None:
    """The number, or None where it is infinite: JSON has no infinity."""
    return number if math.isfinite(number) else None


def proportion(successes: int, n: int, *, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson") -> Estimate:
    """A share with Wilson's score interval, or the exact one of Clopper and Pearson, which is wider and never covers too rarely.

    Raises InputError unless 0 <= successes <= n and n >= 1. Source: Brown, Cai, DasGupta (2001), Statistical Science 16:101.

    >>> proportion(8, 10).low.__round__(3)
    0.49
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n} items is no share", then="Give 0 <= successes <= n and n >= 1.")
    check_level(level)
    if method == "exact":
        ends = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="exact")
        low, high = float(ends.low), float(ends.high)
    else:
        low, high = _wilson(successes / n, n, level)
    return Estimate(value=successes / n, low=low, high=high, n=n, method="Wilson" if method == "wilson" else "Clopper-Pearson")


def flips(lost: int, n: int, *, alpha: float = 0.05) -> Estimate:
    """The negative-flip rate, items lost of all items, with the one-sided upper bound of Clopper and Pearson.

    The bound is Beta^-1(1 - alpha; lost + 1, n - lost). With no item lost of 59 the rate may still be 5 %.
    """
    exact = proportion(lost, n, level=1 - 2 * check_alpha(alpha), method="exact")
    return Estimate(value=exact.value, low=0.0, high=exact.high, n=n, method=f"Clopper-Pearson, one-sided {1 - alpha:.0%}")


def mean(values: ArrayLike, *, clusters: Sequence[str] | None = None, level: float = 0.95) -> Estimate:
    """A mean with its t interval, where values of one cluster may move together; `clusters` has one label for each value.

    SE = sqrt(G/(G-1) * sum over clusters of (sum of the deviations in the cluster)^2) / n with G - 1 degrees of freedom; G clusters of one
    value each give the usual s/sqrt(n). One cluster bounds nothing: the ends are infinite. Source: Miller (2024), arXiv 2411.00640.
    """
    numbers, codes = checked(values, clusters)
    check_level(level)
    error, groups = standard_error(numbers, codes)
    value = float(numbers.mean())
    if groups < 2:
        return Estimate(value=value, low=-math.inf, high=math.inf, n=len(numbers), method="one cluster bounds nothing")
    reach = float(stats.t.ppf((1 + level) / 2, groups - 1)) * error
    method = "t" if groups == len(numbers) else f"t, {groups} clusters"
    return Estimate(value=value, low=value - reach, high=value + reach, n=len(numbers), method=method)


def score(values: ArrayLike, *, clusters: Sequence[str] | None = None, level: float = 0.95) -> Estimate:
    """The mean score of a task, with the interval its kind of scores needs.

    Right or wrong (0 or 1): Wilson, with clusters at the effective number of items (the count divided by the design effect, Rao and Scott
    1992). Anything else: t, cut to 0..1 where all the scores lie there.
    """
    numbers, codes = checked(values, clusters)
    if is_binary(numbers):
        value = float(numbers.mean())
        effective = effective_n(numbers, codes, value * (1 - value))
        low, high = _wilson(value, effective, check_level(level))
        method = "Wilson" if codes.max() + 1 == len(codes) else f"Wilson, {effective:.1f} effective items"
        return Estimate(value=value, low=low, high=high, n=len(numbers), method=method)
    found = mean(numbers, clusters=clusters, level=level)
    if not is_bounded(numbers):
        return found
    return Estimate(value=found.value, low=max(found.low, 0.0), high=min(found.high, 1.0), n=found.n, method=found.method)


def bootstrap(
    values: ArrayLike, *, clusters: Sequence[str] | None = None, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Estimate:
    """A mean with its bias-corrected, accelerated (BCa) bootstrap interval; whole clusters are drawn.

    The same seed gives the same interval. Where every cluster has the same mean the interval has no width: a bootstrap cannot see what the
    data never show.
    """
    numbers, codes = checked(values, clusters)
    check_level(level)
    groups = int(codes.max()) + 1
    value = float(numbers.mean())
    if groups < 2:
        return Estimate(value=value, low=-math.inf, high=math.inf, n=len(numbers), method="one cluster bounds nothing")
    sums, sizes = np.bincount(codes, numbers), np.bincount(codes).astype(np.float64)
    method = f"BCa bootstrap, {draws} draws" if groups == len(numbers) else f"BCa bootstrap, {draws} draws of {groups} clusters"
    spread = np.ptp(sums / sizes)
    if spread <= 1e-12 * max(1.0, abs(value)):
        return Estimate(value=value, low=value, high=value, n=len(numbers), method=method)
    ends = stats.bootstrap(
        (sums, sizes),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=draws,
        batch=1000,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value=value, low=float(ends.low), high=float(ends.high), n=len(numbers), method=method)


def correlation(left: ArrayLike, right: ArrayLike, *, method: Literal["pearson", "spearman"] = "pearson", level: float = 0.95) -> Estimate:
    """Pearson's or Spearman's correlation with Fisher's interval; fewer than four pairs bound nothing, so the interval is -1 to 1.

    The standard error of the z-transformed value is 1/sqrt(n-3), for Spearman sqrt((1 + r^2/2)/(n-3)) (Bonett and Wright 2000,
    Psychometrika 65:23). Raises DataError for unequal lengths, fewer than two pairs, or a series that never changes: it has no correlation
    with anything.
    """
    first, second = checked(left, None)[0], checked(right, None)[0]
    check_level(level)
    if len(first) != len(second) or len(first) < 2:
        raise DataError(f"a correlation of {len(first)} with {len(second)} values", then="Give two series of one length, two or more.")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        raise DataError("a series that never changes has no correlation", then="Leave the correlation out, or measure more stages.")
    found = stats.pearsonr(first, second) if method == "pearson" else stats.spearmanr(first, second)
    value, n = float(np.clip(found.statistic, -1, 1)), len(first)
    name = f"Fisher, {method.capitalize()}"
    if n < 4:
        return Estimate(value=value, low=-1.0, high=1.0, n=n, method=f"{name}: fewer than four pairs bound nothing")
    if abs(value) == 1:
        return Estimate(value=value, low=value, high=value, n=n, method=name)
    factor = 1.0 if method == "pearson" else 1 + value**2 / 2
    reach = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(factor / (n - 3))
    low, high = math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach)
    return Estimate(value=value, low=low, high=high, n=n, method=name)


def checked(values: ArrayLike, clusters: Sequence[str] | None) -> tuple[Floats, Codes]:
    """Values as float64 and one cluster number for each, 0 to G - 1; without clusters each value is one.

    Raises DataError for no value, NaN, infinity, or another number of labels.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise DataError(f"values of shape {numbers.shape}", then="Give one row of at least one number.")
    if not np.isfinite(numbers).all():
        raise DataError(
            f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are not finite numbers", then="Look for a failed scorer."
        )
    if clusters is None:
        return numbers, np.arange(len(numbers))
    if len(clusters) != len(numbers):
        raise DataError(f"{len(clusters)} cluster labels for {len(numbers)} values", then="Give one label for each value.")
    order = {label: number for number, label in enumerate(dict.fromkeys(clusters))}
    return numbers, np.array([order[label] for label in clusters], dtype=np.int64)


def standard_error(numbers: Floats, codes: Codes) -> tuple[float, int]:
    """The cluster-robust standard error of the mean, and the number of clusters; infinite for one cluster. Formula: see `mean`."""
    groups = int(codes.max()) + 1
    if groups < 2:
        return math.inf, groups
    sums = np.bincount(codes, numbers - numbers.mean())
    return math.sqrt(groups / (groups - 1) * float(sums @ sums)) / len(numbers), groups


def effective_n(numbers: Floats, codes: Codes, variance: float) -> float:
    """How many independent values the clustered ones are worth: n over the design effect, which is never taken as less than 1.

    `variance` is that of one value if all were independent. Where the values do not vary, the design effect cannot be seen and the worst
    is taken: all values of a cluster are one (Kish: n^2 over the sum of squared cluster sizes).
    """
    n = len(numbers)
    sizes = np.bincount(codes).astype(np.float64)
    worst = n**2 / float(sizes @ sizes)
    error, groups = standard_error(numbers, codes)
    if groups == n or groups < 2 or variance <= 0:
        return worst
    effect = max(1.0, error**2 * n / variance)
    return n / effect


def is_binary(numbers: Floats) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.isin(numbers, (0.0, 1.0)).all())


def is_bounded(numbers: Floats) -> bool:
    """Whether every value lies in 0..1, as accuracies and F1 do and log-likelihoods do not."""
    return bool(((numbers >= 0) & (numbers <= 1)).all())


def check_level(level: float) -> float:
    """The confidence level, if it is one. Raises InputError."""
    if not 0 < level < 1:
        raise InputError(f"a confidence level of {level}", then="Give a share between 0 and 1, such as 0.95.")
    return level


def check_alpha(alpha: float) -> float:
    """The one-sided error rate, if it is one. Raises InputError."""
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha of {alpha}", then="Give an error rate between 0 and 0.5, such as 0.05.")
    return alpha


def _wilson(share: float, n: float, level: float) -> tuple[float, float]:
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Exact at the ends, where rounding would leave an interval that misses its own estimate.
    low = 0.0 if share == 0 else max(0.0, min(centre - reach, share))
    high = 1.0 if share == 1 else min(1.0, max(centre + reach, share))
    return low, high


def _ratio(sums: Floats, sizes: Floats, axis: int = -1) -> Floats:
    total: Floats = sums.sum(axis=axis) / sizes.sum(axis=axis)
    return total
