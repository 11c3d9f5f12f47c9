"""Every shipped task on small files of its data set's own schema; and what a task refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model
from selectune.cli import app
from selectune.errors import DataError, InputError, NoMatch, RecipeError
from selectune.evaluation import Reference, Suite, Task, evaluate
from selectune.evaluation.readings import readings
from selectune.evaluation.rescoring import rescore
from selectune.evaluation.tasks import TaskSpec, all_tasks, find_task, finding, read_task, read_task_records, task_of
from selectune.evaluation.tasks.rendering import rendered
from selectune.pipeline.preparing import read_examples
from selectune.recipe import Data, Recipe, parse_recipe, read_recipe
from selectune.records import Message, Record, Records, read_records
from task_fixtures import SMALL, png

TEXT_ONLY = ("mmlu", "gsm8k", "wikitext")
STUDY = {
    "target": {"cub-200", "pixmocount", "pathvqa", "textvqa", "clock"},
    "held-out": {"ai2d", "chartqa", "docvqa", "infovqa", "realworldqa", "seedbench", "scienceqa-img", "mmstar"},
}
MINE = """
name: mine
title: Mine
about: A task of my own.
source: {hub: me/mine}
scorer: exact
question: q
prompt: "Say: {question}"
answer: a
"""


def mine(**changes: Any) -> TaskSpec:
    """A small task of text alone, with other fields."""
    given: dict[str, Any] = {
        "name": "mine",
        "title": "Mine",
        "about": "Mine.",
        "source": {"hub": "me/mine"},
        "question": "q",
        "answer": "a",
    }
    return TaskSpec.model_validate(given | changes)


def rows(folder: Path, *found: Mapping[str, Any], name: str = "test.jsonl") -> Data:
    """The rows as a file of JSON lines, as a source."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return Data(source=str(path), task="mine")


def test_the_shipped_tasks_are_the_studys_thirteen_and_three_of_text() -> None:
    known = all_tasks()
    for role, names in STUDY.items():
        assert {name for name, spec in known.items() if spec.role == role and name not in TEXT_ONLY} == names
    assert set(known) == set(SMALL) == {*STUDY["target"], *STUDY["held-out"], *TEXT_ONLY}
    assert all(spec.image is not None for name, spec in known.items() if name not in TEXT_ONLY)


@pytest.mark.parametrize("name", SMALL)
def test_a_task_reads_its_own_schema_and_asks_in_the_fields_words(name: str, tmp_path: Path) -> None:
    small, spec = SMALL[name], all_tasks()[name]
    task = task_of(name, Data(source=str(small.write(tmp_path)), task=name))
    records = task.records
    assert [record.prompt[-1].text if record.prompt else "" for record in records] == list(small.prompts)
    assert [record.answer for record in records] == list(small.answers)
    assert [record.meta.get("choices", ()) for record in records] == list(small.choices or [()] * len(records))
    assert {key: records[0].meta[key] for key in small.meta} == dict(small.meta)
    assert not small.ids or [record.id for record in records] == list(small.ids)
    assert all(len(record.pictures) == (spec.image is not None) for record in records)
    records.check_pictures()
    assert (task.scorer, task.kind, task.role, task.likelihoods) == (spec.scorer, spec.kind, spec.role, spec.likelihoods)
    if task.kind == "generate":
        assert [task.judge(record.answer, Reference.of(record)) for record in records] == [1.0] * len(records)


