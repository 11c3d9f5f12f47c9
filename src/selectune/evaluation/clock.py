"""Times of day in English text, on the face of a clock: twelve hours, morning and afternoon alike."""

from __future__ import annotations

import re

from selectune.evaluation.numerals import find_numbers

FACE = 720
"""Minutes on the face of a clock."""

_ONES = "one|two|three|four|five|six|seven|eight|nine"
_TEENS = "ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
_COUNT = rf"(?:[0-9]{{1,2}}|(?:twenty|thirty|forty|fifty)(?:[\s\-]+(?:{_ONES}))?|{_ONES}|{_TEENS})"
_DIGITAL = re.compile(r"(?<![0-9.:])([0-9]{1,2})\s?[:.h]\s?([0-9]{2})(?![0-9])(?!\.[0-9])", re.IGNORECASE)
_PHRASE = re.compile(
    rf"\b(?P<count>half|(?:a\s+)?quarter|{_COUNT})(?:\s+minutes?)?\s+(?P<way>past|after|to|before|till|until)\s+(?P<hour>{_COUNT}|noon|midday|midnight)\b",
    re.IGNORECASE,
)
_FULL = re.compile(rf"\b(?P<hour>{_COUNT})(?:\s*o\s?['’`]?\s?clock\b|\s*[ap]\.?m\b)", re.IGNORECASE)
_NAMED = re.compile(r"\b(?:noon|midday|midnight)\b", re.IGNORECASE)
_READ_OUT = re.compile(rf"\b(?P<hour>{_COUNT})[\s\-]+(?:oh?[\s\-]+(?P<few>{_ONES})|(?P<minute>{_COUNT}))\b", re.IGNORECASE)


def find_time(text: str) -> int | None:
    """The first time that the text states, in minutes from twelve o'clock (0 to 719); None where it states none.

    "12:05", "00:05" and "five past twelve" are 5; "10.30", "10:30 pm" and "half past ten" are 630; "3.5" is no time.

    >>> find_time("It is a quarter to four."), find_time("15:45:10"), find_time("25:99")
    (225, 225, None)
    """
    found: list[tuple[int, int, int]] = []
    for pattern, read in ((_DIGITAL, _digital), (_PHRASE, _phrase), (_FULL, _full), (_NAMED, _named), (_READ_OUT, _read_out)):
        for match in pattern.finditer(text):
            minutes = read(match)
            if minutes is not None:
                found.append((match.start(), -match.end(), minutes % FACE))
                break
    return min(found)[2] if found else None


def _count(text: str) -> int:
    return int(find_numbers(text)[0].value)


def _on_face(hour: int, minute: int) -> int | None:
    return hour * 60 + minute if hour <= 24 and minute < 60 else None


def _digital(match: re.Match[str]) -> int | None:
    return _on_face(int(match[1]), int(match[2]))


def _phrase(match: re.Match[str]) -> int | None:
    count, hour = match["count"].lower(), match["hour"].lower()
    minutes = 30 if count == "half" else 15 if count.endswith("quarter") else _count(count)
    start = _on_face(0 if hour in ("noon", "midday", "midnight") else _count(hour), 0)
    after = match["way"].lower() in ("past", "after")
    if start is None or minutes > 59 or (count == "half" and not after):
        return None
    return start + minutes if after else start - minutes


def _full(match: re.Match[str]) -> int | None:
    return _on_face(_count(match["hour"]), 0)


def _named(match: re.Match[str]) -> int:
    return 0


def _read_out(match: re.Match[str]) -> int | None:
    """ "five thirty", "ten oh five"; "five six" and "6 15" are no times."""
    if any(character.isdigit() for character in match.group()):
        return None
    hour = _count(match["hour"])
    if match["few"]:
        return _on_face(hour, _count(match["few"])) if 1 <= hour <= 12 else None
    minute = _count(match["minute"])
    return _on_face(hour, minute) if 1 <= hour <= 12 and minute >= 10 else None
