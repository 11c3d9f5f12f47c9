"""What a loss is made of: answers that are gone, and answers that are only written otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation_fixtures import llama, questions, record, records
from pipeline_fixtures import jsonl, rows, save_model, write_recipe
from selectune.errors import DataError
from selectune.evaluation import Measurement, Sample, Suite, Task, evaluate
from selectune.evaluation.readings import readings
from selectune.pipeline import run
from selectune.recipe import read_recipe
from selectune.statistics import mean


def measured(stage: str, written: list[float], likeliest: list[float] | None, *, answers: int = 3) -> Measurement:
    """One task with these scores in the two readings."""
    choices = likeliest if likeliest is not None else [None] * len(written)
    samples = tuple(
        Sample(
            task="q",
            id=f"s{n}",
            cluster=f"s{n}",
            prompt_digest="0" * 64,
            output="",
            reference="",
            score=score,
            extra={} if choice is None else {"choice": {"score": choice, "logprobs": [0.0] * answers}},
        )
        for n, (score, choice) in enumerate(zip(written, choices, strict=True))
    )
    return Measurement(stage=stage, model_id=stage, suite="s", samples=samples, seconds=0.0, kinds={"q": "generate"})


def test_a_loss_is_taken_apart_into_what_is_gone_and_what_is_written_otherwise() -> None:
    n = 100
    before = measured("base", [1.0] * n, [1.0] * n)
    # 24 answers are lost in writing; of these 7 are lost by likelihood too.
    after = measured("after", [0.0] * 24 + [1.0] * 76, [0.0] * 7 + [1.0] * 93)
    found = readings(before, after, "q")
    assert found is not None
    assert found.lost.value == pytest.approx(0.24)
    assert found.knowledge.value == pytest.approx(0.07)
    assert found.form.value == pytest.approx(0.17)
    assert found.form.low < 0.17 < found.form.high
    differences = np.array([0.0] * 7 + [1.0] * 17 + [0.0] * 76)
    plain = mean(differences)
    assert (found.form.low, found.form.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    assert str(found).startswith("q: of 24.0 points lost, 17.0 are a shift of format or answers (+")


def test_a_loss_in_both_readings_is_none_of_form_but_few_items_leave_that_open() -> None:
    before, after = measured("base", [1.0] * 40, [1.0] * 40), measured("after", [0.0] * 9 + [1.0] * 31, [0.0] * 9 + [1.0] * 31)
    found = readings(before, after, "q")
    assert found is not None
    assert found.form.value == 0
    assert found.form.low < 0 < found.form.high


def test_without_a_second_reading_nothing_is_said() -> None:
    assert readings(measured("a", [1.0] * 4, [1.0] * 4), measured("b", [1.0] * 4, None), "q") is None


def test_readings_over_other_answers_are_not_compared() -> None:
    with pytest.raises(DataError, match='sample "s0": the two measurements ranked other answers'):
        readings(measured("a", [1.0] * 4, [1.0] * 4), measured("b", [1.0] * 4, [1.0] * 4, answers=4), "q")


def test_a_task_without_choices_is_ranked_over_its_own_answers() -> None:
    rows = records(*(record(f"n{i}", "How many?", str(i % 3)) for i in range(6)))
    found = evaluate(llama(), Suite(tasks=(Task(name="q", records=rows, likelihoods=True),)))
    ranked = records(*(record(f"n{i}", "How many?", str(i % 3), choices=["0", "1", "2"]) for i in range(6)))
    choice = evaluate(llama(), Suite(tasks=(Task(name="q", records=ranked, kind="choice"),)))
    for one, other in zip(found.samples, choice.samples, strict=True):
        assert one.extra["choice"]["output"] == other.output
        assert one.extra["choice"]["logprobs"] == pytest.approx(other.extra["logprobs"], rel=1e-4)
        assert one.extra["choice"]["score"] == other.score


@pytest.mark.parametrize(("answers", "count"), [(["a"] * 5, 1), ([f"answer {n}" for n in range(33)], 33)])
def test_answers_that_are_no_closed_set_are_refused(answers: list[str], count: int) -> None:
    rows = records(*(record(f"n{i}", "How many?", answer) for i, answer in enumerate(answers)))
    with pytest.raises(DataError, match=rf"the task has {count} different answers, which is no closed set of 2 to 32"):
        Task(name="q", records=rows, likelihoods=True)


def test_the_two_parts_of_a_measured_loss_add_up() -> None:
    rows = questions(12, pictures=False)
    task = Suite(tasks=(Task(name="q", records=rows, likelihoods=True, scorer="contains"),))
    found = readings(evaluate(llama(0), task, stage="a"), evaluate(llama(1), task, stage="b"), "q")
    assert found is not None
    assert found.lost.value - found.knowledge.value == pytest.approx(found.form.value)


@pytest.mark.slow
def test_a_run_takes_its_losses_apart_and_its_report_shows_them(tmp_path: Path) -> None:
    folder = save_model(llama(), tmp_path / "model")
    path = write_recipe(tmp_path, folder)
    jsonl(tmp_path / "cats-test.jsonl", rows(500, 8, lambda n: "a cat" if n % 2 else "a dog"))
    recipe = read_recipe(path, ["optim.lr=0.02", "skills[0].likelihoods=true"])
    result = run(recipe, registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    assert {(one.task, one.stage) for one in result.readings} == {("cats", "cats"), ("cats", "dogs")}
    for one in result.readings:
        assert one.form.value == pytest.approx((one.lost.value or 0.0) - (one.knowledge.value or 0.0))
        assert one.form.n == 8
    assert "Lost in writing, or lost" in Path(result.report or "").read_text()
