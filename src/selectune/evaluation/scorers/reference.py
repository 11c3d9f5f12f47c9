"""What a scorer is given: what was right, and the ways of writing that never matter."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from selectune.errors import DataError

if TYPE_CHECKING:
    from selectune.records import Record

Known = TypeVar("Known")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What was right: the part of a record that a scorer may look at. Raises DataError for no answer at all."""

    answers: tuple[str, ...]
    """At least one; any of them is right."""
    choices: tuple[str, ...] = ()
    """The options that were offered, in order: the first is A. Letters alone, where the question lists them and asks for one."""
    options: tuple[str, ...] = ()
    """The words behind `choices` that are letters; empty where they are not known."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The record's meta, for scorers of your own."""

    def __post_init__(self) -> None:
        if not self.answers:
            raise DataError("it has no right answer", where="scorer", then="Give it an answer, or take it out.")

    @classmethod
    def of(cls, record: Record) -> Reference:
        """The reference of a record: its last assistant turn and ``meta["answers"]``, each once; ``meta["choices"]``, and
        ``meta["options"]`` where there are as many."""
        answers = (record.answer, *(str(answer) for answer in record.meta.get("answers") or ()))
        choices, options = (_texts(record.meta.get(name)) for name in ("choices", "options"))
        if len(options) != len(choices) or not are_letters(choices):
            options = ()
        return cls(answers=tuple(dict.fromkeys(answers)), choices=choices, options=options, meta=record.meta)


Scorer = Callable[[str, Reference], float]


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()


def letters(count: int) -> tuple[str, ...]:
    """The letters of so many options: A, B, C …"""
    return tuple(chr(ord("A") + index) for index in range(count))


def are_letters(choices: tuple[str, ...]) -> bool:
    """Whether choices are nothing but the letters A, B, C … in order."""
    return bool(choices) and choices == letters(len(choices))


def normalise(text: str) -> str:
    """The text in NFKC and lower case, white space runs as one space, without one final period.

    >>> normalise("  A  Cardinal. ")
    'a cardinal'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".").rstrip()


def needed(value: Known | None, answer: str, what: str) -> Known:
    """The value that was read from a record's answer. Raises DataError where there is none."""
    if value is None:
        raise DataError(f'the answer "{answer}" is not {what}', where="scorer", then="Correct the record, or choose another scorer.")
    return value