LMMS_EVAL = json.loads((Path(__file__).parent / "recorded" / "lmms_eval.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LMMS_EVAL["prompts"])
def test_a_prompt_is_what_lmms_eval_makes_of_the_same_row(name: str) -> None:
    assert list(SMALL[name].prompts) == LMMS_EVAL["prompts"][name]


@pytest.mark.parametrize("name", SMALL)
def test_a_prompt_holds_the_question_and_no_python_value(name: str, tmp_path: Path) -> None:
    # The reference code formatted its keyword arguments, a dict, into three of five targets' prompts.
    small, spec = SMALL[name], all_tasks()[name]
    if spec.question is None:
        pytest.skip("perplexity asks nothing")
    asked = [str(row[spec.question.column]) for row in small.rows if all(row[key] == value for key, value in spec.where.items())]
    for record, question in zip(task_of(name, Data(source=str(small.write(tmp_path)), task=name)).records, asked, strict=True):
        bare = question.replace("\n<image>", "").replace("<image>\n", "").strip()
        text = record.prompt[-1].text
        assert bare.casefold() in text.casefold()
        assert "pre_prompt" not in text
        assert text.count("{'default'") == question.count("{'default'")


@pytest.mark.parametrize("name", ["cub-200", "pixmocount", "clock", "seedbench"])
def test_a_dict_where_the_question_belongs_is_refused(name: str) -> None:
    row = {**SMALL[name].rows[0], "question": {"default": {}, "pre_prompt": ""}}
    with pytest.raises(DataError, match="question: there is a dict where text belongs"):
        rendered(all_tasks()[name], row, "row 1")


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("Look at this.", r"the prompt has to hold \{question\}, once"),
        ("{question} {question}", "once"),
        ("{question} {hint}", r"\{hint\} is none of the prompt's places"),
        ("{question} {options}", r"\{options\} needs choices in columns"),
    ],
)
def test_a_task_whose_prompt_lacks_the_question_is_refused(prompt: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        mine(prompt=prompt)


def test_a_task_of_records_that_ask_nothing_is_refused_with_the_sample() -> None:
    record = Record(id="x7", messages=(Message(role="user", parts=(" ",)), Message(role="assistant", parts=("yes",))))
    with pytest.raises(DataError, match='task t: record "x7": its prompt asks nothing'):
        Task(name="t", records=Records(items=(record,), name="r"))


@pytest.mark.parametrize(("name", "path"), [("textvqa", "validation"), ("ai2d", "test"), ("docvqa", "validation")])
def test_a_folder_that_datasets_saved_reads_alike(name: str, path: str, tmp_path: Path) -> None:
    small = SMALL[name]
    made = small.dataset()
    datasets.DatasetDict({path: made}).save_to_disk(tmp_path / "saved")
    small.write(tmp_path / "hub")
    saved, hub = (task_of(name, Data(source=str(tmp_path / one), task=name)) for one in ("saved", "hub"))
    assert saved.digest == hub.digest


@pytest.mark.parametrize("name", ["chartqa", "mmlu", "scienceqa-img"])
def test_the_hubs_data_set_is_loaded_by_its_id_and_runs_no_code(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small, asked = SMALL[name], []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        asked.append((arguments, options))
        return small.dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    origin = all_tasks()[name].source
    assert task_of(name).digest == task_of(name, Data(source=str(small.write(tmp_path)), task=name)).digest
    assert asked == [((origin.hub, origin.config), {"split": origin.split})]


def test_a_data_set_that_cannot_be_loaded_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'lmms-lab/ai2d' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"cannot be loaded .* hf download --repo-type dataset lmms-lab/ai2d .* source: FOLDER"):
        task_of("ai2d")


def test_a_split_that_is_asked_for_has_to_be_there_and_another_splits_file_is_never_taken(tmp_path: Path) -> None:
    SMALL["mmstar"].write(tmp_path)
    with pytest.raises(DataError, match='there is no split "train"'):
        task_of("mmstar", Data(source=str(tmp_path), task="mmstar", split="train"))
    (tmp_path / "mmstar.parquet").rename(tmp_path / "train.parquet")
    for source in (tmp_path, tmp_path / "train.parquet"):
        with pytest.raises(DataError, match='there is no split "val"'):
            task_of("mmstar", Data(source=str(source), task="mmstar"))


def test_a_class_without_its_names_is_a_number_and_means_the_same(tmp_path: Path) -> None:
    named = task_of("mmlu", Data(source=str(SMALL["mmlu"].write(tmp_path)), task="mmlu"))
    row = {**SMALL["mmlu"].rows[0], "answer": 1}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    assert task_of("mmlu", Data(source=str(tmp_path / "mine.jsonl"), task="mmlu")).digest == named.digest


def test_pictures_may_be_paths_beside_a_file_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(9)["bytes"])
    (tmp_path / "test.jsonl").write_text(json.dumps({"image": "images/a.png", "question": "How many?", "answer": 3, "type": "human_test"}))
    record = task_of("chartqa", Data(source=str(tmp_path / "test.jsonl"), task="chartqa")).records[0]
    assert record.pictures[0].open().size == (8, 8)
    assert record.answer == "3"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"kind": "perplexity"}, "a perplexity needs text, and no question"),
        ({"question": None}, "a task of kind generate needs a question, and no text"),
        ({"answer": None}, "it needs an answer, or answers"),
        ({"kind": "choice"}, "likelihoods are compared between choices, and it has none"),
        ({"answer": {"column": "a", "form": "index"}}, "an answer by index needs choices"),
        ({"choices": {}}, "needs one of columns, letters and pattern, not none"),
        ({"choices": {"letters": 4, "columns": "c"}}, "not columns and letters"),
        ({"choices": {"pattern": "("}}, "is no regular expression"),
        ({"choices": {"pattern": "(.)"}}, "has 1 groups where 2 are needed"),
        ({"source": {"hub": "../../secret"}}, "should match pattern"),
    ],
)
def test_a_task_that_does_not_hang_together_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        mine(**changes)


