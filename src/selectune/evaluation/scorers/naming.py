"""Scorers by the name that a recipe or a task gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec

from selectune.errors import InputError, MissingPackage, NoMatch
from selectune.evaluation.scorers.answers import short_answer, yes_no
from selectune.evaluation.scorers.letters import letter
from selectune.evaluation.scorers.numbers import final_number, number, relaxed
from selectune.evaluation.scorers.overlap import bleu, cider
from selectune.evaluation.scorers.reference import Reference, Scorer
from selectune.evaluation.scorers.text import anls, contains, exact, f1
from selectune.evaluation.scorers.times import clock, clock_hour, clock_minute, clock_near
from selectune.evaluation.scorers.vqa import vqa

SCORERS: Mapping[str, Scorer] = {
    "exact": exact,
    "contains": contains,
    "letter": letter,
    "number": number,
    "final-number": final_number,
    "relaxed": relaxed,
    "yes-no": yes_no,
    "short-answer": short_answer,
    "clock": clock,
    "clock-near": clock_near,
    "clock-hour": clock_hour,
    "clock-minute": clock_minute,
    "anls": anls,
    "vqa": vqa,
    "f1": f1,
    "bleu": bleu,
}
"""Scorers of one output and one reference."""
OVER_TASK: Mapping[str, Callable[[Sequence[Reference]], Scorer]] = {"cider": cider}
"""Scorers that are made for a task's references."""

_PACKAGES = {"bleu": "sacrebleu", "cider": "pycocoevalcap"}


def scorer(name: str | Scorer, references: Sequence[Reference] = ()) -> Scorer:
    """The scorer of that name, made for a task's `references` where it needs them, or the function itself.

    Raises NoMatch for an unknown name, with near ones, and MissingPackage where the scorer's package is not installed.
    """
    if callable(name):
        return name
    check_scorer(name)
    return SCORERS[name] if name in SCORERS else OVER_TASK[name](references)


def check_scorer(name: str | Scorer) -> None:
    """Raises what `scorer` raises, before there are references."""
    if callable(name):
        return
    known = (*SCORERS, *OVER_TASK)
    if name not in known:
        near = get_close_matches(name, known)
        hint = f"Did you mean {near[0]}?" if near else f"Use one of: {', '.join(known)}."
        raise NoMatch(f'"{name}" is no scorer', where="scorer", then=hint)
    package = _PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        then = "Install it: pip install 'selectune[captions]', or use the scorer f1."
        raise MissingPackage(f"{name} needs {package}", where="scorer", then=then)


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
