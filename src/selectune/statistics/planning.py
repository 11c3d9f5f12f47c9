"""Before the test: how many items a margin needs, and what several tests together may claim."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from selectune.errors import InputError
from selectune.statistics.intervals import check_alpha, checked


def sample_size(margin: float, discordant: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Items at which an update that truly loses nothing passes `margin` with probability `power`.

    n = discordant * ((z_{1-alpha} + z_power) / margin)^2, and never fewer than `silent_size`. `discordant` is the share of items on which
    old and new differ, lost and gained together; both shares. Raises InputError for shares outside 0..1.

    >>> [sample_size(points / 100, 0.08) for points in (1, 2, 3, 5)]
    [4947, 1237, 550, 198]
    """
    if not 0 <= discordant <= 1 or not 0 < power < 1:
        raise InputError(f"a discordant share of {discordant} and a power of {power}", then="Give shares between 0 and 1.")
    least = silent_size(margin, alpha=alpha)
    z = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))
    return max(least, math.ceil(discordant * (z / margin) ** 2))


def silent_size(margin: float, *, alpha: float = 0.05) -> int:
    """Items that even an update without one changed answer needs before Tango's test passes it: z^2 (1 - margin) / margin.

    >>> silent_size(0.02), silent_size(0.01)
    (133, 268)
    """
    if not 0 < margin < 1:
        raise InputError(f"a margin of {margin}", then="Give a share above 0 and below 1, such as 0.02 for two points.")
    return math.ceil(float(stats.norm.ppf(1 - check_alpha(alpha))) ** 2 * (1 - margin) / margin)


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's adjusted p values, in the order given: reject those at most alpha and any false alarm among them has at most that chance.

    For "any alarm counts". "All must pass" needs no correction: it is an intersection-union test. Raises InputError for p outside 0..1.
    """
    values, _ = checked(p_values, None)
    if ((values < 0) | (values > 1)).any():
        raise InputError("a p value outside 0..1", then="Give probabilities.")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]
