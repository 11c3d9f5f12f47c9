"""Recipes: YAML in, every fault out at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectune.errors import RecipeError
from selectune.recipe import Data, Optim, Recipe, dump_recipe, parse_recipe, presets, read_recipe

GOOD = """
name: birds
select: [attention]
skills:
  - name: birds
    train: train.jsonl
    test: {source: test.jsonl, limit: 5}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_short_recipe_has_the_defaults_of_the_study(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, GOOD))
    assert (recipe.model, recipe.seed, recipe.tie, recipe.on_failure, recipe.select) == (
        "embedded",
        0,
        "forbid",
        "continue",
        ("attention",),
    )
    assert (recipe.optim.lr, recipe.optim.warmup, recipe.optim.epochs, recipe.optim.batch) == (5e-6, 0.03, 1.0, 32)
    assert (recipe.optim.schedule, recipe.optim.weight_decay) == ("cosine", 0.0)


def test_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    text = GOOD.replace("test: {", "test: {images: pictures, ") + "model: ./base\nprobe: {numbers: 'embedded:captions'}\n"
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.skills[0].train.source == str(tmp_path / "train.jsonl")
    assert recipe.skills[0].test.images == str(tmp_path / "pictures")
    assert recipe.model == str(tmp_path / "base")
    assert recipe.probe.numbers == Data(source="embedded:captions")


def test_every_fault_is_reported_at_once_with_its_path_and_near_matches(tmp_path: Path) -> None:
    text = (
        GOOD.replace("name: birds\nselect", "nmae: birds\nselect")
        + """
  - name: two
    trian: x
    test: y
    optim: {lr: fast, bacth: 3}
gate: {alpha: 0.9}
held_out: [{name: h, test: t, kind: guess}]
"""
    )
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(tmp_path, text), ["seed=-1", "skills[7].name=x", "optim"])
    message = str(caught.value)
    for words in (
        "recipe.yaml: nmae: unknown key. Did you mean name?",
        "recipe.yaml: name: is missing",
        "recipe.yaml: skills[1].trian: unknown key. Did you mean train?",
        "recipe.yaml: skills[1].train: is missing",
        "recipe.yaml: skills[1].optim.lr: input should be a valid number, not 'fast'",
        "recipe.yaml: skills[1].optim.bacth: unknown key. Did you mean batch?",
        "recipe.yaml: gate.alpha: input should be less than 0.5, not 0.9",
        "recipe.yaml: held_out[0].kind: input should be 'generate', 'choice', 'perplexity' or 'caption', not 'guess'",
        "recipe.yaml: seed: input should be greater than or equal to 0, not -1",
        "recipe.yaml: --set skills[7].name=x: [7] is beyond the 2 entries of skills",
        "recipe.yaml: --set optim: is not PATH=VALUE",
        "11 faults",
    ):
        assert words in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", 'recipe.yaml: line 2: the key "name" is given twice'),
        ("name: [a\n", "recipe.yaml: line 2: "),
        ("- a\n", "recipe.yaml: holds \\['a'\\], not a mapping"),
        (GOOD + "held_out: [{name: birds, test: t}]\n", "used more than once: birds"),
        (GOOD.replace("name: birds\n    train", "name: base\n    train"), "base is the name of a stage of every run"),
        (GOOD.replace("[attention]", "[]"), "select: needs at least one entry"),
        (GOOD.replace("name: birds", "name: a/b"), "name: string should match pattern"),
        (GOOD + "optim: {lr: .nan}\n", "optim.lr: must be a finite number|optim.lr: input should be greater than 0"),
        (GOOD + "optim: {betas: [0.9, 1.0]}\n", r"betas must lie in \[0, 1\)"),
        (GOOD + "seed: '1'\n", "seed: input should be a valid integer, not '1'"),
    ],
)
def test_a_faulty_recipe_says_what_is_wrong_and_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_recipe(written(tmp_path, text))


def test_an_unknown_name_lists_near_presets() -> None:
    with pytest.raises(RecipeError, match=r"neither a file nor a shipped recipe\. Did you mean demo-attention"):
        read_recipe("demo-atention")


