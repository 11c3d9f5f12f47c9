"""Prompts without answers, encoded so that their own positions are what is compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from selectune.errors import DataError
from selectune.network import image_token
from selectune.records.collating import IGNORED
from selectune.training.preparing import Samples

if TYPE_CHECKING:
    from selectune.models import Model
    from selectune.records import Encoded, Encoder, Record

ANY = 0
"""The label of a position that is compared: which word stands there is never looked at."""


def encode_anchors(
    model: Model, encoder: Encoder, records: Iterable[Record], positions: Literal["all", "last"], max_length: int | None
) -> Samples:
    """Each record's prompt as a sample with a label behind every position that is compared; plain text as it is.

    One padding token stands behind the prompt, for a label to be there after the last position; no pass reads it. Positions of pictures
    are no text and are left out. Records that are too long are counted and left out; DataError where none is left.
    """
    limit = max_length or getattr(model.net.config.get_text_config(), "max_position_embeddings", None)
    image = image_token(model.net)
    pad = model.tokenizer.pad_token_id or 0
    kept: list[Encoded] = []
    long = 0
    for record in records:
        sample = encoder.prompt(record) if record.prompt else encoder.encode(record)
        if limit is not None and len(sample.input_ids) >= limit:
            long += 1
        else:
            kept.append(_labelled(sample, positions, image, pad))
    if not kept:
        raise DataError(f"every one of {long} prompts is longer than {limit} tokens", where="keep.anchors", then="Give shorter ones.")
    skipped = {f"anchors: longer than {limit} tokens": long} if long else {}
    return Samples(kept=tuple(kept), skipped=skipped, lengths=tuple(len(sample.input_ids) for sample in kept))


def _labelled(sample: Encoded, positions: Literal["all", "last"], image: int | None, pad: int) -> Encoded:
    ids = sample.input_ids
    compared = [token != image for token in ids] if positions == "all" else [False] * (len(ids) - 1) + [True]
    return replace(
        sample,
        record_id=f"anchors: {sample.record_id}",
        input_ids=[*ids, pad],
        labels=[IGNORED, *(ANY if wanted else IGNORED for wanted in compared)],
        extra={name: [*values, 0] for name, values in sample.extra.items()},
    )
