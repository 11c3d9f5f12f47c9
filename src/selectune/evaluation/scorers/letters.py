"""The scorer of multiple choice: which option's letter an output settles on.

It reads decoded text, so it does not matter here that a letter has one token id at the start of a line and another behind a space ("C" and
" C"); a comparison of likelihoods must take the ids that the chat template really leads to, and `selectune.evaluation.likelihood` encodes
every choice behind the whole prompt for that reason. A letter alone tells nothing of the other form.
"""

from __future__ import annotations

import re

from selectune.evaluation.scorers.reference import Reference, are_letters, letters, needed, normalise
from selectune.evaluation.scorers.text import holds

_CUE = re.compile(
    r"\b(?:options?|answers?|choices?|letters?)(?:\s+(?:is|would\s+be|should\s+be))?\s*[:=]?\s*[(\[\"'*]*(?P<letter>[A-Za-z])(?![\w'’])",
    re.IGNORECASE,
)
_ENDS = re.compile(r"\s*(?:[.,;:!)\]\"'*]|\Z)")
_LEADING = re.compile(r"\A\s*[(\[\"'*]*(?P<letter>[A-Za-z])\s*(?:[)\].:,\"'*]+(?:\s|\Z)|\Z)")
_BRACKETED = re.compile(r"[(\[](?P<letter>[A-Za-z])[)\]]")
_LONE = re.compile(r"(?<![\w'’.])(?P<letter>[A-Z])(?![\w'’])")


def letter(output: str, reference: Reference) -> float:
    """1 where the output settles on the right option's letter: "C", "(c)", "C. Cardinal", "I think it is a Cardinal, option C", or the
    option's own words.

    The right letter is an answer that is a letter ("C", "C. Cardinal") or, with ``choices``, the letter of the choice that equals it.
    Where `choices` are letters themselves, `options` are the words.
    """
    right = {_right_letter(answer, reference.choices) for answer in reference.answers}
    return float(find_letter(output, reference.options or reference.choices) in right)


def find_letter(output: str, choices: tuple[str, ...] = ()) -> str | None:
    """The option that an output settles on, as a capital letter; None where it settles on none.

    The first rule that fits decides: a letter that leads ("C", "(C) …", "c. …"); the last one after "option", "answer", "choice" or
    "letter"; the only one in brackets; the only lone capital other than the words "A" and "I"; the only choice whose words the output
    holds. With `choices`, letters beyond them do not count.
    """
    allowed = set(letters(len(choices) or 26))
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


def _letter_of_words(output: str, choices: tuple[str, ...]) -> str | None:
    """The letter of the only choice that the output holds; of "wren" and "house wren" the longer one alone counts."""
    if are_letters(choices):
        return None  # "a" in "a bird" is no option A
    text = normalise(output)
    held = [choice for choice in map(normalise, choices) if choice and holds(text, choice)]
    longest = [choice for choice in held if not any(choice != other and holds(other, choice) for other in held)]
    if len(set(longest)) != 1:
        return None
    return chr(ord("A") + [normalise(choice) for choice in choices].index(longest[0]))


def _right_letter(answer: str, choices: tuple[str, ...]) -> str:
    same = [index for index, choice in enumerate(choices) if normalise(choice) == normalise(answer)]
    if len(same) == 1:
        return chr(ord("A") + same[0])
    leading = _LEADING.match(answer)
    found: str | None = leading["letter"].upper() if leading else None
    return needed(found, answer, "an option's letter")
