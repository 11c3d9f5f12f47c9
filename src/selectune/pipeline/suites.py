"""What is measured, from a recipe or from tasks by name; and the scores that a task names besides its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selectune.errors import DataError
from selectune.evaluation import Measurement, Suite
from selectune.evaluation.rescoring import rescore
from selectune.evaluation.tasks import find_task, task_of
from selectune.pipeline.preparing import read_examples
from selectune.recipe import Data, Recipe
from selectune.statistics import score

if TYPE_CHECKING:
    from selectune.statistics import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Further:
    """A task's outputs by another scorer."""

    task: str
    scorer: str
    estimate: Estimate


def recipe_suite(recipe: Recipe) -> Suite:
    """Every test of a recipe. Raises DataError for records that cannot be used."""
    return read_examples(recipe).suite


def task_suite(names: Sequence[str], *, source: Path | None = None, limit: int | None = None) -> Suite:
    """Tasks by name or by YAML file. `source` is a folder that holds a file or folder for each, called after it; for one task, its own.

    Raises NoMatch for an unknown task, and DataError for a source that is not there or whose rows cannot be used.
    """
    tasks = []
    for name in names:
        spec = find_task(name)
        place = "" if source is None else str(_place(source, spec.name, alone=len(names) == 1))
        tasks.append(task_of(spec, Data(source=place, task=name, limit=limit)))
    return Suite(tasks=tuple(tasks))


def further(measurement: Measurement, suite: Suite) -> list[Further]:
    """The scores of `Task.further`, with intervals that respect clusters."""
    found = []
    for task in suite.tasks:
        for name in task.further:
            scores = rescore(measurement, task, name)
            clusters = measurement.clusters(task.name)
            estimate = score(list(scores.values()), clusters=[clusters[one] for one in scores])
            found.append(Further(task=task.name, scorer=name, estimate=estimate))
    return found


def _place(source: Path, name: str, *, alone: bool) -> Path:
    held = sorted(path for path in source.iterdir() if name in (path.name, path.stem)) if source.is_dir() else []
    if len(held) > 1:
        raise DataError(f"it holds {' and '.join(path.name for path in held)}", where=str(source), then=f"Keep one of them for {name}.")
    if held:
        return held[0]
    if alone:
        return source
    raise DataError(f"it holds nothing called {name}", where=str(source), then="Give a folder with a folder or file for each task.")
