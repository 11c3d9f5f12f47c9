"""What every part of a result is made of: frozen documents, numbers that JSON can hold, and pictures that are data.

Every document reads plain objects too (`from_attributes`), so that a `gates.Verdict` or a `statistics.Estimate` is passed as it is:
`Verdict.model_validate(verdict)`. A score that is not a number (nothing was measured) is `None`, as JSON has no NaN.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from selectune.delta.files import replacing
from selectune.errors import StorageError

_PICTURE = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _picture(value: str | None) -> str | None:
    if value is not None and not _PICTURE.fullmatch(value):
        raise ValueError(f"a picture must be a base64 data URL of a PNG, JPEG, WebP or GIF, not {value[:40]!r}")
    return value


Real = Annotated[float | None, BeforeValidator(_finite)]
"""A finite number, or None where nothing was measured."""

PictureUrl = Annotated[str | None, BeforeValidator(_picture)]
"""A data URL of a picture; nothing else can come into a report as one."""


class Document(BaseModel):
    """A frozen part of a result; unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Estimate(Document):
    """A measured number with its 95 % interval and the count that it rests on."""

    value: Real
    low: Real = None
    high: Real = None
    n: int
    method: str = ""
    """How the interval was made, in words, for example "paired t"."""
    label: str | None = None
    """What the value belongs to where that is itself a finding: the worst stage or the worst task."""


def write_whole(path: Path, text: str) -> Path:
    """Write `text` beside `path`, then rename: a reader sees the old file or the new one, never a half.

    Lone surrogates, which UTF-8 cannot hold, are written as question marks. Raises StorageError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror})", where=str(path), then="Free space, or choose another folder."
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))
    return path
