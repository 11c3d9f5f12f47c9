"""What the model is inclined to say, whatever its scores: the probability of classes of tokens while it captions pictures.

A model that was taught to count may put numbers into everything; that shows here before, and beside, its scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "CLASSES": "tokens",
    "TokenClass": "tokens",
    "number_tokens": "tokens",
    "token_class": "tokens",
    "probe_class": "captioning",
    "probe_numbers": "captioning",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"selectune.probes.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
