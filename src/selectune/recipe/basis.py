"""What every part of a recipe is made with: frozen values, and where records come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

EMBEDDED = "embedded:"
"""A source that starts so is a skill which comes with the package: ``embedded:digits``."""


def is_task_file(task: str) -> bool:
    """Whether a task is given as a file, and not by its name."""
    return task.endswith((".yaml", ".yml"))


def listed(value: object) -> object:
    """One string stands for a list of one; a YAML list becomes a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(listed)]
Named = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
"""A name that can be a part of a file's name."""


class Part(BaseModel):
    """A frozen piece of a recipe; unknown keys and wrong types are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Part):
    """Where records come from. A plain string stands for ``Data(source=…)``."""

    source: str = ""
    """A file, a folder, or ``embedded:SKILL``. A relative path starts at the recipe's folder (for a preset: at the current one). Needed
    without `task`."""
    task: str | None = Field(default=None, min_length=1)
    """A task's name (`selectune tasks`) or YAML file: rows are read and asked as it says, from `source`, which holds its schema; without
    `source` from the hub's data set that it names."""
    split: str | None = None
    """The part of the source to read, where it has parts: train, validation, test."""
    form: str | None = None
    """The records' form; None: detected, with the reason."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Which column plays which part, where detection is wrong: ``{question: q, answer: a}``."""
    images: str | None = None
    """The folder that image paths start at; None: the source's own."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many records."""
    prompt: str | None = None
    """A question for records that have none, such as pictures alone."""
    synthetic: bool = False
    """Rendered or generated: the report says so wherever it shows them."""
    about: str = ""
    """One sentence for the report: what is asked, and where the records are from."""

    @model_validator(mode="before")
    @classmethod
    def _plain_source(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @property
    def named(self) -> str:
        """The source as people read it: without one, the task."""
        return self.source or f"task {self.task}"

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if not self.source and self.task is None:
            raise ValueError("needs a source, or a task")
        told = [name for name in ("form", "columns", "prompt") if getattr(self, name)]
        if self.task is not None and told:
            raise ValueError(f"a task says itself what {' and '.join(told)} would; take {'them' if len(told) > 1 else 'it'} out")
        return self

    @field_validator("source", "images", "task")
    @classmethod
    def _rooted(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A path that means the same from every folder, when the recipe was read from a file."""
        folder = info.context
        named = info.field_name == "task" and value is not None and not is_task_file(value)
        if not value or value.startswith(EMBEDDED) or named or not isinstance(folder, Path):
            return value
        return str((folder / Path(value).expanduser()).absolute())
