"""A measured task is read again only where nothing that it depends on is another, and where its file is the one that was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from evaluation_fixtures import llama, questions, records, text
from pipeline_fixtures import save_model, write_recipe
from selectune.cli import app
from selectune.evaluation import Measurement, Reference, Suite, Task, evaluate, evaluator
from selectune.evaluation.asking import Shared
from selectune.evaluation.kept import Kept
from selectune.models import Model
from selectune.records import Encoder

ASKED = questions(5, pictures=False)


def shared(folder: Path, *, fresh: bool = False, said: list[str] | None = None) -> Shared:
    return Shared(kept=Kept(folder=folder, fresh=fresh, say=(said if said is not None else []).append))


def suite(**more: object) -> Suite:
    return Suite(tasks=(Task(name="q", records=ASKED, **{"max_new_tokens": 4, **more}),))  # type: ignore[arg-type]


def cached(found: Measurement) -> bool:
    return "q" in found.cached


def test_a_second_measurement_is_read_and_says_so(tmp_path: Path) -> None:
    model, said = llama(), []
    wanted = Suite(
        tasks=(
            Task(name="q", records=ASKED, likelihoods=True),
            Task(name="c", records=ASKED, kind="choice"),
            Task(name="t", records=records(text("a", "a cat and a dog")), kind="perplexity"),
        )
    )
    first = evaluate(model, wanted, shared=shared(tmp_path, said=said))
    assert said == []
    passes: list[int] = []
    hook = model.net.register_forward_hook(lambda module, given, made: passes.append(1))
    told: list[tuple[str, int, int]] = []
    again = evaluate(model, wanted, shared=shared(tmp_path, said=said), progress=lambda *words: told.append(words))
    hook.remove()
    assert not passes
    assert again.samples == first.samples
    assert again.cached == ("q", "c", "t")
    assert first.cached == ()
    assert [line.split(":")[0] for line in said] == ["q", "c", "t"]
    assert all("cached in" in line for line in said)
    assert ("q", 5, 5) in told
    assert evaluate(model, wanted).samples == first.samples, "and it is what measuring gives"


@pytest.mark.parametrize("kept", [True, False])
def test_a_record_is_encoded_once_whatever_is_asked_of_it(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = {name: getattr(Encoder, name) for name in ("prompt", "encode")}
    for name, method in real.items():
        monkeypatch.setattr(Encoder, name, lambda self, row, method=method: seen.append(row.id) or method(self, row))
    plain = Task(name="t", records=records(text("a", "a cat and a dog")), kind="perplexity")
    wanted = Suite(tasks=(Task(name="q", records=ASKED), plain))
    for _ in range(2):
        seen.clear()
        evaluate(llama(), wanted, shared=shared(tmp_path) if kept else None)
        assert sorted(seen) == sorted([*(record.id for record in ASKED), "a"])


def test_a_task_under_another_name_is_the_same_task(tmp_path: Path) -> None:
    model = llama()
    evaluate(model, suite(), shared=shared(tmp_path))
    other = Suite(tasks=(replace(suite().tasks[0], name="other"),))
    found = evaluate(model, other, shared=shared(tmp_path))
    assert found.cached == ("other",)
    assert {sample.task for sample in found.samples} == {"other"}


def _one_bit(model: Model, patch: pytest.MonkeyPatch) -> Suite:
    with torch.no_grad():
        model.net.lm_head.weight.view(torch.int32)[0, 0] ^= 1
    return suite()


def _longer(model: Model, patch: pytest.MonkeyPatch) -> Suite:
    return suite(max_new_tokens=5)


def _other_ends(model: Model, patch: pytest.MonkeyPatch) -> Suite:
    model.net.generation_config.eos_token_id = 7
    return suite()


def _other_torch(model: Model, patch: pytest.MonkeyPatch) -> Suite:
    patch.setattr(torch, "__version__", "2.13.1")
    return suite()


def _other_template(model: Model, patch: pytest.MonkeyPatch) -> Suite:
    model.processor.chat_template = model.processor.chat_template.replace("Question", "Ask")
    return suite()


def _other_threads(model: Model, patch: pytest.MonkeyPatch) -> Suite:
    patch.setattr(evaluator.torch, "get_num_threads", lambda: 64)
    return suite()


def _other_records(model: Model, patch: pytest.MonkeyPatch) -> Suite:
    return Suite(tasks=(Task(name="q", records=questions(4, pictures=False), max_new_tokens=4),))


@pytest.mark.parametrize(
    "change", [_one_bit, _longer, _other_ends, _other_torch, _other_template, _other_threads, _other_records], ids=lambda one: one.__name__
)
def test_nothing_is_trusted_across_another(
    change: Callable[[Model, pytest.MonkeyPatch], Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    evaluate(model, suite(), shared=shared(tmp_path))
    assert cached(evaluate(model, suite(), shared=shared(tmp_path)))
    wanted = change(model, monkeypatch)
    assert not cached(evaluate(model, wanted, shared=shared(tmp_path)))


def test_another_batch_plan_is_another_measurement(tmp_path: Path) -> None:
    model = llama()
    evaluate(model, suite(), batch=2, shared=shared(tmp_path))
    assert cached(evaluate(model, suite(), batch=2, shared=shared(tmp_path)))
    assert not cached(evaluate(model, suite(), batch=3, shared=shared(tmp_path)))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _gone(path: Path) -> None:
    path.unlink()


def _swap(path: Path) -> None:
    """A whole measurement, but another one."""
    other = Measurement.load(path)
    replace(other, samples=tuple(replace(sample, output="forged", score=1.0) for sample in other.samples)).save(path)


def _note(path: Path) -> None:
    path.with_suffix(".json").write_text("{half")


def _forged_note(path: Path) -> None:
    note = json.loads(path.with_suffix(".json").read_text())
    note["about"]["model"] = "0" * 64
    path.with_suffix(".json").write_text(json.dumps(note))


@pytest.mark.parametrize("harm", [_cut, _flip, _gone, _swap, _note, _forged_note], ids=lambda one: one.__name__)
def test_a_file_that_is_not_the_one_that_was_written_is_measured_again_and_says_so(harm: Callable[[Path], None], tmp_path: Path) -> None:
    model, said = llama(), []
    first = evaluate(model, suite(), shared=shared(tmp_path))
    harm(next(tmp_path.glob("*.parquet")))
    again = evaluate(model, suite(), shared=shared(tmp_path, said=said))
    assert again.samples == first.samples
    assert not cached(again)
    assert len(said) == 1
    assert said[0].startswith("q: measured again, as ")
    assert cached(evaluate(model, suite(), shared=shared(tmp_path))), "and what was measured again is kept"


def test_fresh_measures_again(tmp_path: Path) -> None:
    model, said = llama(), []
    evaluate(model, suite(), shared=shared(tmp_path))
    assert not cached(evaluate(model, suite(), shared=shared(tmp_path, fresh=True, said=said)))
    assert said == []
    assert cached(evaluate(model, suite(), shared=shared(tmp_path)))


def always(output: str, reference: Reference) -> float:
    """A user's scorer."""
    return 0.25


