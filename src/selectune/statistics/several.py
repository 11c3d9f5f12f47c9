"""What several tests together may claim, and what several looks at the same items may spend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from selectune.errors import InputError
from selectune.statistics.intervals import Floats, check_alpha, checked

Correction = Literal["holm", "benjamini-hochberg"]
Spending = Literal["bonferroni", "pocock", "obrien-fleming"]

_NODES = 240
"""Points of the Gauss-Legendre rule in each integral; the levels agree with the published ones to their last digit from 60 on."""


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's adjusted p values, in the order given: reject those at most alpha and any false alarm among them has at most that chance.

    For "any alarm counts", such as what blocks a release. "All must pass" needs no correction: it is an intersection-union test. Raises
    InputError for p outside 0..1. Source: Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    values, order = _ordered(p_values)
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return _restored(stepped, order)


def benjamini_hochberg(p_values: ArrayLike) -> list[float]:
    """Benjamini and Hochberg's adjusted p values, in the order given: of those at most q, a share of at most q is false on average.

    For dashboards, where many tasks are watched and a false alarm costs a second look. It holds for independent and for positively
    dependent tests. Raises InputError for p outside 0..1. Source: Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57:289.
    """
    values, order = _ordered(p_values)
    count = len(values)
    stepped = np.minimum.accumulate((values[order] * count / np.arange(1, count + 1))[::-1])[::-1]
    return _restored(stepped, order)


def adjusted(p_values: ArrayLike, correction: Correction) -> list[float]:
    """The p values adjusted by the correction of that name."""
    return holm(p_values) if correction == "holm" else benjamini_hochberg(p_values)


def _ordered(p_values: ArrayLike) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.intp]]]:
    values, _ = checked(p_values, None)
    if ((values < 0) | (values > 1)).any():
        raise InputError("a p value outside 0..1", then="Give probabilities.")
    return values, np.argsort(values, kind="stable")


def _restored(stepped: Floats, order: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[float]:
    found = np.empty_like(stepped)
    found[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in found]


def look_levels(alpha: float, looks: int, spending: Spending = "bonferroni", *, seen: Sequence[float] | None = None) -> tuple[float, ...]:
    """The one-sided level of each of `looks` looks such that all together err at most a share `alpha` of the time.

    - ``bonferroni``: alpha / looks each, whatever the looks have to do with one another. The only one of the three for several updates
      that are judged on one locked set, since nothing is known of how one update's result depends on another's.
    - ``pocock`` and ``obrien-fleming``: for one update whose items grow from look to look, where `seen` is the share of the items at each
      look (evenly spaced without it). The error spent by then is alpha ln(1 + (e - 1) t), nearly even, or 2 - 2 Phi(z_{alpha/2} / sqrt t),
      nearly all at the end. The levels are those of normal statistics with independent increments, by recursive integration.

    Raises InputError for no look, and for shares that do not rise to at most 1. Source: Lan and DeMets (1983), Biometrika 70:659;
    Armitage, McPherson, Rowe (1969), J. R. Stat. Soc. A 132:235.

    >>> [round(level, 4) for level in look_levels(0.05, 4)]
    [0.0125, 0.0125, 0.0125, 0.0125]
    """
    check_alpha(alpha)
    if looks < 1:
        raise InputError(f"{looks} looks", then="Allow one look or more.")
    if spending == "bonferroni":
        return (alpha / looks,) * looks
    times = np.arange(1, looks + 1) / looks if seen is None else np.asarray(seen, dtype=np.float64)
    if times.shape != (looks,) or not 0 < times[0] <= times[-1] <= 1 or (np.diff(times) <= 0).any():
        raise InputError(f"shares {list(times)} for {looks} looks", then="Give one for each look, rising, above 0 and at most 1.")
    return _levels(times, np.array([_spent(alpha, float(time), spending) for time in times]))


def _spent(alpha: float, time: float, spending: Spending) -> float:
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * time)
    return 2 * float(stats.norm.sf(stats.norm.isf(alpha / 2) / math.sqrt(time)))


def _levels(times: Floats, spent: Floats) -> tuple[float, ...]:
    """Levels at which the chance to cross for the first time at each look is what is spent there.

    The statistic at time t is S / sqrt(t), where S is a Brownian motion; the density of S among the paths that have not crossed yet is
    carried from look to look.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    bounds = [float(stats.norm.isf(spent[0])) * math.sqrt(times[0])]
    density: Floats | None = None
    points = steps = np.empty(0)
    for k in range(1, len(times)):
        low, high = -8.5 * math.sqrt(times[k - 1]), bounds[-1]
        at = (high - low) / 2 * nodes + (high + low) / 2
        if density is None:
            density = np.asarray(stats.norm.pdf(at, scale=math.sqrt(times[0])))
        else:
            density = stats.norm.pdf(at[:, None] - points, scale=math.sqrt(times[k - 1] - times[k - 2])) @ (density * steps)
        points, steps = at, (high - low) / 2 * weights
        step = (points, density * steps, math.sqrt(times[k] - times[k - 1]), spent[k] - spent[k - 1])
        bounds.append(float(optimize.brentq(_excess, -8.0, 12.0, args=step, xtol=1e-12)))
    return tuple(float(stats.norm.sf(bound / math.sqrt(time))) for bound, time in zip(bounds, times, strict=True))


def _excess(bound: float, points: Floats, mass: Floats, spread: float, due: float) -> float:
    """The chance to be above `bound` at the next look, of the paths whose `mass` lies at `points`, less what is due."""
    return float(mass @ stats.norm.sf((bound - points) / spread)) - due
