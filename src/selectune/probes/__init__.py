"""What the model is inclined to say, whatever its scores: the probability of classes of tokens while it captions pictures.

A model that was taught to count may put numbers into everything; that shows here before, and beside, its scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectune.offers import offering
from selectune.probes.readings import Caption, NumberReading, correlation

if TYPE_CHECKING:
    from selectune.probes.captioning import probe_class, probe_numbers
    from selectune.probes.tokens import CLASSES, TokenClass, number_tokens, token_class

__all__ = [
    "CLASSES",
    "Caption",
    "NumberReading",
    "TokenClass",
    "correlation",
    "number_tokens",
    "probe_class",
    "probe_numbers",
    "token_class",
]

__getattr__ = offering(
    __name__,
    {
        "tokens": ("CLASSES", "TokenClass", "number_tokens", "token_class"),
        "captioning": ("probe_class", "probe_numbers"),
    },
)
