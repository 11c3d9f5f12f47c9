"""What is measured: a task is records, a way to ask and a scorer; a suite is several tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from selectune.errors import DataError, InputError
from selectune.evaluation.scorers import Scorer, scorer, scorer_name
from selectune.hashing import digest

if TYPE_CHECKING:
    from selectune.records import Record, Records

Kind = Literal["generate", "choice", "perplexity", "caption"]
"""How a task asks.

``generate``: the model writes its answer, greedily, and the scorer reads it.
``choice``: the likelihoods of ``meta["choices"]`` are compared; nothing is written.
``perplexity``: how likely the assistant's words of the record are; the model is asked nothing.
``caption``: as ``generate``, scored by the token F1 with the nearest reference.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One skill to measure.

    Raises DataError for no records, for two with one id, and for a ``choice`` record whose answer is not among its choices; NoMatch for an
    unknown scorer; InputError for an unknown kind.
    """

    name: str
    records: Records
    kind: Kind = "generate"
    scorer: str | Scorer = "exact"
    """A name from `SCORERS` or a function ``(output, reference) -> score in [0, 1]``; ``perplexity`` and ``caption`` have their own."""
    max_new_tokens: int = 8
    role: Literal["target", "held-out"] = "held-out"
    likelihoods: bool = False
    """For ``generate``: also rank each record's choices by likelihood and keep that reading in ``extra["choice"]``. What the first reading
    lost and this one kept is a shift of format or of answers, not of knowledge."""

    def __post_init__(self) -> None:
        where = f"task {self.name}"
        if self.kind not in KINDS:
            raise InputError(f'"{self.kind}" is no kind of task', where=where, then=f"Use one of: {', '.join(KINDS)}.")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}", where=where, then="Use 1 or more.")
        scorer(self.scorer)
        if not len(self.records):
            raise DataError("it has no records", where=where, then="Check its source, its split and what was dropped.")
        twice = [name for name, count in Counter(record.id for record in self.records).items() if count > 1]
        if twice:
            raise DataError(
                f'{len(twice)} ids are used twice, such as "{twice[0]}"', where=where, then="Give every record an id of its own."
            )
        if self.kind == "choice" or self.likelihoods:
            for record in self.records:
                answer_index(record, where=where)

    @cached_property
    def digest(self) -> str:
        """Identity of what is measured: records, kind, scorer and length, but not the name or the role."""
        choice = {"likelihoods": True} if self.likelihoods else {}
        return digest(
            "task",
            {
                "records": self.records.digest,
                "kind": self.kind,
                "scorer": scorer_name(self.scorer),
                "max_new_tokens": self.max_new_tokens,
                **choice,
            },
        )


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are measured together. Raises InputError for two tasks of one name and for none at all."""

    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise InputError(f'two tasks are called "{twice[0]}"', where="suite", then="Give each task a name of its own.")
        if not names:
            raise InputError("it has no tasks", where="suite", then="Name at least one skill or held-out task.")

    @cached_property
    def digest(self) -> str:
        """Identity of the suite, whatever the order of its tasks."""
        return digest("suite", sorted([task.name, task.digest] for task in self.tasks))


def choices_of(record: Record) -> tuple[str, ...]:
    """The answers that a record offers, from ``meta["choices"]``; empty without."""
    return tuple(str(choice) for choice in record.meta.get("choices") or ())


def answer_index(record: Record, *, where: str) -> int:
    """Which of a record's choices is right: the one that equals its answer, whitespace aside. Raises DataError where none or several do."""
    choices = choices_of(record)
    place = f'{where}: record "{record.id}"'
    if len(choices) < 2:
        raise DataError(f"it offers {len(choices)} choices", where=place, then='Give its meta a "choices" list of two or more.')
    right = [index for index, choice in enumerate(choices) if choice.strip() == record.answer.strip()]
    if len(right) != 1:
        raise DataError(
            f'its answer "{record.answer}" is {len(right)} of its choices',
            where=place,
            then="The answer must be exactly one of the choices.",
        )
    return right[0]
