"""Trackers that a recipe names in `report_to`, through accelerate's: each gets every step and every score, and nothing is sent anywhere.

What they keep lies on this machine unless its user has said otherwise in the tracker's own way (`MLFLOW_TRACKING_URI`, `WANDB_MODE`,
`TRACKIO_DIR`, …). `events.jsonl` is written whatever they do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.errors import MissingPackage

if TYPE_CHECKING:
    from selectune.recipe import Recipe

PROJECT = "selectune"
PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "alembic"), "wandb": ("wandb",), "trackio": ("trackio",)}
"""By tracker: the modules that it needs, all of them in the extra of its name."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises MissingPackage for the first tracker that is not installed, before a run begins."""
    for name in names:
        missing = [module for module in PACKAGES[name] if find_spec(module) is None]
        if missing:
            then = f"Install it: pip install 'selectune[{name}]', or take {name} out of report_to."
            raise MissingPackage(f"{name} needs {' and '.join(missing)}", where="report_to", then=then)


class Trackers:
    """The open trackers of one recipe in a run; none of them, and nothing here does anything."""

    def __init__(self, opened: Sequence[Any] = ()) -> None:
        self._opened = tuple(opened)

    def log(self, stage: str, values: Mapping[str, Any], step: int) -> None:
        """Numbers of a stage, under its name; `step` counts over all stages. What is no finite number is left out."""
        numbers = {f"{stage}/{name}": float(value) for name, value in values.items() if _is_number(value)}
        for tracker in self._opened if numbers else ():
            tracker.log(numbers, step=step)


@contextmanager
def tracking(recipe: Recipe, folder: Path) -> Iterator[Trackers]:
    """The recipe's trackers for the run in `folder`, open inside the block. A run that goes on goes on in the same record."""
    opened: list[Any] = []
    try:
        for name in recipe.report_to:
            opened.append(_open(name, folder))
            opened[-1].start()
            opened[-1].store_init_configuration(_configuration(recipe))
        yield Trackers(opened)
    finally:
        for tracker in opened:
            tracker.finish()


def _open(name: str, folder: Path) -> Any:
    """accelerate's tracker of that name, not started."""
    from accelerate import PartialState
    from accelerate import tracking as trackers

    PartialState()  # accelerate's trackers ask it whether this is the first process
    place = folder / "trackers"
    if name == "tensorboard":
        return trackers.TensorBoardTracker(run_name=folder.name, logging_dir=str(place / name))
    if name == "wandb":
        place.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        return trackers.WandBTracker(PROJECT, name=folder.name, id=folder.name, resume="allow", mode=mode, dir=str(place))
    if name == "trackio":
        return trackers.TrackioTracker(PROJECT, name=folder.name, resume="allow")
    return _mlflow(trackers.MLflowTracker, folder.name, place)


def _mlflow(tracker: Any, run: str, place: Path) -> Any:
    """MLflow's, in a SQLite file in the run's folder unless `MLFLOW_TRACKING_URI` names a store; it goes on with a run of that name."""
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        place.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    experiment = mlflow.get_experiment_by_name(PROJECT)
    client = mlflow.MlflowClient()
    wanted = [] if experiment is None else [experiment.experiment_id]
    found = client.search_runs(wanted, filter_string=f"attributes.run_name = '{run}'") if wanted else []
    return tracker(PROJECT, run_id=found[0].info.run_id if found else None, run_name=run)


def _configuration(recipe: Recipe) -> dict[str, str | int | float]:
    optim = recipe.optim.model_dump(mode="json", include={"lr", "epochs", "batch", "optimizer", "schedule"})
    about: dict[str, str | int | float] = {"recipe": recipe.name, "digest": recipe.digest, "model": recipe.model, "seed": recipe.seed}
    return about | {"select": ", ".join(recipe.select)} | optim


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
