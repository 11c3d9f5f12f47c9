"""`keep` in a recipe: read, checked for leaks, handed to each stage, reported, and gone on with after a stop."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import evaluation_fixtures as tiny
from pipeline_fixtures import jsonl, question, rows, save_model, write_recipe
from selectune.errors import DataError, InputError, RecipeError, Stopped
from selectune.pipeline import load_any, plan, resume, run
from selectune.pipeline.preparing import prepare
from selectune.pipeline.progress import Silent
from selectune.pipeline.stages import lessons, sequence
from selectune.recipe import L2SP, Distill, Keep, Replay, dump_recipe, parse_recipe, read_recipe
from selectune.registry import Registry

GOOD = "name: x\nselect: mlp\nskills: [{name: a, train: t, test: t}, {name: b, train: t, test: t, keep: {distill: null, l2sp: 0.5}}]\n"
EVERY = {
    "distill": {"weight": 0.5, "teacher": "base", "top_k": 16},
    "l2sp": 0.001,
    "ewc": {"weight": 2.0, "data": "older.jsonl"},
    "replay": {"share": 0.25, "data": "older.jsonl"},
    "anchors": {"data": "prompts.jsonl", "batch": 2},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny.llama(), tmp_path_factory.mktemp("llama") / "model")


def written(folder: Path, model: Path, **changes: object) -> Path:
    """A recipe with records for every part of `keep`."""
    jsonl(folder / "older.jsonl", rows(7000, 5, lambda n: "seven"))
    jsonl(folder / "prompts.jsonl", [{"id": f"p{n}", "messages": question(8000 + n, "x")["messages"][:1]} for n in range(5)])  # type: ignore[index]
    return write_recipe(folder, model, **{"keep": EVERY, "optim": {"lr": 0.01, "batch": 8, "max_steps": 4, "warmup": 0.0}, **changes})


def test_a_skill_overrides_the_recipes_keep_field_by_field_and_null_takes_one_away() -> None:
    recipe = parse_recipe(GOOD + "keep: {distill: 2, replay: 0.1}\n")
    assert recipe.keep_of(recipe.skills[0]) == Keep(distill=Distill(weight=2), replay=Replay(share=0.1))
    assert recipe.keep_of(recipe.skills[1]) == Keep(l2sp=L2SP(weight=0.5), replay=Replay(share=0.1))
    again = parse_recipe(dump_recipe(recipe))
    assert again == recipe.resolved()
    assert again.digest == recipe.digest != parse_recipe(GOOD).digest


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("{distil: 1}", r"keep\.distil: unknown key\. Did you mean distill\?"),
        ("{l2sp: {weight: -1}}", r"keep\.l2sp\.weight: input should be greater than 0"),
        ("{ewc: {weight: 1}}", r"keep\.ewc\.data: is missing"),
        ("{replay: {share: 0.1, skills: false}}", r"keep\.replay: there is nothing to replay: name data, or set skills to true"),
        ("{replay: 1.0}", r"keep\.replay\.share: input should be less than 1"),
        ("{anchors: {data: d, positions: some}}", r"keep\.anchors\.positions: input should be 'all' or 'last'"),
    ],
)
def test_a_fault_in_keep_is_reported_with_its_path(keep: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe(GOOD + f"keep: {keep}\n")


def test_each_stage_replays_the_skills_before_it(tmp_path: Path, llama: Path) -> None:
    recipe = read_recipe(written(tmp_path, llama, recovery={"train": "fish-train.jsonl", "keep": {"replay": 0.5}}))
    prepared = prepare(recipe, lambda name: load_any(name, "none"))
    found = {lesson.name: lesson.keeping for lesson in lessons(prepared)}
    assert {name: list(told.replay) for name, told in found.items()} == {
        "cats": ["older.jsonl"],
        "dogs": ["cats", "older.jsonl"],
        "recovery": ["cats", "dogs"],
    }
    assert found["dogs"].replay["cats"] is prepared.examples.train["cats"]
    assert found["cats"].ewc is found["dogs"].ewc is found["cats"].replay["older.jsonl"], "one source is read once"
    assert found["recovery"].keep == Keep(replay=Replay(share=0.5)), "nothing of the recipe's own keep"
    told = {lesson.name: lesson.keeping for lesson in sequence(prepared)}
    assert told["cats"].base is None
    assert told["dogs"].base is not None
    assert told["dogs"].base.manifest.id == prepared.model.id


@pytest.mark.slow
def test_a_run_with_every_part_of_keep_reports_each_and_goes_on_after_a_stop(tmp_path: Path, llama: Path) -> None:
    recipe = read_recipe(written(tmp_path, llama))
    registry = str(tmp_path / "registry")
    result = run(recipe, registry=registry, out=tmp_path / "runs")
    folder = Path(result.report or "").parent
    cats, dogs = result.phases
    assert cats.keep["keep.replay"] == "0.25 of all that is drawn: older.jsonl 8 times of 5 records"
    assert dogs.keep["keep.replay"] == "0.25 of all that is drawn: cats 4 times of 16 records, older.jsonl 4 times of 5 records"
    assert set(dogs.keep) == {"keep.distill", "keep.l2sp", "keep.ewc", "keep.replay", "keep.anchors"}
    page = (folder / "report.html").read_text()
    assert all(words in page for words in dogs.keep.values())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    step = next(event for event in events if event["event"] == "step" and event["stage"] == "dogs" and event["n"] == 1)
    assert step["keep.distill"] > 0, "the base is the teacher, and the model has learned a skill since"
    assert step["keep.l2sp"] == step["keep.ewc"] == 0.0, "they pull to the start of this skill"
    assert set(Registry.open(registry).log()[0].records["kept"]) == {
        f"{skill} (keep.{name})" for skill in ("cats", "dogs") for name in ("ewc", "replay", "anchors")
    }

    class Interrupts(Silent):
        now = ""

        def start(self, what: str, total: int | None) -> None:
            self.now = what

        def advance(self, done: int, total: int | None = None) -> None:
            if self.now == "Teaching dogs" and done == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        run(recipe, registry=str(tmp_path / "other"), out=tmp_path / "again", progress=Interrupts())
    (path,) = (one for one in (tmp_path / "again").iterdir() if one.name.startswith("tiny-"))
    (again,) = resume(path)
    assert [update.id for update in again.updates] == [update.id for update in result.updates]


@pytest.mark.parametrize(("part", "label"), [("older.jsonl", "keep.ewc"), ("prompts.jsonl", "keep.anchors")])
def test_what_is_kept_is_checked_for_leaks(tmp_path: Path, llama: Path, part: str, label: str) -> None:
    path = written(tmp_path, llama)
    jsonl(tmp_path / part, [question(2503, "a red fish"), question(7001, "seven")])
    with pytest.raises(DataError, match=rf"1 of 8 test records of fish are in the training of cats \({label}\) too"):
        run(read_recipe(path), registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    allowed = plan(read_recipe(path, ["leakage=report"]), lambda name: load_any(name, "none"))
    assert any(label in note for note in allowed.notes)


def test_a_plan_counts_the_steps_that_replays_add(tmp_path: Path, llama: Path) -> None:
    path = written(tmp_path, llama, optim={"lr": 0.01, "batch": 8}, keep={"replay": 0.5})
    made = plan(read_recipe(path), lambda name: load_any(name, "none"))
    assert [phase.steps for phase in made.phases] == [2, 4], "16 records in batches of 8; then half of each batch is replayed"


def test_a_recovery_that_cannot_put_the_base_back_is_refused_before_anything_is_trained(tmp_path: Path, llama: Path) -> None:
    recovery = {"train": "fish-train.jsonl", "select": ["mlp"], "keep": {"distill": {"teacher": "base"}}}
    path = written(tmp_path, llama, recovery=recovery, keep={})
    with pytest.raises(InputError, match="which is not selected here"):
        run(read_recipe(path), registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("stages/cats.json"))
