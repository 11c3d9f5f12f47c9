"""Before the test: how many items a margin needs, and what so many can show."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from selectune.errors import InputError
from selectune.statistics.intervals import check_alpha
from selectune.statistics.tango import score_statistics

_UNSEEN = 1e-10
"""Tables in tails of less than this are left out of a sum over all tables."""


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


def power(margin: float, discordant: float, n: int, *, change: float = 0.0, alpha: float = 0.05) -> float:
    """The chance that Tango's test passes `margin` on `n` independent items, summed over all tables of lost and gained items.

    `discordant` is the share of items on which old and new differ, `change` the true one in the share right: the new model loses a share
    (discordant - change)/2 and gains (discordant + change)/2. With `change` at minus the margin this is the test's error rate. Raises
    InputError for shares that cannot be.

    >>> [round(power(0.02, 0.06, n), 2) for n in (500, 1000, 2000)]
    [0.56, 0.81, 0.97]
    """
    if not 0 <= discordant <= 1 or abs(change) > discordant or n < 1:
        raise InputError(f"a discordant share of {discordant} with a change of {change} on {n} items", then="|change| <= discordant <= 1.")
    if not 0 < margin < 1:
        raise InputError(f"a margin of {margin}", then="Give a share above 0 and below 1, such as 0.02 for two points.")
    limit = float(stats.norm.isf(check_alpha(alpha)))
    lost, gained = (discordant - change) / 2, (discordant + change) / 2
    b, c = (np.arange(stats.binom.ppf(_UNSEEN, n, share), stats.binom.isf(_UNSEEN, n, share) + 1) for share in (lost, gained))
    b, c = b[:, None], c[None, :]
    chances = stats.binom.pmf(b, n, lost) * stats.binom.pmf(c, np.maximum(n - b, 0), gained / (1 - lost) if lost < 1 else 0.0)
    return float(chances[score_statistics(b, c, n, -margin) >= limit].sum())
