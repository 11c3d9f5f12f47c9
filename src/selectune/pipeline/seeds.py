"""Several runs of one recipe, which differ in their seeds: what they learned and forgot on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectune.errors import DataError, InputError
from selectune.evaluation.forgetting import DRAWS, forgetting, matrix_over
from selectune.evaluation.matrix import Matrix
from selectune.evaluation.measurement import Measurement
from selectune.evaluation.portions import on_common
from selectune.pipeline.folder import Folder, read_run
from selectune.recipe import Recipe
from selectune.statistics import Estimate

_OF_A_RUN = {"seed", "name", "out", "report_to", "watch"}
"""Fields of a recipe that may differ between runs that are taken together."""


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What several runs of one recipe came to."""

    recipe: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: dict[str, Estimate]
    matrix: Matrix

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        metrics = {name: estimate.to_json() for name, estimate in self.metrics.items()}
        about = {"recipe": self.recipe, "runs": list(self.runs), "seeds": list(self.seeds)}
        return {**about, "metrics": metrics, "matrix": self.matrix.to_json()}


def forgetting_of(folders: Sequence[Path], *, draws: int = DRAWS) -> Forgetting:
    """Learning and forgetting over the runs in these folders, see `evaluation.forgetting`; a recovery takes no part.

    Raises InputError for a folder of several recipes, for one run given twice and for other recipes, ResumeError for a folder that is no
    run's, and DataError for a run that stopped before its last skill.
    """
    recipes = [_recipe(folder) for folder in folders]
    if not folders:
        raise InputError("no run", where="forgetting", then="Give the folders of one run or more.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("one run was given twice", where="forgetting", then="Give each run's folder once.")
    first = recipes[0]
    for folder, recipe in zip(folders[1:], recipes[1:], strict=True):
        mine, other = (one.model_dump(mode="json", exclude=_OF_A_RUN) for one in (first, recipe))
        differ = sorted(name for name in mine if mine[name] != other[name])
        if differ:
            what = f"its recipe differs from that of {folders[0]} in {', '.join(differ)}"
            raise InputError(what, where=str(folder), then="Take runs together that differ in their seeds alone.")
    targets, held_out = [skill.name for skill in first.skills], [task.name for task in first.held_out]
    measured = [[_measurement(folder, stage) for stage in ("base", *targets)] for folder in folders]
    common = on_common([measurement for run in measured for measurement in run])
    size = len(targets) + 1
    runs = [common[start : start + size] for start in range(0, len(common), size)]
    return Forgetting(
        recipe=first.name,
        runs=tuple(folder.name for folder in folders),
        seeds=tuple(recipe.seed for recipe in recipes),
        metrics=forgetting(runs, targets, held_out, draws=draws),
        matrix=matrix_over(runs, [*targets, *held_out], draws=draws),
    )


def _recipe(folder: Path) -> Recipe:
    if (folder / "run.json").is_file():
        recipes = read_run(folder).recipes
        if len(recipes) > 1:
            then = f"Name one of them: {', '.join(str(folder / name) for name in recipes)}"
            raise InputError(f"is a run of {len(recipes)} recipes", where=str(folder), then=then)
    return Folder(folder).recipe()


def _measurement(folder: Path, stage: str) -> Measurement:
    path = folder / "samples" / f"{stage}.parquet"
    if not path.is_file():
        raise DataError(f'stage "{stage}" was not measured', where=str(folder), then=f"Finish the run first: selectune run {folder}")
    return Measurement.load(path)
