"""Every verb, through the program itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import evaluation_fixtures as tiny
import selectune.cli.screen
from pipeline_fixtures import jsonl, question, save_model, write_recipe
from selectune.cli import app
from selectune.registry import Registry

VERBS = [
    "demo",
    "map",
    "plan",
    "run",
    "train",
    "eval",
    "tasks",
    "probe",
    "compare",
    "forgetting",
    "log",
    "show",
    "apply",
    "promote",
    "revert",
    "verify",
    "report",
    "embedded",
]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(*arguments: object, code: int = 0) -> Any:
    """The one JSON document on stdout."""
    result = call(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny.llama(), tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with a recipe, its registry and one run, and the run's document."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = write_recipe(folder, model)
    loose = ["--set", "gate.margin=0.9", "--set", "held_out[1].margin=50"]
    result = call("run", recipe, "--json", "--registry", folder / "registry", "--out", folder / "runs", *loose)
    assert result.exit_code in (0, 1), result.output
    return folder, json.loads(result.stdout)


def test_a_run_prints_one_document_of_the_promised_shape(done: tuple[Path, dict[str, Any]]) -> None:
    _, found = done
    assert found.keys() == {"run", "skills", "matrix", "metrics", "probes", "updates", "verdicts", "report"}
    assert found["skills"] == ["cats", "dogs"]
    assert {"rows", "columns", "scores", "n"} <= found["matrix"].keys()
    assert all({"value", "low", "high", "n"} <= metric.keys() for metric in found["metrics"].values())
    assert [verdict.keys() for verdict in found["verdicts"]] == [{"skill", "verdict", "rules"}] * 2
    assert len(found["updates"]) == 2
    assert Path(found["report"]).is_file()


def test_log_lists_updates_newest_first(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    listed = document("log", "--registry", folder / "registry")["updates"]
    assert [update["id"] for update in listed] == found["updates"][::-1]
    assert {"id", "parent", "skill", "verdict", "names", "created"} <= listed[0].keys()
    assert [update["skill"] for update in document("log", found["updates"][0], "--registry", folder / "registry")["updates"]] == ["cats"]
    assert "cats" in call("log", "--registry", folder / "registry").stdout


def test_show_prints_one_update(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    update = document("show", found["updates"][1][:12], "--registry", folder / "registry")
    assert (update["id"], update["parent"], update["skill"]) == (found["updates"][1], found["updates"][0], "dogs")
    assert "skill: dogs" in call("show", found["updates"][1], "--registry", folder / "registry").stdout


def test_a_name_is_moved_with_a_reason_and_moved_back(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    where = ("--registry", folder / "registry")
    for update in found["updates"]:
        move = document("promote", update, "staging", "--reason", "it is the best so far", "--actor", "ann", *where)
    assert (move["update"], move["previous"], move["actor"]) == (found["updates"][1], found["updates"][0], "ann")
    assert document("revert", "staging", "--reason", "it was not", *where)["update"] == found["updates"][0]
    assert document("show", "staging", *where)["id"] == found["updates"][0]
    assert call("promote", found["updates"][0], "staging", *where).exit_code == 2, "a move needs a reason"


def test_apply_writes_a_checkpoint_that_is_the_update(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, found = done
    where = ("--registry", folder / "registry")
    made = document("apply", found["updates"][1], tmp_path / "full", *where)
    assert made["model_id"] == document("show", found["updates"][1], *where)["child"]
    recipe = folder / "recipe.yaml"
    full, by_id = (document("eval", name, recipe, *where) for name in (tmp_path / "full", found["updates"][1]))
    assert (full["model_id"], full["tasks"]) == (by_id["model_id"], by_id["tasks"])
    assert full["model_id"] == made["model_id"]
    assert [row["score"] for row in full["tasks"]] == found["matrix"]["scores"][-1]


def test_verify_fails_for_a_flipped_byte(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = done
    copy = shutil.copytree(folder / "registry", tmp_path / "registry")
    assert document("verify", "--registry", copy)["ok"] is True
    blob = max((path for path in copy.rglob("*") if path.is_file() and "blobs" in path.parts), key=lambda path: path.stat().st_size)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    found = document("verify", "--registry", copy, code=1)
    assert found["ok"] is False
    assert found["problems"]


@pytest.mark.parametrize("verb", [("log",), ("show", "abcdef"), ("verify",), ("revert", "x", "--reason", "y"), ("apply", "abcdef", "out")])
def test_a_reading_verb_never_makes_a_registry(tmp_path: Path, verb: tuple[str, ...]) -> None:
    result = call(*verb, "--registry", tmp_path / "none")
    assert result.exit_code == 2
    assert "RegistryError" in result.stderr
    assert not (tmp_path / "none").exists()


def test_report_writes_the_page_of_a_run_again(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, found = done
    page = Path(found["report"])
    again = document("report", page.parent, "--out", tmp_path / "again.html")
    # Names that other tests gave the updates since stand in it as well.
    names = re.compile(r'<span class="tag quiet">\w+</span>')
    assert names.sub("", Path(again["report"]).read_text()) == names.sub("", page.read_text())
    assert call("report", tmp_path).exit_code == 2


def test_map_counts_what_patterns_select(model: Path) -> None:
    found = document("map", model, "attention", "!language.layers.0.*")
    elements = sum(parameter.numel() for name, parameter in tiny.llama().net.named_parameters() if "layers.1.self_attn" in name)
    assert found["selected"]["elements"] == elements
    assert found["elements"] == sum(component["elements"] for component in found["components"])
    assert f"{elements:,}" in call("map", model, "attention", "!language.layers.0.*").stdout
    assert call("map", model).exit_code == 0


def test_map_knows_architectures_and_lists_near_matches() -> None:
    assert document("map", "arch:llama")["model"] == "arch:llama"
    result = call("map", "arch:lama")
    assert result.exit_code == 2
    assert "arch:llama" in result.stderr


def test_plan_prints_and_trains_nothing(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = done
    found = document("plan", folder / "recipe.yaml", "--set", "optim.max_steps=3")
    assert [phase["steps"] for phase in found["phases"]] == [3, 3]
    text = call("plan", folder / "recipe.yaml").stdout
    assert "memory, a forecast" in text
    assert "⟦" in text


def test_train_writes_a_delta(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from selectune.delta import Delta

    folder, _ = done
    found = document("train", folder / "recipe.yaml", tmp_path / "dogs.delta", "--skill", "dogs", "--set", "optim.max_steps=2")
    assert found["steps"] == 2
    delta = Delta.load(tmp_path / "dogs.delta")
    assert (delta.parent, delta.child, delta.digest) == (found["parent"], found["child"], found["digest"])
    assert call("train", folder / "recipe.yaml", tmp_path / "x.delta", "--skill", "dgs").exit_code == 2


def test_eval_and_compare_pair_two_measurements(done: tuple[Path, dict[str, Any]], model: Path, tmp_path: Path) -> None:
    folder, found = done
    recipe = folder / "recipe.yaml"
    document("eval", model, recipe, "--out", tmp_path / "base.parquet")
    samples = Path(found["report"]).parent / "samples"
    same = document("compare", tmp_path / "base.parquet", samples / "base.parquet", code=1)
    assert same["error"]["kind"] == "SameModel"
    page = tmp_path / "page.html"
    again = ("--again", tmp_path / "base.parquet")
    forward = call("compare", samples / "base.parquet", samples / "cats.parquet", "--recipe", recipe, "--html", page, *again, "--json")
    rows = {row["task"]: row for row in json.loads(forward.stdout)["tasks"]}
    assert forward.exit_code == int(any(row["worse"] for row in rows.values()))
    assert rows["cats"]["value"] == pytest.approx(found["matrix"]["scores"][1][0] - found["matrix"]["scores"][0][0])
    assert len(rows["cats"]["items"]["gained"]) == rows["cats"]["gained"] > 0
    assert rows["cats"]["correction"] == "holm"
    assert rows["cats"]["noise"] == 0
    assert "What is in the picture 500?" in page.read_text()
    bh = document("compare", samples / "base.parquet", samples / "cats.parquet", "--correction", "bh", code=forward.exit_code)
    assert bh["correction"] == "benjamini-hochberg"
    backward = call("compare", samples / "cats.parquet", samples / "base.parquet")
    assert backward.exit_code == 1, "the base is certainly worse at what was taught"
    assert call("compare", "base", tmp_path / "base.parquet").exit_code == 2


def test_forgetting_takes_several_runs_of_one_recipe_together(done: tuple[Path, dict[str, Any]]) -> None:
    _, found = done
    run = Path(found["report"]).parent
    one = document("forgetting", run)
    assert one["metrics"]["target_learning"]["value"] == pytest.approx(found["metrics"]["target_learning"]["value"])
    assert "one run, so nothing of the spread between runs" in one["metrics"]["target_learning"]["method"]
    assert one["matrix"]["scores"][0] == pytest.approx(found["matrix"]["scores"][0])
    assert "Backward transfer" in call("forgetting", run).stdout
    assert "one run was given twice" in call("forgetting", run, run).output


def test_a_fault_in_a_recipe_is_exit_code_2_and_a_document(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    error = document("run", folder / "recipe.yaml", "--set", "optim.lrr=1", "--out", folder / "no", code=2)["error"]
    assert error["kind"] == "RecipeError"
    assert "recipe.yaml: optim.lrr: unknown key. Did you mean lr?" in error["message"]
    assert not (folder / "no").exists()


def test_a_failed_gate_is_exit_code_1_and_still_prints_the_document(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, model, gate={"min_n": 4, "min_gain": 0.99, "alpha": 0.4}, optim={"lr": 1e-5, "max_steps": 1, "batch": 4}
    )
    found = document("run", recipe, "--registry", tmp_path / "registry", "--out", tmp_path / "runs", code=1)
    assert "failed" in [verdict["verdict"] for verdict in found["verdicts"]]


def test_a_demo_that_shows_a_failed_gate_has_not_failed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(
        tmp_path, model, gate={"min_n": 4, "min_gain": 0.99, "alpha": 0.4}, optim={"lr": 1e-5, "max_steps": 1, "batch": 4}
    )
    monkeypatch.setattr("selectune.cli.running.DEMO", (str(recipe),))
    result = call("demo", "--out", tmp_path / "out", "--registry", tmp_path / "registry", "--json")
    assert result.exit_code == 0, result.stderr
    assert "failed" in {verdict["verdict"] for verdict in json.loads(result.stdout)["verdicts"]}


def test_an_undecided_gate_is_no_failed_one(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, gate={"min_n": 1000}, optim={"lr": 1e-3, "max_steps": 1, "batch": 4})
    result = call("run", recipe, "--json", "--registry", tmp_path / "registry", "--out", tmp_path / "runs")
    assert result.exit_code == 0
    assert {verdict["verdict"] for verdict in json.loads(result.stdout)["verdicts"]} == {"undecided"}
    assert "undecided, so not accepted and not failed: cats, dogs" in result.stderr


def test_a_bug_of_ours_is_exit_code_3_and_names_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> Registry:
        raise KeyError("oops")

    monkeypatch.setattr(Registry, "open", broken)
    monkeypatch.setattr(selectune.cli.screen.tempfile, "tempdir", str(tmp_path))
    error = document("log", code=3)["error"]
    assert error["kind"] == "KeyError"
    (crash,) = tmp_path.glob("selectune-crash-*.txt")
    assert str(crash) in error["message"]
    assert "KeyError: 'oops'" in crash.read_text()


def test_a_full_disk_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Registry:
        raise OSError(28, "No space left on device", "blob")

    monkeypatch.setattr(Registry, "open", full)
    error = document("log", code=2)["error"]
    assert error == {
        "kind": "StorageError",
        "message": "blob: No space left on device. Free space, or choose another folder.",
        "exit_code": 2,
    }


def test_a_library_that_prints_does_not_spoil_the_document(monkeypatch: pytest.MonkeyPatch, done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    real = Registry.signed_log

    def chatty(self: Registry, name: str | None = None) -> Any:
        print("hello from a library")
        return real(self, name)

    monkeypatch.setattr(Registry, "signed_log", chatty)
    result = call("log", "--registry", folder / "registry", "--json")
    json.loads(result.stdout)
    assert "hello from a library" in result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def _program(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selectune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_the_program_reads_a_registry_without_torch(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    code = (
        "import sys; from selectune.cli import app\n"
        "try: app(['log', '--json', '--registry', sys.argv[1]])\n"
        "finally: assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    result = subprocess.run([sys.executable, "-c", code, folder / "registry"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [update["id"] for update in json.loads(result.stdout)["updates"]] == found["updates"][::-1]


def test_the_registry_may_be_named_by_the_environment(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    result = _program("log", "--json", env={**os.environ, "SELECTUNE_REGISTRY": str(folder / "registry")})
    assert result.returncode == 0
    assert len(json.loads(result.stdout)["updates"]) == len(found["updates"])


def test_the_program_answers_a_wrong_option_with_exit_code_2() -> None:
    assert _program("log", "--nope").returncode == 2


@pytest.mark.slow
def test_a_stopped_program_leaves_130_and_goes_on(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, optim={"lr": 0.01, "batch": 8, "max_steps": 400})
    command = [sys.executable, "-m", "selectune", "run", recipe, "--registry", tmp_path / "registry", "--out", tmp_path / "runs", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (steps := [path for path in tmp_path.glob("runs/*/events.jsonl") if '"step"' in path.read_text()]):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"Go on with: selectune run {steps[0].parent}" in err
    assert json.loads(out)["error"]["exit_code"] == 130


def test_a_vision_language_model_runs_end_to_end(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, save_model(tiny.llava(), tmp_path / "llava"), pictures=True)
    where = ("--registry", tmp_path / "registry", "--out", tmp_path / "runs")
    result = call("run", recipe, "--json", "--set", "optim.max_steps=2", *where)
    assert result.exit_code in (0, 1), result.output
    found = json.loads(result.stdout)
    assert [reading["stage"] for reading in found["probes"]["numbers"]] == ["base", "cats", "dogs"]
    assert "data:image/png;base64," in Path(found["report"]).read_text()
    assert document("plan", recipe)["sample"]["pixels"]["pixel_values"] == [1, 3, 8, 8]
    numbers = document("probe", found["updates"][0], recipe, "--registry", tmp_path / "registry")["numbers"]
    assert numbers["mean"] == pytest.approx(found["probes"]["numbers"][1]["mean"])


def test_a_missing_picture_is_exit_code_2_and_nothing_is_half_written(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model)
    row = question(1, "a cat")
    row["messages"][0]["content"] = [{"type": "image_url", "image_url": {"url": "gone.png"}}]  # type: ignore[index]
    jsonl(tmp_path / "cats-train.jsonl", [row])
    error = document("run", recipe, "--registry", tmp_path / "registry", "--out", tmp_path / "runs", code=2)["error"]
    assert error["kind"] == "DataError"
    assert "gone.png" in error["message"]
    assert not list(tmp_path.glob("runs/*/result.json"))
