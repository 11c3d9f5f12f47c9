"""Texts that say the same in nearly the same words: shingles, MinHash and the Jaccard index (Broder 1997)."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LENGTH = 5
"""Bytes of one shingle."""
LEAST = 0.9
"""The Jaccard index of two texts' shingles from which they are near duplicates: "the opposite of up" and "of hot" have 0.8."""
BANDS, ROWS = 20, 6
"""A pair at `LEAST` is looked at with probability 1 - (1 - 0.9**6)**20, all but 3 in 10 million."""

_WORDS = re.compile(r"\w+")
_DIGITS = re.compile(r"\d+")
_WIDE = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Text:
    """What is compared of a text."""

    shingles: NDArray[np.uint64]
    """Sorted, each once."""
    numbers: tuple[str, ...]
    """In their order: two texts with other numbers ask something else, however alike their words."""


def plain(text: str) -> str:
    """A text without regard to case, Unicode form and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=1 << 18)
def shingled(text: str) -> Text:
    """A text's words without punctuation, in shingles of five bytes."""
    words = " ".join(_WORDS.findall(plain(text))).encode()
    data = np.frombuffer(words.ljust(LENGTH), dtype=np.uint8)
    windows = np.zeros((len(data) - LENGTH + 1, _WIDE), dtype=np.uint8)
    windows[:, :LENGTH] = np.lib.stride_tricks.sliding_window_view(data, LENGTH)
    return Text(shingles=np.unique(windows.view(np.uint64)), numbers=tuple(_DIGITS.findall(plain(text))))


def alike(left: Sequence[Text], right: Sequence[Text]) -> Iterator[tuple[int, int]]:
    """Every pair of indices whose numbers are the same and whose Jaccard index is at least `LEAST`; those that MinHash brings together."""
    keys = [[_bands(text) for text in side] for side in (left, right)]
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        where: dict[tuple[bytes, tuple[str, ...]], list[int]] = defaultdict(list)
        for j, text in enumerate(right):
            where[keys[1][j][band], text.numbers].append(j)
        for i, text in enumerate(left):
            for j in where.get((keys[0][i][band], text.numbers), ()):
                if (i, j) not in found and jaccard(text, right[j]) >= LEAST:
                    found.add((i, j))
                    yield i, j


def jaccard(left: Text, right: Text) -> float:
    """Shared shingles over all shingles of two texts, in 0 to 1."""
    shared = len(np.intersect1d(left.shingles, right.shingles, assume_unique=True))
    return shared / (len(left.shingles) + len(right.shingles) - shared)


def _bands(text: Text) -> list[bytes]:
    """The least of each of 120 hashes over the shingles, six to a band."""
    with np.errstate(over="ignore"):
        mixed = (text.shingles[None, :] ^ _SALTS[:, None]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0xD6E8FEB86659FD93)
    least = (mixed >> np.uint64(32)).min(axis=1).astype(np.uint32)
    return [least[band * ROWS : (band + 1) * ROWS].tobytes() for band in range(BANDS)]


_SALTS = np.random.default_rng(0).integers(0, 2**64, size=BANDS * ROWS, dtype=np.uint64)
