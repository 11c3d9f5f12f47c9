"""Scorers that compare words: equal, contained, shared, or nearly spelt alike."""

from __future__ import annotations

import re
from collections import Counter

from selectune.evaluation.scorers.reference import Reference, normalise

ANLS_THRESHOLD = 0.5
"""A similarity below it counts as a wrong answer, not as a slip of reading."""

_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def exact(output: str, reference: Reference) -> float:
    """1 where the output equals an answer after `normalise`. "The cat" is not "cat"."""
    return float(normalise(output) in {normalise(answer) for answer in reference.answers})


def contains(output: str, reference: Reference) -> float:
    """1 where an answer stands in the output as whole words: "cat" is in "a black cat." but not in "category"."""
    return float(any(holds(output, answer) for answer in reference.answers))


def holds(text: str, words: str) -> bool:
    """Whether `words` stand in the text as whole words, after `normalise`; no words stand nowhere."""
    wanted = normalise(words)
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalise(text)) is not None


def f1(output: str, reference: Reference) -> float:
    """Token F1 with the nearest answer: the harmonic mean of precision and recall over words.

    Words are lower case, without punctuation and without a, an and the; each counts as often as it occurs. Two empty texts agree. Source:
    the SQuAD metric of Rajpurkar et al. (2016), whose normalisation this is.
    """
    return max(_token_f1(words(output), words(answer)) for answer in reference.answers)


def words(text: str) -> list[str]:
    """The words that `f1` compares."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def anls(output: str, reference: Reference) -> float:
    """Normalised Levenshtein similarity to the nearest answer, 0 where it is below one half: the metric of DocVQA and InfographicVQA.

    1 - distance / length of the longer text, over lower case with white space runs as one space. Its mean over a task is ANLS. Source:
    Biten et al. (2019), arXiv 1905.13648, with the threshold as the benchmark's own script applies it (one half itself still counts).
    """
    said = _spelt(output)
    best = max(_similarity(said, _spelt(answer)) for answer in reference.answers)
    return best if best >= ANLS_THRESHOLD else 0.0


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements of characters that turn one text into the other, the fewest (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def _spelt(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    return 1.0 if longer == 0 else 1 - edit_distance(a, b) / longer


def _token_f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))
