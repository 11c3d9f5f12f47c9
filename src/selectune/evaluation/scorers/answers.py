"""Scorers of short answers: yes or no, and whatever kind of answer the record has."""

from __future__ import annotations

import re
from collections.abc import Callable

from selectune.evaluation.scorers.letters import letter
from selectune.evaluation.scorers.numbers import is_number, number
from selectune.evaluation.scorers.reference import Reference, needed, normalise
from selectune.evaluation.scorers.text import exact

_YES_NO = {"yes": True, "yeah": True, "yep": True, "true": True, "no": False, "nope": False, "false": False}


def yes_no(output: str, reference: Reference) -> float:
    """1 where output and answer say the same of yes and no: "Yes.", "yes, it is" and "true" are yes. An output that says both or neither is
    wrong."""
    rights = {needed(find_yes_no(answer), answer, "yes or no") for answer in reference.answers}
    said = find_yes_no(output)
    return float(said is not None and said in rights)


def short_answer(output: str, reference: Reference) -> float:
    """1 where the output is right, read as the answer is: by `letter` where choices are offered, by `yes_no` where the answer is yes or
    no, by `number` where it is a number and nothing else, else by `exact`. For tasks that mix kinds, such as RealWorldQA and PathVQA."""
    if reference.choices:
        return letter(output, reference)
    return max(_reader(answer)(output, Reference(answers=(answer,), meta=reference.meta)) for answer in reference.answers)


def find_yes_no(text: str) -> bool | None:
    """Whether a text says yes (True) or no (False): its first word, else the only one of the two that it holds; None for both or
    neither."""
    said = [_YES_NO[word] for word in re.findall(r"[a-z]+", text.casefold()) if word in _YES_NO]
    first = re.match(r"\W*([a-z]+)", text.casefold())
    if first and first[1] in _YES_NO:
        return _YES_NO[first[1]]
    return said[0] if len(set(said)) == 1 else None


def _reader(answer: str) -> Callable[[str, Reference], float]:
    if normalise(answer) in ("yes", "no"):
        return yes_no
    return number if is_number(answer) else exact
