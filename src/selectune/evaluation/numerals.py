"""Numbers in English text, in digits and in words.

"sixteen" is 16 and never 6; "3.5" is one number; "1,234" is one and "12,34" are two; "two hundred and five", "1.5 million", "minus three
point two".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

SMALL = {word: value for value, word in enumerate((*_UNITS, *_TEENS))} | {word: 10 * value for value, word in enumerate(_TENS, start=2)}
"""Words for 0 to 19 and the tens up to 90."""
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
NUMBER_WORDS = frozenset(SMALL) | frozenset(SCALES)

_DIGITS = re.compile(
    r"""(?<![^\W_])(?<![0-9]\.)                                     # not inside a word, nor after "1.2."
        (?P<sign>(?<![\w.)\]])[-−+])?                               # "3-5" is no negative five
        (?P<body>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?     # 1,234.5
                |[0-9]+(?:\.[0-9]+)?|\.[0-9]+)                      # 12  3.5  .5
        (?P<power>[eE][+-]?[0-9]{1,3}(?!\w))?
        (?P<ordinal>(?:st|nd|rd|th)\b)?
        (?P<scale>\s+(?:hundred|thousand|million|billion)\b)?""",
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")
_JOIN = re.compile(r"[\s\-‐‑]+\Z")
_JOIN_AND = re.compile(r"(?:[\s\-‐‑]+|,\s*)(?:and\s+)?\Z", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One number where it stands in a text: ``text[start:end]``."""

    value: Decimal
    start: int
    end: int
    words: bool
    """Written in words."""
    ordinal: bool = False
    """In digits, as "3rd"."""


def find_numbers(text: str) -> list[Number]:
    """Every number in the text, in order, those in words included; ordinals in words ("third") are no numbers here.

    >>> [str(number.value) for number in find_numbers("sixteen of 3.5 or minus two hundred and five")]
    ['16', '3.5', '-205']
    """
    found = [*_in_digits(text), *_in_words(text)]
    return sorted(found, key=lambda number: number.start)


def _in_digits(text: str) -> Iterator[Number]:
    for match in _DIGITS.finditer(text):
        value = Decimal(match["body"].replace(",", "") + (match["power"] or ""))
        if match["scale"] and not match["ordinal"]:
            value *= SCALES[match["scale"].strip().lower()]
        negative = match["sign"] in ("-", "−")
        yield Number(value=-value if negative else value, start=match.start(), end=match.end(), words=False, ordinal=bool(match["ordinal"]))


def _in_words(text: str) -> Iterator[Number]:
    words = [(match.group().casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]
    at = 0
    while at < len(words):
        reading = _Reading(text, words, at)
        if reading.number is None:
            at += 1
            continue
        yield reading.number
        at = reading.at


class _Reading:
    """Reads the longest number that starts at one word; `number` is None where none does, `at` is the word after it."""

    def __init__(self, text: str, words: list[tuple[str, int, int]], at: int) -> None:
        self.text, self.words, self.first = text, words, at
        self.at = at
        self.total = 0
        self.group = 0
        self.last = ""
        self.ceiling = 10**12
        self.number = self._read()

    def _read(self) -> Number | None:
        negative = self._word() in ("minus", "negative")
        start = self.words[self.at][1]
        if negative:
            self.at += 1
        if self._after_scale_of_digits() or (self.at > self.first and not self._joined(_JOIN)):
            return None
        if self._word() in ("a", "an") and self._word(1) in SCALES:
            self.at += 1
        while self._take():
            pass
        if not self.last:
            return None
        value = Decimal(self.total + self.group) + self._decimals()
        return Number(value=-value if negative else value, start=start, end=self.words[self.at - 1][2], words=True)

    def _word(self, ahead: int = 0) -> str:
        return self.words[self.at + ahead][0] if self.at + ahead < len(self.words) else ""

    def _joined(self, join: re.Pattern[str]) -> bool:
        """Whether only a space, a hyphen (or "and") lies between this word and the one before."""
        before = self.words[self.at - 1][2]
        return join.match(self.text, before, self.words[self.at][1]) is not None

    def _after_scale_of_digits(self) -> bool:
        """ "million" in "1.5 million" belongs to the number in digits."""
        return self._word() in SCALES and re.search(r"[0-9]\s+\Z", self.text[: self.words[self.at][1]]) is not None

    def _take(self) -> bool:
        """Adds the next word where the grammar of numbers lets it."""
        step = 1 if self.last in SCALES and self._word() == "and" else 0
        word = self._word(step)
        if word not in NUMBER_WORDS:
            return False
        if self.last:
            self.at += step
            joined = self._joined(_JOIN) if not step and self.last not in SCALES else self._joined_after_scale(step)
            if not joined or not self._may_follow(word):
                self.at -= step
                return False
        self._add(word)
        self.at += 1
        return True

    def _joined_after_scale(self, step: int) -> bool:
        before, here = self.words[self.at - 1 - step][2], self.words[self.at][1]
        return _JOIN_AND.match(self.text, before, here) is not None

    def _may_follow(self, word: str) -> bool:
        if word == "zero" or self.last == "zero":
            return False
        if word in SCALES:
            scale = SCALES[word]
            return self.last not in SCALES and 0 < self.group < 100 if scale == 100 else self.group > 0 and scale < self.ceiling
        if self.last in SCALES:
            return True
        return self.last in _TENS and word in _UNITS

    def _add(self, word: str) -> None:
        if word not in SCALES:
            self.group += SMALL[word]
        elif word == "hundred":
            self.group = 100 * max(self.group, 1)
        else:
            self.total += max(self.group, 1) * SCALES[word]
            self.group, self.ceiling = 0, SCALES[word]
        self.last = word

    def _decimals(self) -> Decimal:
        """Digits read out after "point"."""
        if self._word() != "point" or self._word(1) not in _UNITS:
            return Decimal(0)
        self.at += 1
        digits = ""
        while self._word() in _UNITS:
            digits += str(SMALL[self._word()])
            self.at += 1
        return Decimal(f"0.{digits}")