def test_blank_rows_of_text_are_left_out_and_counted(tmp_path: Path) -> None:
    records = task_of("wikitext", Data(source=str(SMALL["wikitext"].write(tmp_path)), task="wikitext")).records
    assert dict(records.dropped) == {"blank": 2}


def test_a_limit_draws_records(tmp_path: Path) -> None:
    data = rows(tmp_path, *({"q": f"What is {index}?", "a": str(index)} for index in range(9)))
    records = read_task_records(mine(), data.model_copy(update={"limit": 4}))
    assert len(records) == 4
    assert dict(records.dropped) == {"over the limit of 4": 5}


@pytest.mark.parametrize(
    ("changes", "row", "what"),
    [
        ({}, {"q": "", "a": "1"}, "row 2: its question is empty"),
        ({}, {"q": "Why?", "a": ""}, "row 2: it has no right answer"),
        ({}, {"q": "Why?", "a": ["1"]}, "row 2: a: there is a list where text belongs"),
        ({}, {"q": None, "a": "1"}, "row 2: q: there is nothing where text belongs"),
        ({"answer": None, "answers": "a"}, {"q": "Why?", "a": []}, "row 2: its list of answers is empty"),
        ({"answer": None, "answers": "a"}, {"q": "Why?", "a": ["", None]}, "row 2: its list of answers is empty"),
        ({"id": "n"}, {"n": None, "q": "Why?", "a": "1"}, 'row 2: it has no id in the column "n"'),
        ({"id": "n"}, {"n": " ", "q": "Why?", "a": "1"}, 'row 2: it has no id in the column "n"'),
        ({"id": "n"}, {"n": "one", "q": "Why?", "a": "1"}, 'two records have the id "one"'),
        ({"id": "n"}, {"n": "two", "q": "", "a": "1"}, r'row 2 \(sample "two"\): its question is empty'),
        ({"choices": {"columns": "c"}}, {"q": "Why?", "a": "1", "c": ["2", "3"]}, 'row 2: its answer "1" is none of the choices'),
        ({"choices": {"columns": "c"}}, {"q": "Why?", "a": "1", "c": ["1"]}, "row 2: it offers 1 choices"),
        ({"choices": {"columns": "c"}}, {"q": "Why?", "a": "1", "c": "1"}, 'row 2: "c" holds no list of choices'),
        ({"choices": {"letters": 4}, "answer": {"column": "a", "form": "letter"}}, {"q": "Why?", "a": "E"}, "none of the choices"),
        (
            {"choices": {"pattern": r"^([A-Z])\. (.+)$"}, "answer": {"column": "a", "form": "letter"}},
            {"q": "Why?\nA. x\nC. y", "a": "A"},
            "row 2: its options are A, C",
        ),
        ({"answer": {"column": "a", "pattern": r"#### (\d+)"}}, {"q": "Why?", "a": "9"}, 'row 2: its answer "9" is not of the task'),
        ({"image": "p"}, {"q": "Why?", "a": "1", "p": None}, "row 2: it has no picture"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(changes: dict[str, Any], row: dict[str, Any], what: str, tmp_path: Path) -> None:
    good = {"n": "one", "q": "A?\nA. x\nB. y", "a": "A", "c": ["A", "B"], "p": "p.png"}
    if changes.get("answers"):
        good["a"] = ["A"]
    if "pattern" in str(changes.get("answer")):
        good["a"] = "#### 1"
    (tmp_path / "p.png").write_bytes(png(1)["bytes"])
    with pytest.raises(DataError, match=what):
        read_task_records(mine(**changes), rows(tmp_path, good, row))


def test_a_column_that_is_not_there_is_named_with_a_near_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'row 1: there is no column "answer"\. Did you mean answers\?'):
        read_task_records(mine(answer="answer"), rows(tmp_path, {"q": "Why?", "answers": "1"}))


def test_places_in_a_rows_own_text_are_not_filled(tmp_path: Path) -> None:
    spec = mine(parts={"hint": "{h}: "}, prompt="{hint}{question}")
    records = read_task_records(spec, rows(tmp_path, {"q": "{hint} {h}?", "a": "1", "h": "{question}"}))
    assert records[0].prompt[0].text == "{question}: {hint} {h}?"


def test_a_nan_score_is_refused_with_the_sample(tmp_path: Path) -> None:
    task = task_of(mine(scorer=not_a_number), rows(tmp_path, {"q": "Why?", "a": "1"}))
    with pytest.raises(DataError, match=rf'task mine: record "{task.records[0].id}": its score is nan, outside 0 to 1'):
        evaluate(tiny.llama(), Suite(tasks=(task,)))


def not_a_number(output: str, reference: Reference) -> float:
    return float("nan")


def test_every_fault_of_a_task_file_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace("scorer: exact", "scorer: exakt\nimagee: x\nmax_new_tokens: 0\nkeep: [label]\nrow: os.system"))
    with pytest.raises(InputError) as told:
        read_task(path)
    message = str(told.value)
    assert "mine.yaml: imagee: unknown key. Did you mean image?" in message
    assert "mine.yaml: max_new_tokens" in message
    assert "mine.yaml: row: input should be callable" in message
    path.write_text(MINE.replace("scorer: exact", "scorer: exakt\nkeep: [label]"))
    with pytest.raises(InputError, match=r'"exakt" is no scorer. Did you mean exact\?; keep: label means something else'):
        read_task(path)
    path.write_text("name: [")
    with pytest.raises(InputError, match=r"mine.yaml: line 1"):
        read_task(path)


def test_an_unknown_task_is_named_with_near_ones() -> None:
    with pytest.raises(NoMatch, match=r'"chart-qa" is no task. Did you mean chartqa\?'):
        find_task("chart-qa")


def test_a_package_offers_tasks_and_changes_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    found: dict[str, Any] = {"folder": tmp_path, "spec": mine(name="other"), "bad": "mine.yaml", "again": mine(name="ai2d")}
    monkeypatch.setattr(EntryPoint, "load", lambda entry: found[entry.name])

    def offer(*names: str) -> None:
        entries = [EntryPoint(name=name, value=f"pack:{name}", group=finding.ENTRY_POINTS) for name in names]
        monkeypatch.setattr(finding, "entry_points", lambda group: entries)
        all_tasks.cache_clear()

    offer("folder", "spec")
    assert {"mine", "other", "ai2d"} <= set(all_tasks())
    offer("again")
    with pytest.raises(InputError, match=r'there is a task "ai2d" already\. A package adds tasks and changes none'):
        all_tasks()
    offer("bad")
    with pytest.raises(InputError, match="which is neither a task nor an absolute path"):
        all_tasks()
    monkeypatch.undo()
    all_tasks.cache_clear()


def test_a_row_function_makes_the_rows_that_the_task_speaks_of(tmp_path: Path) -> None:
    spec = mine(row=lambda row: {"q": f"{row['x']} + {row['y']}?", "a": str(row["x"] + row["y"])}, scorer="number")
    records = read_task_records(spec, rows(tmp_path, {"x": 2, "y": 3}))
    assert (records[0].prompt[0].text, records[0].answer) == ("2 + 3?", "5")


RECIPE = """
name: r
select: [attention]
skills:
  - {name: clocks, train: {task: clock, source: clock, split: train}, test: {task: clock, source: clock, limit: 1}}
held_out:
  - {task: ai2d, source: ./ai2d, limit: 1}
  - {name: other, test: {task: mine.yaml, source: mine.jsonl}, scorer: contains, max_new_tokens: 3}
leakage: report
optim: {batch: 1}
"""


def recipe(folder: Path, text: str = RECIPE) -> Recipe:
    for name in ("clock", "ai2d"):
        SMALL[name].write(folder / name)
    (folder / "mine.yaml").write_text(MINE)
    rows(folder, {"q": "Why?", "a": "so"}, name="mine.jsonl")
    (folder / "r.yaml").write_text(text)
    return read_recipe(folder / "r.yaml")


def test_a_recipe_names_tasks_for_its_tests_and_its_training(tmp_path: Path) -> None:
    examples = read_examples(recipe(tmp_path))
    clock, ai2d, other = examples.suite.tasks
    assert (clock.name, clock.scorer, clock.max_new_tokens, clock.role) == ("clocks", "clock-near", 32, "target")
    assert clock.further == ("clock-hour", "clock-minute", "clock")
    assert (ai2d.name, ai2d.scorer, ai2d.likelihoods, ai2d.role, len(ai2d.records)) == ("ai2d", "letter", True, "held-out", 1)
    assert (other.name, other.scorer, other.max_new_tokens) == ("other", "contains", 3)
    assert examples.train["clocks"][0].prompt[-1].text == clock.records[0].prompt[-1].text
    assert [info.about for info in examples.tasks][1] == all_tasks()["ai2d"].about
    assert [info.scorer for info in examples.tasks] == ["clock-near", "letter", "contains"]


def test_a_resolved_recipe_with_tasks_reads_back_the_same(tmp_path: Path) -> None:
    from selectune.recipe import dump_recipe

    read = recipe(tmp_path)
    assert parse_recipe(dump_recipe(read)).digest == read.digest
    assert read.shortened(skills=1, steps=1, records=7).held_out[0].test.limit == 1


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("source: ./ai2d, limit: 1}", "source: ./ai2d, columns: {question: q}}", "a task says itself what columns would"),
        ("{task: ai2d, source: ./ai2d, limit: 1}", "{name: x, test: {limit: 3}}", "needs a source, or a task"),
        ("{task: ai2d, source: ./ai2d, limit: 1}", "{task: ai2d, sauce: x}", r"held_out\[0\]\.sauce: unknown key"),
    ],
)
def test_a_recipe_that_says_too_much_or_too_little_of_a_task_is_refused(before: str, after: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=what):
        recipe(tmp_path, RECIPE.replace(before, after))


