"""What every part of a recipe is made with: frozen values, and where records come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

EMBEDDED = "embedded:"
"""A source that starts so is a skill which comes with the package: ``embedded:digits``."""


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

    source: str = Field(min_length=1)
    """A file, a folder, or ``embedded:SKILL``. A relative path starts at the recipe's folder (for a preset: at the current one)."""
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

    @field_validator("source", "images")
    @classmethod
    def _rooted(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A path that means the same from every folder, when the recipe was read from a file."""
        folder = info.context
        if value is None or value.startswith(EMBEDDED) or not isinstance(folder, Path):
            return value
        return str((folder / Path(value).expanduser()).absolute())
