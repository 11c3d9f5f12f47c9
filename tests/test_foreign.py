"""`eval-with`: a model of ours, or an update of it, measured by another evaluator in an environment of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deriving_fixtures import base_folder, loaded, record, update_of
from selectune.cli import app
from selectune.evaluation import Measurement
from selectune.registry import Registry

STAND_IN = '''#!{python}
"""Takes the place of lmms-eval's python: it reads the folder that it is given and logs as lmms-eval 0.7.3 does."""
import hashlib, json, sys
from pathlib import Path

if sys.argv[1] == "-c":
    print(json.dumps({{"lmms_eval": "0.7.3", "torch": "2.13.0", "transformers": "5.0.0", "accelerate": "1.0", "datasets": "4.0"}}))
    sys.exit(0)
flags = {{name: sys.argv[sys.argv.index(name) + 1] for name in ("--model", "--model_args", "--tasks", "--output_path", "--limit")}}
given = dict(part.split("=", 1) for part in flags["--model_args"].split(","))
folder = Path(given["pretrained"])
for name in ("config.json", "tokenizer.json"):
    assert (folder / name).is_file(), name + " is missing"
weights = b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))
assert weights, "there are no weights"
print("Model Responding: 100%|####| 4/4 [00:00<00:00]", file=sys.stderr)
print("weights", hashlib.sha256(weights).hexdigest()[:8])
out = Path(flags["--output_path"]) / folder.name
out.mkdir(parents=True)
rows = []
for n in range(int(flags["--limit"])):
    right = hashlib.sha256(weights + bytes([n])).digest()[0] % 2
    said, asked = "blue" if right else "red", "What colour is picture %d?" % n
    rows.append({{"doc_id": n, "target": "blue", "resps": " " + said, "filtered_resps": said, "token_counts": [{{"output_tokens": 1}}],
                 "doc_hash": "0" * 64, "exact": float(right), "average": {{"id": asked, "score": float(right)}}, "input": asked}})
for task in flags["--tasks"].split(","):
    text = "".join(json.dumps(row) + "\\n" for row in rows)
    (out / ("20261128_085211_samples_%s.jsonl" % task)).write_text(text)
configs = {{task: {{"task": task, "output_type": "generate_until"}} for task in flags["--tasks"].split(",")}}
results = {{"configs": configs, "model_name": str(folder), "total_evaluation_time_seconds": "1.5"}}
(out / "20261128_085211_results.json").write_text(json.dumps(results))
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a model, a registry with an update of it, and the stand-in; and the update's id."""
    folder = tmp_path_factory.mktemp("foreign")
    base = base_folder(folder / "model")
    registry = Registry.open(folder / "registry", create=True)
    update = record(registry, update_of(loaded(base), ["attention"]), base, folder, skill="colours")
    python = folder / "python"
    python.write_text(STAND_IN.format(python=sys.executable), "utf-8")
    python.chmod(0o755)
    return folder, update


def call(place: Path, model: object, *more: object, evaluator: str = "lmms-eval", python: object = None) -> Result:
    where = ["--registry", place / "registry", "--python", python or place / "python", "--tasks", "colours,shades", "--limit", 16]
    arguments = ["eval-with", evaluator, model, *where, "--metric", "exact", "--backend", "llava_hf", *more]
    return CliRunner().invoke(app, [str(one) for one in arguments])


def fault(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)["error"]
    return found


def test_a_folder_and_an_update_of_it_are_measured_and_compared_sample_by_sample(place: tuple[Path, str], tmp_path: Path) -> None:
    folder, update = place
    for name, model in (("base", folder / "model"), ("after", update)):
        result = call(folder, model, "--model-arg", "device=cpu", "--out", tmp_path / f"{name}.parquet", "--json")
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert [(row["task"], row["metric"], row["n"]) for row in document["tasks"]] == [("colours", "exact", 16), ("shades", "exact", 16)]
        assert document["environment"]["evaluator"] == "lmms-eval 0.7.3"
        assert "device=cpu" in document["environment"]["command"]
    base, after = (Measurement.load(tmp_path / f"{name}.parquet") for name in ("base", "after"))
    shown = Registry.open(folder / "registry").show(update)
    assert (base.model_id, after.model_id) == (shown.base, shown.child), "the weights that were given to it"
    assert base.scores("colours") != after.scores("colours"), "an update is written out with its own weights"
    both = CliRunner().invoke(app, ["compare", str(tmp_path / "base.parquet"), str(tmp_path / "after.parquet"), "--json"])
    assert both.exit_code in (0, 1), both.output
    rows = json.loads(both.stdout)["tasks"]
    moved = {name for name, score in base.scores("colours").items() if after.scores("colours")[name] != score}
    assert {*rows[0]["items"]["lost"], *rows[0]["items"]["gained"]} == moved


def test_a_checkpoint_that_was_written_for_it_is_gone_afterwards(place: tuple[Path, str], tmp_path: Path) -> None:
    folder, update = place
    result = call(folder, update, "--out", tmp_path / "m.parquet", "--json")
    command = json.loads(result.stdout)["environment"]["command"]
    written = Path(command.split("pretrained=")[1].split()[0].split(",")[0])
    assert written.name == "model"
    assert not written.exists()


def test_an_environment_that_is_not_there_is_told_with_how_to_make_it(place: tuple[Path, str], tmp_path: Path) -> None:
    result = call(place[0], place[0] / "model", "--out", tmp_path / "m.parquet", "--json", python=tmp_path / "V/bin/python")
    assert result.exit_code == 2
    error = fault(result)
    assert error["kind"] == "MissingPackage"
    assert str(tmp_path / "V/bin/python") in json.dumps(error)
    assert "pip install lmms-eval==0.7.3" in json.dumps(error)
    assert not (tmp_path / "m.parquet").exists()


def test_a_python_without_lmms_eval_is_told_too(place: tuple[Path, str], tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('PackageNotFoundError: lmms_eval')\n", "utf-8")
    bare.chmod(0o755)
    error = fault(call(place[0], place[0] / "model", "--out", tmp_path / "m.parquet", "--json", python=bare))
    assert error["kind"] == "MissingPackage"
    assert "does not have lmms-eval (PackageNotFoundError: lmms_eval)" in json.dumps(error)


@pytest.mark.parametrize(
    ("model", "evaluator", "what"),
    [
        ("embedded", "lmms-eval", "is made by a package and lies in no folder that lmms-eval could load"),
        ("MODEL", "evalchemy", '"evalchemy" cannot be run from here'),
        ("abcdef0123", "lmms-eval", "abcdef0123"),
    ],
)
def test_what_it_cannot_measure_is_refused(place: tuple[Path, str], tmp_path: Path, model: str, evaluator: str, what: str) -> None:
    named = place[0] / "model" if model == "MODEL" else model
    result = call(place[0], named, "--out", tmp_path / "m.parquet", "--json", evaluator=evaluator)
    assert result.exit_code == 2, result.output
    assert what in fault(result)["message"]
