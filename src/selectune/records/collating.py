"""Encoded records of several lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from selectune.records.encoding import Encoded

IGNORED = -100
"""The label of a position that no loss is taken at."""


def collate(encodeds: Sequence[Encoded], pad_id: int, side: Literal["right", "left"] = "right") -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask`, `labels` and whatever the records carry in `extra`, each of shape (records, longest), int64.

    Padding is known by its position, never by its id: `pad_id` may be the end-of-turn token, which then stays attended to and labelled
    where it is part of a record. `side` is right for training, left for generation.
    """
    import torch

    longest = max(len(encoded.input_ids) for encoded in encodeds)
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED, **dict.fromkeys(encodeds[0].extra, 0)}
    batch = {name: torch.full((len(encodeds), longest), value, dtype=torch.int64) for name, value in fill.items()}
    for row, encoded in enumerate(encodeds):
        n = len(encoded.input_ids)
        place = slice(0, n) if side == "right" else slice(longest - n, longest)
        columns = {"input_ids": encoded.input_ids, "attention_mask": [1] * n, "labels": encoded.labels, **encoded.extra}
        for name, values in columns.items():
            batch[name][row, place] = torch.tensor(values, dtype=torch.int64)
    return batch
