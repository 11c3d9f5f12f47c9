"""Scorers of clock readings, on a face of twelve hours: morning and afternoon are alike."""

from __future__ import annotations

from collections.abc import Callable

from selectune.evaluation.clock import FACE, find_time
from selectune.evaluation.scorers.reference import Reference, needed


def clock(output: str, reference: Reference) -> float:
    """1 where the output states the answer's time, to the minute, on a twelve-hour face: 12:05, 00:05 and "five past twelve" are one
    time."""
    return _any(output, reference, lambda said, right: said == right)


def clock_near(output: str, reference: Reference) -> float:
    """1 where the output's time is at most one minute off, around the face: 3:59 is near 4:00. The study's "both"."""
    return _any(output, reference, near)


def clock_hour(output: str, reference: Reference) -> float:
    """1 where the hour is right: the same one on the face, or the other side of a full hour that is a minute away (3:59 for 4:00)."""
    return _any(output, reference, lambda said, right: said // 60 == right // 60 or near(said, right))


def clock_minute(output: str, reference: Reference) -> float:
    """1 where the minute hand is read within one minute, around the hour: 59 is near 0, whatever the hour."""
    return _any(output, reference, lambda said, right: min((said - right) % 60, (right - said) % 60) <= 1)


def near(said: int, right: int) -> bool:
    """Whether two times, in minutes from twelve, are at most one minute apart, around the face."""
    return min((said - right) % FACE, (right - said) % FACE) <= 1


def _any(output: str, reference: Reference, fits: Callable[[int, int], bool]) -> float:
    rights = [needed(find_time(answer), answer, "a time") for answer in reference.answers]
    said = find_time(output)
    return float(said is not None and any(fits(said, right) for right in rights))
