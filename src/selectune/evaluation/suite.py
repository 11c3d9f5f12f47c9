"""What is measured: a task is records, a way to ask and a scorer; a suite is several tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from selectune.errors import DataError, InputError
from selectune.evaluation.scorers import OVER_TASK, Reference, Scorer, check_scorer, f1, scorer, scorer_name
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
CLOSED = 32
"""Most different answers of a task that count as a closed set."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One skill to measure.

    Raises DataError for no records, for one without an id (two of one id are refused by `Records`), for a record whose prompt asks nothing
    or that has no answer, and for a ``choice`` record whose answer is not among its choices; NoMatch for an unknown scorer, MissingPackage
    for one whose package is not installed; InputError for an unknown kind.
    """

    name: str
    records: Records
    kind: Kind = "generate"
    scorer: str | Scorer = "exact"
    """A name from `SCORERS` or a function ``(output, reference) -> score in [0, 1]``; ``perplexity`` and ``caption`` have their own."""
    max_new_tokens: int = 8
    role: Literal["target", "held-out"] = "held-out"
    likelihoods: bool = False
    """For ``generate``: also rank what each record may be answered with by likelihood (`answers_offered`) and keep that reading in
    ``extra["choice"]``. What the first reading lost and this one kept is a shift of format or of answers,
    not of knowledge (`selectune.evaluation.readings`)."""
    further: tuple[str, ...] = ()
    """More scorers for the same outputs, by name; `selectune.evaluation.rescoring` applies them. What is measured is the same without."""

    def __post_init__(self) -> None:
        where = f"task {self.name}"
        if self.kind not in KINDS:
            raise InputError(f'"{self.kind}" is no kind of task', where=where, then=f"Use one of: {', '.join(KINDS)}.")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}", where=where, then="Use 1 or more.")
        for name in (self.scorer, *self.further):
            check_scorer(name)
        if not len(self.records):
            raise DataError("it has no records", where=where, then="Check its source, its split and what was dropped.")
        for number, record in enumerate(self.records, 1):
            if not record.id.strip():
                raise DataError(f"record {number} has no id", where=where, then="Give every record an id of its own.")
        for record in self.records:
            _check(record, self.kind, where=where)
            if self.kind == "choice":
                answer_index(record, where=where)
        if self.likelihoods:
            for record, choices in zip(self.records, answers_offered(self.records, where=where), strict=True):
                if choices:
                    answer_index(record, where=where, choices=choices)

    @cached_property
    def judge(self) -> Scorer:
        """What scores an output: `scorer`, made for this task's records where it needs them; a caption's is token F1."""
        return f1 if self.kind == "caption" else scorer(self.scorer, self.references if self.scorer in OVER_TASK else ())

    @property
    def references(self) -> tuple[Reference, ...]:
        """What was right, for every record."""
        return tuple(Reference.of(record) for record in self.records)

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
    return _texts(record, "choices")


def _texts(record: Record, name: str) -> tuple[str, ...]:
    return tuple(str(one) for one in record.meta.get(name) or ())


def score(judge: Scorer, record: Record, output: str, *, where: str) -> float:
    """What the scorer says of an output. Raises DataError, naming the record, for an answer it cannot read and a score outside 0..1."""
    place = f'{where}: record "{record.id}"'
    try:
        found = float(judge(output, Reference.of(record)))
    except DataError as error:
        raise DataError(error.what, where=place, then=error.then) from error
    if not 0 <= found <= 1:
        raise DataError(f"its score is {found}, outside 0 to 1", where=place, then="Correct the scorer.")
    return found


def cluster_of(record: Record) -> str:
    """What samples that are not independent share: ``meta["cluster"]``, else the picture, else the record itself."""
    cluster = record.meta.get("cluster")
    if cluster is None:
        cluster = record.pictures[0].digest if record.pictures else record.id
    return str(cluster)


def _check(record: Record, kind: Kind, *, where: str) -> None:
    """Raises DataError where a record's prompt asks nothing, or there is no answer to score by."""
    place = f'{where}: record "{record.id}"'
    if kind == "perplexity":
        return
    if not any(message.text.strip() for message in record.prompt if message.role == "user"):
        raise DataError("its prompt asks nothing", where=place, then="Put the question into the user's turn, or give one with `prompt`.")
    if not record.answer.strip() and not any(str(answer).strip() for answer in record.meta.get("answers") or ()):
        raise DataError("it has no right answer", where=place, then="Give it an answer, or take it out.")


def answers_offered(records: Sequence[Record], *, where: str) -> list[tuple[str, ...]]:
    """For each record what may be ranked as its answer: its choices, else its ``meta["ranked"]``, nothing for a record without either.

    Where no record of the task has either, every answer of the task, in order, if there are at most `CLOSED`; raises DataError where there
    are more, or a single one.
    """
    if any(choices_of(record) or "ranked" in record.meta for record in records):
        return [choices_of(record) or _texts(record, "ranked") for record in records]
    every = tuple(sorted({record.answer.strip() for record in records if record.answer.strip()}))
    if not 2 <= len(every) <= CLOSED:
        place = f'{where}: record "{records[0].id}"'
        what = f"it has no choices, and the task has {len(every)} different answers, which is no closed set of 2 to {CLOSED}"
        raise DataError(what, where=place, then='Give its meta a "choices" list, or measure the task without likelihoods.')
    return [every] * len(records)


def answer_index(record: Record, *, where: str, choices: Sequence[str] | None = None) -> int:
    """Which of a record's choices is right: the one that equals its answer, whitespace aside. Raises DataError where none or several do.

    `choices`: in place of the record's own.
    """
    choices = choices_of(record) if choices is None else choices
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
