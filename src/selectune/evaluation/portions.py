"""A task asked in portions: its records in random order, measurements put together, and what several of them have in common. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from selectune.errors import DataError
from selectune.records.record import rank

if TYPE_CHECKING:
    from selectune.evaluation.measurement import Measurement
    from selectune.records import Records


def portions(records: Records, clusters: Mapping[str, str], *, seed: int, size: int) -> tuple[Records, ...]:
    """The records in an order drawn by `seed`, in portions of `size` or a few more: a cluster stays whole, and clusters are drawn.

    `clusters` maps a record's id to its cluster, as a measurement of the whole task does. The order depends on these names alone, so
    that it is the same for every model.
    """
    order = sorted(records, key=lambda record: (rank(seed, clusters[record.id]), clusters[record.id], rank(seed, record.id)))
    starts = [0]
    for index in range(1, len(order)):
        if index - starts[-1] >= size and clusters[order[index].id] != clusters[order[index - 1].id]:
            starts.append(index)
    return tuple(replace(records, items=tuple(order[start:end])) for start, end in zip(starts, [*starts[1:], len(order)], strict=True))


def joined(first: Measurement, more: Measurement) -> Measurement:
    """Both measurements of one model as one, the samples in the order in which they were asked. Raises DataError for two models."""
    if first.model_id != more.model_id:
        what = f'"{first.stage}" is of the model {first.model_id[:12]}, its next portion of {more.model_id[:12]}'
        raise DataError(what, where="portions", then="Measure the portions of one stage on one model.")
    samples, seconds = first.samples + more.samples, first.seconds + more.seconds
    return replace(first, samples=samples, seconds=seconds, kinds=dict(more.kinds) | dict(first.kinds))


def on_common(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements without the samples that one of them has not: what gates that stopped early left to compare by."""
    common = set.intersection(*({(sample.task, sample.id) for sample in one.samples} for one in measurements))
    return [replace(one, samples=tuple(sample for sample in one.samples if (sample.task, sample.id) in common)) for one in measurements]