def test_what_was_written_is_scored_by_the_scorer_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    evaluate(model, suite(scorer=always), shared=shared(tmp_path))
    monkeypatch.setattr(always, "__code__", (lambda output, reference: 0.75).__code__)
    again = evaluate(model, suite(scorer=always), shared=shared(tmp_path))
    assert cached(again)
    assert {sample.score for sample in again.samples} == {0.75}


def test_the_command_line_reads_what_was_measured_in_the_folder_of_runs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    (folder / "selectune-runs").mkdir(parents=True)
    model = save_model(llama(), tmp_path / "model")
    recipe = write_recipe(tmp_path, model)
    monkeypatch.chdir(folder)

    def measured(*more: str) -> tuple[dict[str, Any], str]:
        done = CliRunner().invoke(app, ["eval", str(model), str(recipe), "--json", *more])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout), done.stderr

    first, quiet = measured()
    assert first["cached"] == []
    assert "cached" not in quiet
    again, told = measured()
    assert again["cached"] == [row["task"] for row in first["tasks"]]
    assert again["tasks"] == first["tasks"]
    assert f"{first['tasks'][0]['task']}: cached in selectune-runs/measurements/tasks/" in told
    assert measured("--fresh")[0]["cached"] == []
    (folder / "selectune-runs").rename(folder / "elsewhere")
    assert measured()[0]["cached"] == []
    assert not (folder / "selectune-runs").exists(), "nothing is left where nothing was run"