def test_an_unknown_task_in_a_recipe_is_refused_with_near_ones(tmp_path: Path) -> None:
    with pytest.raises(NoMatch, match=r'"ai2" is no task. Did you mean ai2d\?'):
        read_examples(recipe(tmp_path, RECIPE.replace("{task: ai2d,", "{task: ai2,")))


def test_the_reader_of_plain_records_says_who_reads_a_task() -> None:
    with pytest.raises(DataError, match="the task ai2d says how its rows are read"):
        read_records(Data(task="ai2d"))


def test_a_tiny_model_reads_a_picture_task_twice_and_its_outputs_are_scored_again(tmp_path: Path) -> None:
    for name in ("scienceqa-img", "clock"):
        SMALL[name].write(tmp_path / name)
    tasks = tuple(task_of(name, Data(source=str(tmp_path / name), task=name)) for name in ("scienceqa-img", "clock"))
    measurement = evaluate(tiny.llava(), Suite(tasks=tasks))
    for sample in measurement.of("scienceqa-img").values():
        reading = sample.extra["choice"]
        assert len(reading["logprobs"]) in (2, 3)
        assert reading["output"] in ("A", "B", "C")
    assert rescore(measurement, tasks[1], "clock-near") == measurement.scores("clock")
    assert set(rescore(measurement, tasks[1], "f1")) == set(measurement.scores("clock"))
    other = task_of("clock", Data(source=str(tmp_path / "clock"), task="clock"), name="scienceqa-img")
    with pytest.raises(DataError, match="the measurement is of other records"):
        rescore(measurement, other, "f1")