def test_an_override_is_read_as_yaml_and_set_at_its_path(tmp_path: Path) -> None:
    overrides = [
        "optim.lr=3e-6",
        "skills[0].optim.batch=4",
        "skills[0].train.limit=7",
        "select=[mlp, '!language.*.norm.*']",
        "probe.numbers=x.jsonl",
    ]
    recipe = read_recipe(written(tmp_path, GOOD), overrides)
    assert recipe.optim.lr == 3e-6
    assert recipe.optim_of(recipe.skills[0]) == Optim(lr=3e-6, batch=4)
    assert recipe.skills[0].train.limit == 7
    assert recipe.select == ("mlp", "!language.*.norm.*")
    assert recipe.probe.numbers is not None
    assert recipe.probe.numbers.source == str(tmp_path / "x.jsonl")


def test_an_override_through_a_scalar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--set seed\.x=1: seed is 0 and has no field x"):
        read_recipe(written(tmp_path, GOOD + "seed: 0\n"), ["seed.x=1"])


def test_a_skills_optim_overrides_only_the_fields_it_names() -> None:
    text = GOOD + "    optim: {lr: 1e-3}\noptim: {lr: 1e-4, batch: 8, clip: null}\n"
    recipe = parse_recipe(text)
    assert recipe.optim_of(recipe.skills[0]) == Optim(lr=1e-3, batch=8, clip=None)


@pytest.mark.parametrize("written_as", ["5e-6", "5E-6", "0.000005", "5.0e-06"])
def test_a_rate_is_a_number_however_it_is_written(written_as: str) -> None:
    assert parse_recipe(GOOD + f"optim: {{lr: {written_as}}}\n").optim.lr == 5e-6


def test_words_that_old_yaml_takes_for_truth_values_stay_words() -> None:
    assert parse_recipe(GOOD.replace("train: train.jsonl", "train: {source: no, columns: {question: on, answer: 2024-01-01}}")).skills[
        0
    ].train == Data(source="no", columns={"question": "on", "answer": "2024-01-01"})


def test_a_resolved_recipe_reads_back_with_the_same_digest(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, GOOD + "recovery: {train: r.jsonl, optim: {max_steps: 3}}\nout: somewhere\n"))
    again = parse_recipe(dump_recipe(recipe))
    assert again.digest == recipe.digest
    assert again.recovery is not None
    assert again.recovery.select == ("attention",)
    assert again.resolved() == again


def test_the_digest_depends_on_what_is_trained_and_not_on_where_it_lies(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digests.add(read_recipe(written(tmp_path / name, GOOD + f"out: {name}\n")).digest)
    assert len(digests) == 1
    assert read_recipe(tmp_path / "a" / "recipe.yaml", ["optim.lr=1e-3"]).digest not in digests


@settings(deadline=None)
@given(
    st.floats(min_value=1e-9, max_value=10),
    st.integers(1, 512),
    st.sampled_from(["cosine", "linear", "constant"]),
    st.text(min_size=1, max_size=20),
)
def test_any_recipe_survives_being_written_and_read(lr: float, batch: int, schedule: str, prompt: str) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "select": "mlp",
            "optim": {"lr": lr, "batch": batch, "schedule": schedule},
            "skills": [{"name": "s", "train": {"source": "a", "prompt": prompt}, "test": "b"}],
        }
    )
    assert parse_recipe(dump_recipe(recipe)) == recipe.resolved()


def test_a_shortened_recipe_measures_less_and_trains_less() -> None:
    recipe = read_recipe("demo-language").shortened(skills=1, steps=3, records=5)
    assert recipe.name == "demo-language-quick"
    assert [(skill.test.limit, skill.optim and skill.optim.max_steps) for skill in recipe.skills] == [(5, 3)]
    assert {task.test.limit for task in recipe.held_out} == {5}
    assert recipe.recovery is not None
    assert recipe.recovery.optim is not None
    assert recipe.recovery.optim.max_steps == 3
    assert parse_recipe(dump_recipe(recipe)) == recipe.resolved()


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_shipped_recipe_is_valid_and_opens_with_how_to_run_it(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    opening = presets()[name].read_text().split("\nname:")[0]
    assert f"selectune run {name}" in opening
    assert all(line.startswith("#") for line in opening.splitlines())
