"""What a probe found, as plain values. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selectune import statistics
from selectune.errors import DataError
from selectune.statistics import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """What the model wrote about one record, and how likely a class of tokens was while it wrote."""

    id: str
    text: str
    mean: float
    """Mean over the steps of the class's total probability, 0 to 1."""
    max: float
    """The largest of the steps."""
    steps: tuple[float, ...] = ()
    """The class's total probability at each step, the one that ended the caption included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberReading:
    """How likely number tokens are in captions, at one stage."""

    stage: str
    mean: float
    """Mean over the captions of their means."""
    low: float
    high: float
    """The ends of its 95 % t interval over captions; infinite for a single caption."""
    max_mean: float
    """Mean over the captions of their largest steps."""
    n: int
    captions: tuple[Caption, ...]

    @classmethod
    def of(cls, stage: str, captions: Sequence[Caption]) -> NumberReading:
        """The reading of these captions. Raises DataError for none."""
        if not captions:
            raise DataError(
                "there are no captions to read", where=f'probe at stage "{stage}"', then="Give the probe records with pictures."
            )
        found = statistics.mean([caption.mean for caption in captions])
        return cls(
            stage=stage,
            mean=found.value,
            low=found.low,
            high=found.high,
            max_mean=statistics.mean([caption.max for caption in captions]).value,
            n=found.n,
            captions=tuple(captions),
        )


def correlation(readings: Sequence[NumberReading], held_out: Sequence[float]) -> Estimate:
    """Pearson's correlation, over stages, of the mean number mass with the mean held-out score of the same stages.

    Raises DataError for unequal lengths, fewer than two stages, or a series that never changes. Stages of one sequence are not independent
    of each other: read the interval as a description.
    """
    return statistics.correlation([reading.mean for reading in readings], list(held_out))
