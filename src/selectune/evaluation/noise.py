"""The noise floor: one model measured twice under two batch plans differs from itself by so much. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from selectune.errors import DataError
from selectune.evaluation.matrix import align
from selectune.statistics import Estimate, proportion, score
from selectune.statistics.intervals import is_binary

if TYPE_CHECKING:
    from selectune.evaluation.measurement import Measurement


def noise_floor(first: Measurement, second: Measurement) -> dict[str, Estimate]:
    """For each task the mean distance between an item's two scores (A/A): for right-or-wrong scores the share of items that flip.

    Nothing was updated, so that a loss of no more than this need not be the update's doing: low-precision arithmetic adds up in another
    order in another batch. Flips of independent items have Clopper and Pearson's interval, others that of their mean. Raises DataError for
    measurements of two models, of other samples, or without a common task.
    """
    if first.model_id != second.model_id:
        what = f'"{first.stage}" and "{second.stage}" are of two models ({first.model_id[:12]}, {second.model_id[:12]})'
        raise DataError(what, where="noise floor", then="Measure one model twice, the second time with another batch.")
    tasks = [task for task in first.tasks if task in second.tasks]
    if not tasks:
        raise DataError("the two measurements have no task in common", where="noise floor", then="Measure the same suite twice.")
    return {task: _distance(first, second, task) for task in tasks}


def _distance(first: Measurement, second: Measurement, task: str) -> Estimate:
    pairs = align([first, second], task)
    distances = np.abs(pairs.scores[1] - pairs.scores[0])
    if all(is_binary(scores) for scores in pairs.scores) and len(set(pairs.clusters)) == len(pairs.ids):
        found = proportion(int(distances.sum()), len(distances), method="exact")
    else:
        found = score(distances, clusters=pairs.clusters)
    return replace(found, method=f"A/A, {found.method}")
