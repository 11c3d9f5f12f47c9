"""What a task is: where its rows are, what is asked of each, what was right, and the scorer. Data, read from a short YAML file.

Nothing here reads rows, or needs torch: see `selectune.evaluation.tasks.loading`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from selectune.errors import NoMatch
from selectune.evaluation.scorers import OVER_TASK, SCORERS, check_scorer
from selectune.recipe.basis import Named, Part, Patterns, listed

PLACE = re.compile(r"\{([A-Za-z_][\w/]*)\}")
"""A place in a prompt or a part: the name of a column, of a part, or ``question`` or ``options``."""
_PICTURE, _TURNS = ("image", "images"), ("messages", "conversations", "prompt", "completion", "text")
_ASKED = ("question", "answer", "label", "answers", "choices", "options", "ranked")
RESERVED = frozenset(("id", *_PICTURE, *_TURNS, *_ASKED, "cluster", "split"))
"""Names that mean something in a record; no other column is kept under one."""

Cleaning = Literal["strip", "no-image", "capitalise"]
"""``strip``: white space at both ends goes. ``no-image``: so do the places for pictures, ``<image>``. ``capitalise``: the first letter
large, the others small, as lmms-eval writes TextVQA's questions."""


class Origin(Part):
    """The data set that a task is made of."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Its id on the Hugging Face hub."""
    config: str | None = None
    """Its configuration there, which is a folder in a local copy too."""
    split: str = "test"


class Question(Part):
    """The column that holds the question, and what is done to its text. A plain string is the column."""

    column: str
    clean: Annotated[tuple[Cleaning, ...], BeforeValidator(listed)] = ()

    @model_validator(mode="before")
    @classmethod
    def _plain_column(cls, value: object) -> object:
        return {"column": value} if isinstance(value, str) else value


class Choices(Part):
    """The options of a question: in columns, or in the question's own text."""

    columns: Patterns = ()
    """One column with the list of them, or one column for each."""
    letters: int | None = Field(default=None, ge=2, le=26)
    """So many stand in the question already, under the letters A, B, C …"""
    pattern: str | None = None
    """They stand in the question, where this expression finds each as two groups, its letter and its words; a question without has none."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("columns", "letters", "pattern") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"needs one of columns, letters and pattern, not {' and '.join(given) or 'none'}")
        if self.pattern is not None:
            _expression(self.pattern, groups=2)
        return self


class Answer(Part):
    """The column that holds the right answer, and how. A plain string is the column."""

    column: str
    form: Literal["text", "letter", "index"] = "text"
    """`text`: as it is. `letter`: the letter of a choice. `index`: its number, counted from 0."""
    pattern: str | None = None
    """The answer is what this expression's only group finds in the column."""

    @model_validator(mode="before")
    @classmethod
    def _plain_column(cls, value: object) -> object:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_group(self) -> Self:
        if self.pattern is not None:
            _expression(self.pattern, groups=1)
        return self


class TaskSpec(Part):
    """A task, as its YAML file says; `selectune.evaluation.tasks.task_of` makes the `Task` with its records."""

    name: Named
    title: str
    about: str
    """One sentence: what is asked, and of what."""
    source: Origin
    role: Literal["target", "held-out"] = "held-out"
    kind: Literal["generate", "choice", "perplexity"] = "generate"
    scorer: str | Callable[..., float] = "exact"
    """A name, or in Python a function of your own."""
    further: Patterns = ()
    """More scorers of the same outputs, by name."""
    max_new_tokens: int = Field(default=16, ge=1)
    likelihoods: bool = False
    """Also rank the choices by likelihood, for a second reading; without choices the task's own answers, where they are few."""
    ranked: Patterns = ()
    """What is ranked for a row that offers no choices and whose answer is one of these, such as yes and no; other rows have no second
    reading."""
    unranked: str = ""
    """Why the task, or a part of it, has no second reading."""
    question: Question | None = None
    prompt: str = "{question}"
    """What the model is asked, with places for ``{question}``, ``{options}`` (a line "A. …" for each choice) and the names of `parts`."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Pieces of the prompt with places for columns; one whose column is empty or not there is left out."""
    image: str | None = None
    """The column of the picture, or of a list of them; None: the task is text alone."""
    choices: Choices | None = None
    answer: Answer | None = None
    answers: str | None = None
    """The column with a list of right answers, or with one for each person who was asked."""
    text: str | None = None
    """For perplexity: the column of the text. Blank rows are left out."""
    id: str | None = None
    """The column that tells rows apart; None: what they hold."""
    cluster: str | None = None
    """The column that rows share which are not independent; None: their picture."""
    keep: Patterns = ()
    """Columns that the records keep in `meta`."""
    where: dict[str, str] = Field(default_factory=dict)
    """Only rows with these values in these columns."""
    row: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """In Python: makes of a source's row the row that the other fields speak of."""

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        faults = [*self._text_faults(), *self._prompt_faults(), *self._scorer_faults()]
        if taken := [name for name in self.keep if name in RESERVED]:
            faults.append(f"keep: {' and '.join(taken)} means something else in a record")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def asked(self) -> dict[str, Any]:
        """The fields of a `Task` that do not depend on its records."""
        return {name: getattr(self, name) for name in ("kind", "scorer", "max_new_tokens", "likelihoods", "further")}

    @property
    def lettered(self) -> bool:
        """Whether the answer that is asked for is a letter."""
        return self.choices is not None and (not self.choices.columns or "options" in PLACE.findall(self.prompt))

    def _text_faults(self) -> list[str]:
        if self.kind == "perplexity":
            return [] if self.text and not self.question else ["a perplexity needs text, and no question"]
        found = []
        if self.question is None or self.text is not None:
            found.append(f"a task of kind {self.kind} needs a question, and no text")
        if self.answer is None and self.answers is None:
            found.append("it needs an answer, or answers")
        if self.choices is None and self.kind == "choice":
            found.append("likelihoods are compared between choices, and it has none")
        if self.ranked and (not self.likelihoods or self.answer is None):
            found.append("ranked needs likelihoods: true, and one answer")
        if self.choices is None and self.answer is not None and self.answer.form != "text":
            found.append(f"an answer by {self.answer.form} needs choices")
        return found

    def _prompt_faults(self) -> list[str]:
        places = PLACE.findall(self.prompt)
        if self.kind == "perplexity":
            return []
        found = [] if places.count("question") == 1 else ["the prompt has to hold {question}, once"]
        if "options" in places and (self.choices is None or not self.choices.columns):
            found.append("{options} needs choices in columns")
        unknown = [name for name in places if name not in ("question", "options", *self.parts)]
        if unknown:
            found.append(f"{{{unknown[0]}}} is none of the prompt's places: question, options and the names of parts")
        return found

    def _scorer_faults(self) -> list[str]:
        found = []
        for name in (self.scorer, *self.further):
            if isinstance(name, str) and name not in SCORERS and name not in OVER_TASK:
                try:
                    check_scorer(name)
                except NoMatch as error:
                    found.append(f"{error.what}. {error.then}")
        return found


def _expression(text: str, *, groups: int) -> None:
    try:
        found = re.compile(text)
    except re.error as error:
        raise ValueError(f'"{text}" is no regular expression ({error})') from error
    if found.groups != groups:
        raise ValueError(f'"{text}" has {found.groups} groups where {groups} are needed')
