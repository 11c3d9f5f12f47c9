"""What data say about a claim: a test with its numbers, and the items that would settle an open one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Test:
    """What the data say about a claim of the form "the mean change is above a bound"."""

    __test__ = False  # pytest would otherwise collect it where a test module imports it

    value: float
    """The mean change that was seen."""
    z: float
    """Distance from the bound in standard errors; positive speaks for the claim."""
    p_value: float
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


def items_needed(n: int, z: float, limit: float) -> float:
    """Items at which a statistic, which grows with the root of their number, reaches its limit on the side it is on; infinite at zero."""
    return math.inf if z == 0 else n * (limit / z) ** 2


def largest(needed: Sequence[float], n: int) -> int | None:
    """The largest of several numbers of items as a whole one above `n`; None for an infinite one."""
    most = max(needed)
    # The rounding guard: 12.000000001 items are 12.
    return max(n + 1, math.ceil(most - 1e-9)) if math.isfinite(most) else None