RANKED = {
    "cub-200": (tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),) * 2,
    "pathvqa": (("yes", "no"), ()),
    "ai2d": (("A", "B", "C", "D"),) * 2,
    "realworldqa": (("A", "B", "C"), ()),
    "seedbench": (("A", "B", "C", "D"),),
    "scienceqa-img": (("A", "B"), ("A", "B", "C")),
    "mmstar": (("A", "B", "C", "D"),),
}
"""By task: what is ranked for each row of its small file."""


@pytest.mark.parametrize("name", [name for name in SMALL if name not in TEXT_ONLY])
def test_every_task_of_the_study_is_read_twice_or_says_why_not(name: str, tmp_path: Path) -> None:
    task = task_of(name, Data(source=str(SMALL[name].write(tmp_path)), task=name))
    model = tiny.llava()
    model.net.config.get_text_config().max_position_embeddings = 1024
    measurement = evaluate(model, Suite(tasks=(task,)), batch=2)
    found = [measurement.of(name)[record.id].extra.get("choice") for record in task.records]
    wanted = RANKED.get(name, ((),) * len(task.records))
    assert [len(reading["logprobs"]) if reading else 0 for reading in found] == [len(choices) for choices in wanted]
    for record, reading, choices in zip(task.records, found, wanted, strict=True):
        assert reading is None or reading["output"] in choices
        assert reading is None or reading["score"] == float(reading["output"] == record.answer)
    assert (() in wanted) == bool(all_tasks()[name].unranked), "rows without a second reading come with a reason"


