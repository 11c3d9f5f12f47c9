"""`report_to`: what each tracker holds after a run, read back with its own tools; and that none is asked for what is not installed."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model, write_recipe
from selectune.errors import MissingPackage, Stopped
from selectune.pipeline import resume, run
from selectune.pipeline.progress import Silent
from selectune.pipeline.tracking import PACKAGES, Trackers, check_trackers
from selectune.recipe import Recipe, read_recipe
from selectune.reporting import RunResult


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny.llama(), tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tracker is told anything by this machine's environment, and none writes outside the test's folder."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def recipe_for(tracker: str, folder: Path, model: Path) -> Recipe:
    optim = {"lr": 0.05, "batch": 8, "max_steps": 4, "warmup": 0.0, "save_every": 1}
    return read_recipe(write_recipe(folder, model, report_to=tracker, optim=optim, probe={"quick_every": 2, "quick_n": 2}))


class Interrupts(Silent):
    """Stops the second skill's training after its second step."""

    def __init__(self) -> None:
        self.stage = ""

    def start(self, what: str, total: int | None) -> None:
        self.stage = what

    def advance(self, done: int, total: int | None = None) -> None:
        if self.stage == "Teaching dogs" and done == 2:
            raise KeyboardInterrupt


def interrupted_and_finished(recipe: Recipe, folder: Path) -> tuple[RunResult, Path]:
    """A run that was stopped in the middle of the second skill and gone on with."""
    with pytest.raises(Stopped) as stopped:
        run(recipe, registry=str(folder / "registry"), out=folder / "runs", progress=Interrupts())
    path = Path(str(stopped.value).rsplit("selectune run ", 1)[1])
    return resume(path)[0], path


def losses(result: RunResult) -> dict[str, dict[int, float]]:
    """By the trackers' names: step over all stages, and loss."""
    found: dict[str, dict[int, float]] = {}
    done = 0
    for phase in result.phases:
        found[f"{phase.name}/loss"] = {done + step.n: step.loss or 0.0 for step in phase.steps}
        done += len(phase.steps)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_holds_every_step_and_score(tmp_path: Path, llama: Path) -> None:
    pytest.importorskip("tensorboard")
    result, path = interrupted_and_finished(recipe_for("tensorboard", tmp_path, llama), tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held = EventAccumulator(str(path / "trackers" / "tensorboard" / path.name))
    held.Reload()
    for name, expected in losses(result).items():
        assert {one.step: one.value for one in held.Scalars(name)} == pytest.approx(expected)
    assert [one.step for one in held.Scalars("cats/quick/fish")] == [2, 4]
    assert [one.value for one in held.Scalars("scores/cats")] == pytest.approx([row[0] for row in result.matrix.scores[1:]])
    assert {"cats/lr", "cats/grad_norm", "cats/seconds", "cats/waited", "cats/tokens"} <= set(held.Tags()["scalars"])
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} >= {"step", "quick", "measured", "recorded"}, "these are written whatever a tracker does"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_every_step_in_one_run(tmp_path: Path, llama: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    result, path = interrupted_and_finished(recipe_for("mlflow", tmp_path, llama), tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{path / 'trackers' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("selectune")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == path.name
    assert found.data.params["recipe"] == "tiny"
    for name, expected in losses(result).items():
        assert {one.step: one.value for one in client.get_metric_history(found.info.run_id, name)} == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_here_and_sends_nothing(tmp_path: Path, llama: Path) -> None:
    pytest.importorskip("wandb")
    _, path = interrupted_and_finished(recipe_for("wandb", tmp_path, llama), tmp_path)
    files = list((path / "trackers").rglob("*.wandb"))
    assert files
    assert all("offline-run-" in file.parent.name and file.parent.name.endswith(path.name) for file in files)
    data = b"".join(file.read_bytes() for file in files)
    assert b"cats/loss" in data
    assert b"dogs/loss" in data


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_holds_every_step(tmp_path: Path, llama: Path) -> None:
    pytest.importorskip("trackio")
    result, path = interrupted_and_finished(recipe_for("trackio", tmp_path, llama), tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "selectune.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {run for run, _, _ in rows} == {path.name}
    for name, expected in losses(result).items():
        values = {step: json.loads(text)[name] for _, step, text in rows if name in json.loads(text)}
        assert values == pytest.approx(expected)


@pytest.mark.parametrize("tracker", sorted(PACKAGES))
def test_a_tracker_that_is_not_installed_is_named_before_anything_begins(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selectune.pipeline.tracking.find_spec", lambda name: None)
    recipe = read_recipe(write_recipe(tmp_path, tmp_path / "no-model", report_to=[tracker]))
    needed = " and ".join(PACKAGES[tracker])
    with pytest.raises(MissingPackage, match=rf"report_to: {tracker} needs {needed}\. Install it: pip install 'selectune\[{tracker}\]'"):
        run(recipe, registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_every_tracker_has_an_extra_that_brings_what_it_needs() -> None:
    import tomllib

    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for tracker, modules in PACKAGES.items():
        named = " ".join(extras[tracker])
        assert all(module in named for module in modules)


def test_no_tracker_is_asked_for_nothing() -> None:
    check_trackers(())
    Trackers().log("cats", {"loss": 1.0}, 1)


def test_only_finite_numbers_are_logged() -> None:
    told: list[Any] = []

    class Tracker:
        def log(self, values: dict[str, float], step: int) -> None:
            told.append((values, step))

    trackers = Trackers([Tracker()])
    trackers.log("cats", {"loss": math.nan, "n": 3, "name": "x", "score": None, "flag": True}, 7)
    trackers.log("cats", {"loss": math.inf}, 8)
    assert told == [({"cats/n": 3.0}, 7)]
