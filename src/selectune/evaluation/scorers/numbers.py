"""Scorers that read numbers, in digits and in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from selectune.evaluation.numerals import Number, find_numbers
from selectune.evaluation.scorers.reference import Reference, needed
from selectune.evaluation.scorers.text import exact

TOLERANCE = Decimal("0.05")
"""Of the right value, either way: relaxed accuracy."""

_BEFORE_PRONOUN = re.compile(r"\b(?:the|this|that|no|each|every|any|which|another)[\s\-]+\Z", re.IGNORECASE)
_AFTER_PRONOUN = re.compile(r"\s+(?:of|who|that|which)\b", re.IGNORECASE)
_CONCLUSION = re.compile(r"####|\banswer(?:\s+is)?\b\s*[:=]?", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(?:%|percent\b|per cent\b)", re.IGNORECASE)
_BARE = re.compile(r"[\s$€£¥~≈.,]*")


def number(output: str, reference: Reference) -> float:
    """1 where the number that the output states equals the answer's: "stones: 12" is 12, "sixteen" is 16, "3.5" is not 35, "2.0" is 2.

    Of several numbers the first counts; ordinals do not ("the 2nd"), nor "one" where it stands for a thing ("the one on the left", "no
    one"). Units are not compared: "12 cm" is 12.
    """
    return _equal(output, reference, find_number)


def final_number(output: str, reference: Reference) -> float:
    """1 where the number that a worked answer ends in equals the answer's own: the first one behind the last "####" or "answer is", else
    the last one of all. For problems whose working is written out, such as GSM8K's."""
    return _equal(output, reference, find_final_number)


def relaxed(output: str, reference: Reference) -> float:
    """ChartQA's relaxed accuracy: 1 within 5 % of an answer that is a number, else 1 where the words are equal as `exact` has it.

    The output's number is the only one that it states ("It is 25." is 25; "25 in 2010" is none). A per cent is taken as it is written and
    as a hundredth: 25 % is 25, and 0.25. Zero has to be met exactly. Source: Methani et al. (2020) and Masry et al. (2022), arXiv
    2203.10244. A year is a number too, and 2009 is within 5 % of 2010.
    """
    return max(_relaxed(output, answer) for answer in reference.answers)


def find_number(text: str) -> Decimal | None:
    """The first number that a text states as an amount; see `number`."""
    amounts = _amounts(text)
    return amounts[0].value if amounts else None


def find_final_number(text: str) -> Decimal | None:
    """The number that a worked answer ends in; see `final_number`."""
    cues = list(_CONCLUSION.finditer(text))
    concluded = find_number(text[cues[-1].end() :]) if cues else None
    if concluded is not None:
        return concluded
    amounts = _amounts(text)
    return amounts[-1].value if amounts else None


def is_number(text: str) -> bool:
    """Whether a text is one number and nothing else, but for a sign of currency or per cent."""
    return _quantity(text, alone=True) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Quantity:
    value: Decimal
    percent: bool

    def within(self, right: _Quantity) -> bool:
        pairs = [(self.value, right.value), (self._share, right._share)]
        return any(abs(said - wanted) <= TOLERANCE * abs(wanted) for said, wanted in pairs)

    @property
    def _share(self) -> Decimal:
        return self.value / 100 if self.percent else self.value


def _relaxed(output: str, answer: str) -> float:
    right = _quantity(answer, alone=True)
    if right is None:
        return exact(output, Reference(answers=(answer,)))
    said = _quantity(output, alone=False)
    return float(said is not None and said.within(right))


def _quantity(text: str, *, alone: bool) -> _Quantity | None:
    """The only number of a text; `alone`: only where there is nothing else in it."""
    amounts = _amounts(text)
    if len({found.value for found in amounts}) != 1:
        return None
    found = amounts[0]
    percent = _PERCENT.match(text, found.end)
    rest = text[: found.start] + text[percent.end() if percent else found.end :]
    if alone and _BARE.fullmatch(rest) is None:
        return None
    return _Quantity(value=found.value, percent=percent is not None)


def _equal(output: str, reference: Reference, find: Callable[[str], Decimal | None]) -> float:
    said = find(output)
    rights = {needed(find(answer), answer, "a number") for answer in reference.answers}
    return float(said is not None and said in rights)


def _amounts(text: str) -> list[Number]:
    return [found for found in find_numbers(text) if not found.ordinal and not _is_pronoun(text, found)]


def _is_pronoun(text: str, found: Number) -> bool:
    if text[found.start : found.end].casefold() != "one":
        return False
    return _BEFORE_PRONOUN.search(text[: found.start]) is not None or _AFTER_PRONOUN.match(text[found.end :]) is not None
