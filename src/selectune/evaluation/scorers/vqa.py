"""VQA soft accuracy: how many of several people gave the answer, after the normalisation of the VQA challenge's server (EvalAI)."""

from __future__ import annotations

import math
import re

from selectune.errors import DataError
from selectune.evaluation.numerals import SMALL
from selectune.evaluation.scorers.reference import Reference

FEWEST = 4
"""Of people asked: each is compared with the others, of whom three have to agree for the whole point."""

_DIGITS = {word: str(value) for word, value in SMALL.items() if value <= 10} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
# Contractions that people type without their apostrophes; a word that is another one without it ("well", "its") is not among them.
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll"
    " how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't shan't"
    " she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's"
    " something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas"
    " wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll"
    " why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)


def _typed(word: str) -> list[str]:
    """The word with one apostrophe left out, each in its turn."""
    return [word[:at] + word[at + 1 :] for at, character in enumerate(word) if character == "'"]


_CONTRACTIONS = {typed: word for word in _CONTRACTED.split() for typed in _typed(word)}


def vqa(output: str, reference: Reference) -> float:
    """The mean over people of min(1, others who gave this answer / 3), after `plain`: the metric of VQAv2 and TextVQA.

    The people's answers are ``meta["answers"]``, as many times as they were given. Raises DataError for fewer than four, with whom no
    answer could score 1. Source: Antol et al. (2015), arXiv 1505.00468, each person left out in turn as the challenge's server does.
    """
    given = reference.meta.get("answers")
    people = [plain(str(answer)) for answer in given] if isinstance(given, list | tuple) else []
    if len(people) < FEWEST:
        then = f"Give `answers`, one for each person and at least {FEWEST}, or use the scorer exact."
        raise DataError(f"it has the answers of {len(people)} people", where="scorer", then=then)
    said = plain(output)
    agreeing = people.count(said)
    scores = [min(1.0, (agreeing - (answer == said)) / 3) for answer in people]
    return math.fsum(scores) / len(scores)


def plain(text: str) -> str:
    """The text as the VQA server compares it: lower case, small numbers as digits, no articles, no punctuation, contractions with their
    apostrophes.

    A mark that stands beside a space anywhere in the text goes, and any other becomes a space.

    >>> plain("The two dogs' well-known Bowl, isnt it?")
    "2 dogs' well known bowl isn't it"
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_marks(text.replace("\n", " ").replace("\t", " ").strip())
    found = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in found if word not in _ARTICLES)


def _without_marks(text: str) -> str:
    found = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space else " ")
    return _FULL_STOP.sub("", found)