@pytest.mark.parametrize("answers", [("Yes", "3"), ("3", "No"), ("Yes", "No"), ("3", "4")])
def test_a_yes_or_no_of_realworldqa_is_ranked_and_a_number_beside_it_is_not(answers: tuple[str, str], tmp_path: Path) -> None:
    rows = [{"image": png(n), "image_path": str(n), "question": f"Is it {n}?", "answer": one} for n, one in enumerate(answers)]
    small = replace(SMALL["realworldqa"], rows=rows)
    task = task_of("realworldqa", Data(source=str(small.write(tmp_path)), task="realworldqa"))
    assert [record.meta["ranked"] for record in task.records] == [("Yes", "No") if one in ("Yes", "No") else () for one in answers]
    suite = Suite(tasks=(task,))
    before, after = evaluate(tiny.llava(0), suite, stage="a"), evaluate(tiny.llava(1), suite, stage="b")
    ranked = [record.id for record in task.records if record.meta["ranked"]]
    assert [name for name, sample in before.of("realworldqa").items() if "choice" in sample.extra] == ranked
    apart = readings(before, after, "realworldqa")
    assert (apart is None) == (not ranked)
    assert apart is None or apart.form.n == len(ranked)


def test_ranked_answers_need_a_second_reading() -> None:
    with pytest.raises(ValidationError, match="ranked needs likelihoods: true, and one answer"):
        mine(ranked=["yes", "no"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny.llama(), tmp_path_factory.mktemp("llama") / "model")


def test_eval_measures_tasks_by_name_and_shows_their_further_scores(model: Path, tmp_path: Path) -> None:
    for name in TEXT_ONLY:
        SMALL[name].write(tmp_path / name)
    (tmp_path / "mine.yaml").write_text(MINE + "further: [f1]\n")
    rows(tmp_path, {"q": "Why?", "a": "so"}, {"q": "How?", "a": "thus"}, name="mine.jsonl")
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("mmlu", "wikitext", "mine.jsonl"):
        (tmp_path / name).rename(sources / name)
    done = CliRunner().invoke(
        app, ["eval", str(model), "--tasks", f"mmlu,wikitext,{tmp_path / 'mine.yaml'}", "--source", str(sources), "--json"]
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [(row["task"], row["n"]) for row in document["tasks"]] == [("mmlu", 1), ("wikitext", 2), ("mine", 2)]
    assert [(row["task"], row["scorer"], row["n"]) for row in document["further"]] == [("mine", "f1", 2)]
    assert (
        CliRunner().invoke(app, ["eval", str(model), "--tasks", "mmlu", "--source", str(sources / "mmlu"), "--limit", "1"]).exit_code == 0
    )


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["eval", "embedded"], "it needs a recipe or --tasks"),
        (["eval", "embedded", "demo-attention", "--tasks", "ai2d"], "it needs a recipe or --tasks"),
        (["eval", "embedded", "--tasks", "ai2d", "--set", "seed=1"], "--set changes a recipe"),
        (["eval", "embedded", "demo-attention", "--limit", "3"], "--source and --limit go with --tasks"),
        (["eval", "embedded", "--tasks", "ai2d,chartqa", "--source", "."], "it holds nothing called ai2d"),
    ],
)
def test_eval_says_what_does_not_go_together(arguments: list[str], what: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert what in done.output


def test_the_verb_tasks_lists_scorer_prompt_and_source() -> None:
    listed = json.loads(CliRunner().invoke(app, ["tasks", "--json"]).stdout)["tasks"]
    ai2d = next(row for row in listed if row["name"] == "ai2d")
    assert (ai2d["scorer"], ai2d["likelihoods"], ai2d["source"]["hub"]) == ("letter", True, "lmms-lab/ai2d")
    assert ai2d["prompt"] == all_tasks()["ai2d"].prompt
    printed = CliRunner().invoke(app, ["tasks"]).output
    assert "seedbench" in printed
    assert "Salesforce/wikitext" in printed
