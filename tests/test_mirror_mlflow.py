"""The mirror in MLflow, over its real SQLite store, read back by its own client."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from governance_fixtures import make_deltas
from remotes_fixtures import filled
from selectune.cli import app
from selectune.errors import InputError
from selectune.pipeline.mirroring import mirror_mlflow
from selectune.registry import Registry, Update

mlflow = pytest.importorskip("mlflow")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow's own


@dataclass
class Mirror:
    """A registry of three updates that was mirrored once, and MLflow's own client."""

    registry: Registry
    ids: list[str]
    uri: str
    client: Any


@pytest.fixture(name="mirror", scope="module")
def _mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    folder = tmp_path_factory.mktemp("mirror")
    registry = Registry.open(folder / "registry", create=True)
    ids: list[str] = []
    for number, path in enumerate(make_deltas(folder)):
        metrics = {"scores": {"cats": {"value": 0.25 * number, "n": 8}}, "odd": {"<b>": 1, "yes": True, "word": "x"}}
        update = Update(parent=ids[-1] if ids else None, skill=f"s{number}", verdict="passed", metrics=metrics, recipe={"seed": number})
        ids.append(registry.add(update, path, {"result.json": b"{}"}))
    registry.promote(ids[1], "production", "because", "ann")
    registry.promote(ids[2], "odd.name", "because", "ann")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.chdir(folder)
        found = mirror_mlflow(registry, uri)
    assert found.added == tuple(ids)
    assert dict(found.aliases) == {"production": ids[1]}
    assert found.notes == ("odd.name cannot be an alias in MLflow and was left out",)
    return Mirror(registry=registry, ids=ids, uri=uri, client=mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri))


def logged(mirror: Mirror, number: int) -> Any:
    """An update's logged model."""
    experiment = mirror.client.get_experiment_by_name("selectune").experiment_id
    found = mirror.client.search_logged_models([experiment], filter_string=f"tags.`selectune.update` = '{mirror.ids[number]}'")
    assert len(found) == 1
    return found[0]


def test_an_update_is_a_logged_model_with_its_metrics_params_and_tags(mirror: Mirror) -> None:
    update, model = mirror.registry.show(mirror.ids[2]), logged(mirror, 2)
    assert str(model.status) == "READY"
    said = {"parent": mirror.ids[1], "model_id": update.child, "delta": update.delta, "verdict": "passed", "skill": "s2"}
    assert {key: model.tags[f"selectune.{key}"] for key in said} == said
    assert model.tags["selectune.attachment.result.json"] == update.attachments["result.json"]
    assert model.params == {"recipe.seed": "2", "model": "none"}
    assert {one.key: one.value for one in model.metrics} == {"scores/cats/value": 0.5, "scores/cats/n": 8.0, "odd/_b_": 1.0}


def test_a_name_is_an_alias_of_a_version_of_that_update(mirror: Mirror) -> None:
    version = mirror.client.get_model_version_by_alias("selectune", "production")
    assert version.tags["selectune.update"] == mirror.ids[1]
    assert version.source in (f"models:/{logged(mirror, 1).model_id}", logged(mirror, 1).artifact_location)


def test_a_second_mirroring_changes_nothing(mirror: Mirror) -> None:
    def everything() -> list[Any]:
        models = [dict(logged(mirror, number)) for number in range(3)]
        return [models, [dict(one) for one in mirror.client.search_model_versions("name = 'selectune'")]]

    before = repr(everything())
    found = mirror_mlflow(mirror.registry, mirror.uri)
    assert (found.added, dict(found.aliases)) == ((), {})
    assert repr(everything()) == before


def test_what_somebody_changed_there_is_put_back_and_said(mirror: Mirror) -> None:
    wrong = mirror.client.search_model_versions(f"name = 'selectune' and tags.`selectune.update` = '{mirror.ids[2]}'")[0].version
    mirror.client.set_registered_model_alias("selectune", "production", wrong)
    mirror.client.set_registered_model_alias("selectune", "mine", wrong)
    mirror.client.set_logged_model_tags(logged(mirror, 0).model_id, {"selectune.verdict": "failed"})
    found = mirror_mlflow(mirror.registry, mirror.uri)
    assert found.added == ()
    assert dict(found.aliases) == {"production": mirror.ids[1]}
    assert "production pointed to version 3 there, and points to version 2 as the registry says" in found.notes
    assert "mine is no name of the registry and was removed there" in found.notes
    assert f"update {mirror.ids[0][:12]}: selectune.verdict was brought up to date" in found.notes
    assert mirror.client.get_model_version_by_alias("selectune", "production").tags["selectune.update"] == mirror.ids[1]
    assert logged(mirror, 0).tags["selectune.verdict"] == "passed"
    assert mirror.registry.names()["production"] == mirror.ids[1]


def test_the_verb_mirrors_and_says_what_it_did(tmp_path: Path, deltas: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    ids = filled(registry, deltas)
    registry.promote(ids[1], "odd.name", "because", "ann")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    words = ["mirror", "mlflow", "--as", "cats", "--registry", registry.where]
    one = CliRunner().invoke(app, [*words, ids[1], "--json"])
    assert one.exit_code == 0, one.output
    note = "odd.name cannot be an alias in MLflow and was left out"
    assert json.loads(one.stdout) == {"added": ids[:2], "aliases": {}, "notes": [note]}
    every = CliRunner().invoke(app, words)
    assert every.exit_code == 0, every.output
    assert f"production → {ids[2][:12]}" in every.stdout
    assert "1 updates added, 1 names set" in every.stdout
    assert note in " ".join(every.stderr.split())
    again = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(again.stdout)["added"] == []
    client = mlflow.MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"], registry_uri=os.environ["MLFLOW_TRACKING_URI"])
    assert client.get_model_version_by_alias("cats", "production").tags["selectune.update"] == ids[2]


def test_the_verb_refuses_what_is_no_mlflow_and_wants_an_address(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["mirror", "mlflow", "--registry", mirror.registry.where]
    refused = CliRunner().invoke(app, [*words, "--tracking-uri", "nonsense", "--json"])
    assert (refused.exit_code, json.loads(refused.stdout)["error"]["kind"]) == (2, "InputError")
    assert CliRunner().invoke(app, words).exit_code == 2


@pytest.mark.parametrize("uri", ["file:///tmp/x", "nonsense", "javascript:x"])
def test_an_address_without_a_model_registry_is_refused(mirror: Mirror, uri: str) -> None:
    with pytest.raises(InputError, match="no address of an MLflow with a model registry"):
        mirror_mlflow(mirror.registry, uri)
