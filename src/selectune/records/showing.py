"""One encoded record as a person reads it: the sample that `plan` prints before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from selectune.records.collating import IGNORED

OPEN, CLOSE = "⟦", "⟧"
"""Around the labelled parts of `Shown.text`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One decoded sample, for a person to look at before anything is trained."""

    record_id: str
    text: str
    """The decoded ids; the labelled parts stand between ⟦ and ⟧, a run of image tokens is written once with its count."""
    tokens: int
    supervised: int
    pixels: Mapping[str, tuple[int, ...]]
    """Shape of each pixel input."""
    pictures: tuple[str, ...]
    end_of_turn: str | None
    """The token that is labelled behind the words; None: the template writes none, and the model does not learn where to stop."""


def marked(input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase, image_token: str | None) -> str:
    """The decoded ids with the labelled parts between `OPEN` and `CLOSE`; a run of image tokens is written once with its count."""
    pieces: list[str] = []
    run: list[int] = []
    labelled = False
    for token, label in zip(input_ids, labels, strict=True):
        if (label != IGNORED) != labelled:
            pieces += [_decoded(run, tokenizer, image_token), CLOSE if labelled else OPEN]
            run, labelled = [], not labelled
        run.append(token)
    return "".join([*pieces, _decoded(run, tokenizer, image_token), CLOSE if labelled else ""])


def _decoded(ids: list[int], tokenizer: PreTrainedTokenizerBase, image_token: str | None) -> str:
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    if image_token is None:
        return text
    return re.sub(f"(?:{re.escape(image_token)}){{2,}}", lambda run: f"{image_token}×{run.group().count(image_token)}", text)
