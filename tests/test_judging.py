"""Gates that stop early, looks that are counted, and the noise floor: from the recipe to the registry and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model, write_recipe
from selectune.errors import DataError, LooksSpent
from selectune.evaluation import Measurement, Suite, Task, evaluate
from selectune.evaluation.measurement import Sample
from selectune.evaluation.noise import noise_floor
from selectune.evaluation.portions import joined, on_common, portions
from selectune.pipeline import run
from selectune.pipeline.judging import Case, Models, judge_early
from selectune.pipeline.measuring import other_batch
from selectune.recipe import Data, Gate, HeldOut, Recipe, Skill, read_recipe
from selectune.records import Records, read_rows
from selectune.registry import Look, Registry
from selectune.registry.looks import check_budget
from selectune.reporting import RunResult

GATE: Mapping[str, object] = {"min_n": 2, "margin": 0.9, "early": 2, "noise": True, "looks": 4}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny.llama(), tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> tuple[RunResult, Path, Recipe]:
    """A run whose gate stops early, its folder and its recipe."""
    folder = tmp_path_factory.mktemp("early")
    recipe = read_recipe(write_recipe(folder, llama, gate=dict(GATE)))
    return run(recipe, registry=str(folder / "registry"), out=folder / "runs"), folder, recipe


def samples(folder: Path, result: RunResult, stage: str) -> Measurement:
    return Measurement.load(folder / "runs" / result.run / "samples" / f"{stage}.parquet")


# Early


def test_a_gate_that_may_stop_early_asks_no_further_than_it_needs(early: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, _ = early
    measured = samples(folder, result, "cats")
    rule = next(rule for rule in result.verdicts[0].rules if rule.task == "fish")
    assert rule.verdict == "passed"
    assert rule.planned == 8
    assert rule.n == measured.n("fish") < 8
    assert rule.method == "betting"
    assert f"asked {rule.n} of 8 in random order" in rule.evidence
    assert measured.planned == {"fish": 8}
    assert measured.n("cats") == measured.n("dogs") == 8, "what a later stage is compared with is asked whole"
    assert measured.n("plain") == 6, "a log-likelihood has no bound to bet on"
    assert any("the gate decided after" in note for note in result.notes)


def test_a_skill_taught_before_is_guarded_early_and_the_stage_before_is_asked_what_it_lacks(early: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, _ = early
    rules = {(rule.task, rule.against): rule for rule in result.verdicts[1].rules}
    assert rules["cats", "cats"].planned == 8
    assert rules["fish", "previous"].n == rules["fish", "base"].n == samples(folder, result, "dogs").n("fish")
    asked = samples(folder, result, "dogs").n("fish") - samples(folder, result, "cats").n("fish")
    more = folder / "runs" / result.run / "samples" / "before" / "dogs.parquet"
    assert more.is_file() == (asked > 0)


def test_the_same_recipe_asks_the_same_items_in_the_same_order(early: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, recipe = early
    again = run(recipe, registry=str(folder / "registry"), out=folder / "runs")
    assert again.verdicts == result.verdicts
    first, second = samples(folder, result, "dogs"), samples(folder, again, "dogs")
    assert [(one.task, one.id) for one in first.samples] == [(one.task, one.id) for one in second.samples]
    assert first.environment["order"] == "random, seed 0"


def test_what_was_asked_early_is_what_a_whole_evaluation_finds(early: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, recipe = early
    whole = run(
        recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"early": None, "looks": None})}),
        registry=str(folder / "whole"),
        out=folder / "runs",
    )
    part, all_ = samples(folder, result, "dogs"), samples(folder, whole, "dogs")
    assert len(part.samples) < len(all_.samples)
    for sample in part.samples:
        other = all_.of(sample.task)[sample.id]
        assert (sample.output, sample.score, sample.prompt_digest) == pytest.approx((other.output, other.score, other.prompt_digest))
    assert whole.metrics["target_learning"] == result.metrics["target_learning"]


def test_what_the_model_before_was_not_asked_is_asked_of_it_when_the_next_update_needs_it() -> None:
    before, child = tiny.llama(), tiny.llama()
    with torch.no_grad():
        next(child.net.parameters()).add_(0.01)
    suite = Suite(tasks=tuple(Task(name=name, records=records(8)) for name in ("cats", "dogs", "fish")))
    base = evaluate(before, suite, stage="base")
    order = [record.id for part in portions(records(8), base.clusters("fish"), seed=0, size=1) for record in part]
    asked = tuple(sample for sample in base.samples if sample.task != "fish" or sample.id in order[:2])
    gate = Gate(margin=0.9, early=1, min_n=4)
    data = Data(source="rows")
    recipe = Recipe(
        name="tiny",
        select=("attention",),
        skills=(Skill(name="dogs", train=data, test=data),),
        held_out=(HeldOut(name="fish", test=data),),
        gate=gate,
    )
    case = Case(recipe=recipe, suite=suite, skill="dogs", past=(base, replace(base, stage="cats", samples=asked)))
    models = Models(after=lambda: nullcontext(child), before=before)
    judged = judge_early(case, models, lambda done, total: None)
    assert [sample.id for sample in judged.measurement.samples if sample.task == "fish"] == order[:4]
    assert judged.more is not None
    assert [(sample.task, sample.id) for sample in judged.more.samples] == [("fish", order[2]), ("fish", order[3])]
    assert {rule.against: (rule.n, rule.planned) for rule in judged.verdict.rules if rule.task == "fish"} == {
        "previous": (4, 8),
        "base": (4, 8),
    }


def records(count: int) -> Records:
    rows = [{"id": f"r{n}", "question": f"question {n}", "answer": "yes"} for n in range(count)]
    return read_rows(rows, Data(source="rows"))


def test_portions_hold_every_record_once_and_clusters_whole_in_an_order_that_the_seed_draws() -> None:
    found = records(40)
    clusters = {record.id: f"image {number // 4}" for number, record in enumerate(found)}
    parts = portions(found, clusters, seed=3, size=6)
    ids = [record.id for part in parts for record in part]
    assert sorted(ids) == sorted(record.id for record in found)
    assert ids != [record.id for record in found]
    assert all(len(part) in (8, 4) and len(part) >= 4 for part in parts)
    assert all(len({clusters[record.id] for record in part}) == len(part) // 4 for part in parts)
    turned = replace(found, items=found.items[::-1])
    assert [part.digest for part in portions(turned, clusters, seed=3, size=6)] == [part.digest for part in parts]
    assert [part.digest for part in portions(found, clusters, seed=4, size=6)] != [part.digest for part in parts]


def measurement(stage: str, scores: Mapping[str, Sequence[float]], *, model: str = "m", size: int = 1) -> Measurement:
    found = [
        Sample(task=task, id=f"{n}", cluster=f"{n // size}", prompt_digest="asked", output="", reference="", score=score)
        for task, row in scores.items()
        for n, score in enumerate(row)
    ]
    return Measurement(stage=stage, model_id=model, suite="suite", samples=tuple(found), seconds=1.0)


def test_portions_of_two_models_are_not_joined() -> None:
    one = measurement("cats", {"fish": [1.0]})
    with pytest.raises(DataError, match='"cats" is of the model m, its next portion of n'):
        joined(one, measurement("cats", {"dogs": [1.0]}, model="n"))
    assert joined(one, measurement("cats", {"dogs": [1.0]})).tasks == ("fish", "dogs")


def test_measurements_are_cut_to_what_all_of_them_hold() -> None:
    whole, part = measurement("base", {"fish": [1.0, 0.0, 1.0], "cats": [1.0]}), measurement("cats", {"fish": [0.0], "cats": [1.0]})
    assert [[(one.task, one.id) for one in found.samples] for found in on_common([whole, part])] == [[("fish", "0"), ("cats", "0")]] * 2


# Noise


def test_a_run_shows_the_noise_floor_beside_every_loss(early: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, _ = early
    assert result.noise.keys() == {"cats", "dogs", "fish", "plain"}
    assert result.noise["fish"].method.startswith("A/A")
    assert all(rule.noise == result.noise[rule.task].value for verdict in result.verdicts for rule in verdict.rules)
    assert samples(folder, result, "base-again").environment["batch"] == str(other_batch(8)) == "4"


def test_the_noise_floor_is_the_share_of_items_that_flip_with_no_update() -> None:
    first, second = (
        measurement("base", {"fish": [1, 1, 0, 0, 1] * 20}),
        measurement("again", {"fish": [1, 0, 0, 0, 1] + [1, 1, 0, 0, 1] * 19}),
    )
    found = noise_floor(first, second)["fish"]
    assert (found.value, found.n, found.method) == (0.01, 100, "A/A, Clopper-Pearson")
    assert found.high == pytest.approx(0.0545, abs=1e-4)
    clustered = noise_floor(measurement("base", {"fish": [1.0, 1.0] * 5}, size=2), measurement("again", {"fish": [1.0, 0.5] * 5}, size=2))
    assert clustered["fish"].value == 0.25


def test_a_noise_floor_of_two_models_is_refused() -> None:
    with pytest.raises(DataError, match=r"are of two models \(m, n\)"):
        noise_floor(measurement("base", {"fish": [1.0]}), measurement("cats", {"fish": [1.0]}, model="n"))


def test_a_batch_plan_is_another_one_even_for_single_records() -> None:
    assert [other_batch(batch) for batch in (1, 2, 32)] == [2, 1, 16]


def test_two_batch_plans_of_one_model_agree_in_full_precision() -> None:
    model = tiny.llama()
    suite = Suite(tasks=(Task(name="fish", records=records(6)),))
    floor = noise_floor(evaluate(model, suite, batch=6), evaluate(model, suite, batch=other_batch(6)))
    assert floor["fish"].value == 0


# Looks


def look(model: str, *, alpha: float = 0.01, total: float = 0.05, digest: str = "set") -> Look:
    return Look(model=model, sets={"fish": digest}, alpha=alpha, total=total)


def test_a_set_of_records_judges_as_many_models_as_it_may(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    assert [registry.look(look(f"m{n}")) for n in range(5)] == [True] * 5
    with pytest.raises(LooksSpent, match=r"task fish: its test records \(set\) have judged 5 models, which spent 0.05 of alpha 0.05"):
        registry.look(look("m5"))
    assert registry.look(look("m5", digest="another set"))
    assert registry.verify().ok
    assert [one.model for one in registry.looks()] == ["m0", "m1", "m2", "m3", "m4", "m5"]


def test_the_same_model_judged_again_costs_nothing(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    assert registry.look(look("m0", alpha=0.05))
    assert not registry.look(look("m0", alpha=0.05))
    assert not registry.look(look("m0", alpha=0.01))
    assert len(registry.looks()) == 1


def test_more_looks_cannot_be_had_by_asking_for_more_once_alpha_is_spent() -> None:
    past = [look(f"m{n}", alpha=0.025) for n in range(2)]
    with pytest.raises(LooksSpent):
        check_budget(past, look("m2", alpha=0.05 / 100))
    assert check_budget(past[:1], look("m2", alpha=0.025))


def test_a_run_spends_a_look_for_each_update_before_it_is_measured(early: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, recipe = early
    found = Registry.open(str(folder / "registry")).looks()
    assert [one.model for one in found] == [update.child for update in result.updates]
    assert [set(one.sets) for one in found] == [{"cats", "fish", "plain"}, {"cats", "dogs", "fish", "plain"}]
    assert {(one.alpha, one.total) for one in found} == {(recipe.gate.alpha / 4, recipe.gate.alpha)}
    assert "98.75 % confidence" in result.verdicts[0].rules[0].evidence


def test_a_run_that_needs_more_looks_than_are_left_is_refused_before_it_trains(early: tuple[RunResult, Path, Recipe]) -> None:
    _, folder, recipe = early
    other = recipe.model_copy(update={"seed": 1, "name": "other"})
    run(other, registry=str(folder / "registry"), out=folder / "runs")
    third = recipe.model_copy(update={"seed": 2, "name": "third"})
    with pytest.raises(LooksSpent, match="have judged 4 models"):
        run(third, registry=str(folder / "registry"), out=folder / "runs")
    assert not any((folder / "runs").glob("third-*/checkpoints"))
