"""How an answer is scored: pure functions from what the model wrote and what was right to a score in [0, 1].

A recipe names a scorer by its key in `SCORERS`; Python users may give a function of their own. Where a reference has several answers, the
best one counts. A scorer reads what the answer says, not how it is put: "sixteen" is 16, "option C" is C, "five past twelve" is 12:05.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from selectune.errors import DataError, InputError, NoMatch
from selectune.evaluation.clock import FACE, find_time
from selectune.evaluation.numerals import find_numbers

if TYPE_CHECKING:
    from selectune.records import Record

Known = TypeVar("Known")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What was right: the part of a record that a scorer may look at."""

    answers: tuple[str, ...]
    """At least one; any of them is right."""
    choices: tuple[str, ...] = ()
    """The options that were offered, in order: the first is A."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The record's meta, for scorers of your own."""

    @classmethod
    def of(cls, record: Record) -> Reference:
        """The reference of a record: its last assistant turn and ``meta["answers"]``, each once."""
        answers = (record.answer, *(str(answer) for answer in record.meta.get("answers") or ()))
        choices = tuple(str(choice) for choice in record.meta.get("choices") or ())
        return cls(answers=tuple(dict.fromkeys(answers)), choices=choices, meta=record.meta)


Scorer = Callable[[str, Reference], float]


def scorer(name: str | Scorer) -> Scorer:
    """The scorer of that name, or the function itself. Raises NoMatch for an unknown name, with near ones."""
    if callable(name):
        return name
    if name not in SCORERS:
        near = get_close_matches(name, SCORERS)
        hint = f"Did you mean {near[0]}?" if near else f"Use one of: {', '.join(SCORERS)}."
        raise NoMatch(f'"{name}" is no scorer', where="scorer", then=hint)
    return SCORERS[name]


def scorer_name(name: str | Scorer) -> str:
    """A scorer's name in digests and reports: its key, or the module and name of a function."""
    if isinstance(name, str):
        return name
    qualified: str | None = getattr(name, "__qualname__", None)
    if qualified is None or "<lambda>" in qualified:
        raise InputError(
            "the scorer has no name of its own", where="scorer", then="Give a named function, so that results can be told apart."
        )
    return f"{name.__module__}.{qualified}"


