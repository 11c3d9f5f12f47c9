"""What a sample is known by, and whom it is computed with, where something is worked out once for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selectune.hashing import digest

if TYPE_CHECKING:
    from selectune.records import Encoded

GROUP = 16
"""Samples that go through the model at once where each is asked for once."""


def content(sample: Encoded) -> list[Any]:
    """What goes into the model for a sample: token ids, pictures and what else there is for each token. JSON."""
    extra = sorted((name, list(values)) for name, values in sample.extra.items())
    return [list(sample.input_ids), [picture.digest for picture in sample.pictures], extra]


def sample_digest(sample: Encoded) -> str:
    """64 hex digits for `content`."""
    return digest("sample", content(sample))


def neighbours(samples: Sequence[Encoded]) -> Mapping[str, tuple[Encoded, ...]]:
    """By record id, the group of at most `GROUP` samples of like length that a sample is computed with.

    Groups do not depend on the order of training: the last bits of a product depend on its neighbours, and a resumed run must find the
    same ones.
    """
    order = sorted(range(len(samples)), key=lambda number: (len(samples[number].input_ids), number))
    groups = [tuple(samples[number] for number in order[at : at + GROUP]) for at in range(0, len(order), GROUP)]
    return {sample.record_id: group for group in groups for sample in group}