def normalise(text: str) -> str:
    """The text in NFKC and lower case, white space runs as one space, without one final period.

    >>> normalise("  A  Cardinal. ")
    'a cardinal'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".").rstrip()


def exact(output: str, reference: Reference) -> float:
    """1 where the output equals an answer after `normalise`. "The cat" is not "cat"."""
    return float(normalise(output) in {normalise(answer) for answer in reference.answers})


def contains(output: str, reference: Reference) -> float:
    """1 where an answer stands in the output as whole words: "cat" is in "a black cat." but not in "category"."""
    text = normalise(output)
    return float(
        any(
            re.search(rf"(?<!\w){re.escape(normalise(answer))}(?!\w)", text) is not None
            for answer in reference.answers
            if normalise(answer)
        )
    )


def letter(output: str, reference: Reference) -> float:
    """1 where the output settles on the right option's letter: "C", "(c)", "C. Cardinal", "I think it is a Cardinal, option C", or the
    option's own words.

    The right letter is an answer that is a letter ("C", "C. Cardinal") or, with ``choices``, the letter of the choice that equals it.
    """
    right = {_right_letter(answer, reference.choices) for answer in reference.answers}
    return float(find_letter(output, reference.choices) in right)


def number(output: str, reference: Reference) -> float:
    """1 where the number that the output states equals the answer's: "stones: 12" is 12, "sixteen" is 16, "3.5" is not 35, "2.0" is 2.

    Of several numbers the first counts; ordinals do not ("the 2nd"), nor "one" where it stands for a thing ("the one on the left", "no
    one").
    """
    stated = find_number(output)
    rights = {_needed(find_number(answer), answer, "a number") for answer in reference.answers}
    return float(stated is not None and stated in rights)


def clock(output: str, reference: Reference) -> float:
    """1 where the output states the answer's time, to the minute, on a twelve-hour face: 12:05, 00:05 and "five past twelve" are one
    time."""
    return float(_minutes_apart(output, reference) == 0)


def clock_near(output: str, reference: Reference) -> float:
    """1 where the output's time is at most one minute off, around the face: 3:59 is near 4:00."""
    apart = _minutes_apart(output, reference)
    return float(apart is not None and apart <= 1)


def yes_no(output: str, reference: Reference) -> float:
    """1 where output and answer say the same of yes and no: "Yes.", "yes, it is" and "true" are yes. An output that says both or neither is
    wrong."""
    rights = {_needed(find_yes_no(answer), answer, "yes or no") for answer in reference.answers}
    said = find_yes_no(output)
    return float(said is not None and said in rights)


def f1(output: str, reference: Reference) -> float:
    """Token F1 with the nearest answer: the harmonic mean of precision and recall over words.

    Words are lower case, without punctuation and without a, an and the; each counts as often as it occurs. Two empty texts agree. Source:
    the SQuAD metric of Rajpurkar et al. (2016), whose normalisation this is.
    """
    return max(_token_f1(words(output), words(answer)) for answer in reference.answers)


SCORERS: Mapping[str, Scorer] = {
    "exact": exact,
    "contains": contains,
    "letter": letter,
    "number": number,
    "clock": clock,
    "clock-near": clock_near,
    "yes-no": yes_no,
    "f1": f1,
}
"""Scorers by the name that a recipe gives."""


_CUE = re.compile(
    r"\b(?:options?|answers?|choices?|letters?)(?:\s+(?:is|would\s+be|should\s+be))?\s*[:=]?\s*[(\[\"'*]*(?P<letter>[A-Za-z])(?![\w'’])",
    re.IGNORECASE,
)
_ENDS = re.compile(r"\s*(?:[.,;:!)\]\"'*]|\Z)")
_LEADING = re.compile(r"\A\s*[(\[\"'*]*(?P<letter>[A-Za-z])\s*(?:[)\].:,\"'*]+(?:\s|\Z)|\Z)")
_BRACKETED = re.compile(r"[(\[](?P<letter>[A-Za-z])[)\]]")
_LONE = re.compile(r"(?<![\w'’.])(?P<letter>[A-Z])(?![\w'’])")


def find_letter(output: str, choices: tuple[str, ...] = ()) -> str | None:
    """The option that an output settles on, as a capital letter; None where it settles on none.

    The first rule that fits decides: a letter that leads ("C", "(C) …", "c. …"); the last one after "option", "answer", "choice" or
    "letter"; the only one in brackets; the only lone capital other than the words "A" and "I"; the only choice whose words the output
    holds. With `choices`, letters beyond them do not count.
    """
    allowed = {chr(ord("A") + index) for index in range(len(choices) or 26)}
    leading = _LEADING.match(output)
    if leading and leading["letter"].upper() in allowed:
        return leading["letter"].upper()
    cued = [
        match["letter"].upper() for match in _CUE.finditer(output) if match["letter"] not in ("a", "i") or _ENDS.match(output, match.end())
    ]
    cued = [found for found in cued if found in allowed]
    if cued:
        return cued[-1]
    for pattern, skipped in ((_BRACKETED, ""), (_LONE, "AI")):
        found = {match["letter"].upper() for match in pattern.finditer(output)} & allowed - set(skipped)
        if len(found) == 1:
            return found.pop()
    return _letter_of_words(output, choices)


def find_number(text: str) -> Decimal | None:
    """The first number that a text states as an amount; see `number`."""
    for found in find_numbers(text):
        if not found.ordinal and not (text[found.start : found.end].casefold() == "one" and _is_pronoun(text, found.start, found.end)):
            return found.value
    return None


def find_yes_no(text: str) -> bool | None:
    """Whether a text says yes (True) or no (False): its first word, else the only one of the two that it holds; None for both or
    neither."""
    said = [_YES_NO[word] for word in re.findall(r"[a-z]+", text.casefold()) if word in _YES_NO]
    first = re.match(r"\W*([a-z]+)", text.casefold())
    if first and first[1] in _YES_NO:
        return _YES_NO[first[1]]
    return said[0] if len(set(said)) == 1 else None


def words(text: str) -> list[str]:
    """The words that `f1` compares."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


_YES_NO = {"yes": True, "yeah": True, "yep": True, "true": True, "no": False, "nope": False, "false": False}
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_BEFORE_PRONOUN = re.compile(r"\b(?:the|this|that|no|each|every|any|which|another)[\s\-]+\Z", re.IGNORECASE)
_AFTER_PRONOUN = re.compile(r"\s+(?:of|who|that|which)\b", re.IGNORECASE)


def _is_pronoun(text: str, start: int, end: int) -> bool:
    return _BEFORE_PRONOUN.search(text[:start]) is not None or _AFTER_PRONOUN.match(text[end:]) is not None


def _letter_of_words(output: str, choices: tuple[str, ...]) -> str | None:
    """The letter of the only choice that the output holds; of "wren" and "house wren" the longer one alone counts."""
    text = normalise(output)
    held = [choice for choice in map(normalise, choices) if choice and contains(text, Reference(answers=(choice,)))]
    longest = [choice for choice in held if not any(choice != other and contains(other, Reference(answers=(choice,))) for other in held)]
    if len(set(longest)) != 1:
        return None
    return chr(ord("A") + [normalise(choice) for choice in choices].index(longest[0]))


def _right_letter(answer: str, choices: tuple[str, ...]) -> str:
    same = [index for index, choice in enumerate(choices) if normalise(choice) == normalise(answer)]
    if len(same) == 1:
        return chr(ord("A") + same[0])
    leading = _LEADING.match(answer)
    found: str | None = leading["letter"].upper() if leading else None
    return _needed(found, answer, "an option's letter")


def _minutes_apart(output: str, reference: Reference) -> int | None:
    """Minutes between the output's time and the nearest answer, the short way around the face; None where the output states none."""
    rights = [_needed(find_time(answer), answer, "a time") for answer in reference.answers]
    stated = find_time(output)
    if stated is None:
        return None
    return min(min((stated - right) % FACE, (right - stated) % FACE) for right in rights)


def _token_f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


def _needed(value: Known | None, answer: str, what: str) -> Known:
    if value is None:
        raise DataError(f'the answer "{answer}" is not {what}', where="scorer", then="Correct the record, or choose another scorer.")
    return value
