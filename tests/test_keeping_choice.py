"""Selections by numbers: known spectra give known numbers, and the share is kept to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model, write_recipe
from selectune.components import views
from selectune.components.spectra import choose_by, condition_number, signal_to_noise
from selectune.errors import NoMatch, RecipeError
from selectune.models import Model
from selectune.network import parameters
from selectune.pipeline import load_any, plan, resume, run
from selectune.recipe import parse_recipe, read_recipe
from selectune.registry import Registry
from training_fixtures import tiny_model


def with_spectrum(values: list[float], shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """A matrix of that shape with these singular values, in random directions."""
    generator = np.random.default_rng(seed)
    left, _ = np.linalg.qr(generator.normal(size=(shape[0], len(values))))
    right, _ = np.linalg.qr(generator.normal(size=(shape[1], len(values))))
    return torch.tensor(left * np.asarray(values) @ right.T, dtype=torch.float32)


def put(model: Model, name: str, matrix: torch.Tensor) -> None:
    """Writes a matrix into the component of that name."""
    (component,) = (c for c in model.map.components if c.name == name and len(c.shape) == 2)
    with torch.no_grad():
        owner = parameters(model.net)[component.parameter]
        rows = slice(None) if component.slice is None else slice(*component.slice[0][1:])
        owner[rows].copy_(matrix)


@pytest.mark.parametrize(
    ("values", "kappa"), [([8.0, 4.0, 2.0, 1.0], 8.0), ([3.0] * 5, 1.0), ([1.0, 1e-3], 1000.0), ([2.0, 0.0], math.inf)]
)
def test_the_condition_number_is_largest_over_smallest(values: list[float], kappa: float) -> None:
    assert condition_number(with_spectrum(values, (len(values), 9))) == pytest.approx(kappa, rel=1e-3)


def test_the_condition_number_is_numpys_and_pefts() -> None:
    from peft.helpers import KappaTuneSelector

    model = tiny_model("llama")
    choice = choose_by(model.net, model.map.select(("language-layers",)), "kappa", 1.0)
    selector = KappaTuneSelector(model.net, show_progress=False)
    selector.get_best_targets()
    paths = {c.name: c.parameter.removesuffix(".weight") for c in model.map.components}
    for one in choice.ranked:
        weight = parameters(model.net)[f"{paths[one.name]}.weight"].detach()
        assert one.number == pytest.approx(np.linalg.cond(weight.double().numpy()), rel=1e-3)
        assert one.number == pytest.approx(selector._condition_numbers[paths[one.name]], rel=1e-3)
    assert [one.number for one in choice.ranked] == sorted(one.number for one in choice.ranked)


def test_signal_to_noise_by_hand() -> None:
    """Quartiles of 1 … 9 are 3 and 7: sigma = 4 / 1.349; a matrix of 9 by 36 has its edge at sigma * 1.5 = 4.4477."""
    values = [float(value) for value in range(9, 0, -1)]
    assert signal_to_noise(with_spectrum(values, (9, 36))) == pytest.approx((5 + 6 + 7 + 8 + 9) / (1 + 2 + 3 + 4) / 9, rel=1e-3)
    assert signal_to_noise(torch.eye(5)) == math.inf, "nothing lies below the edge of noise that is none"
    assert signal_to_noise(torch.zeros(4, 4)) == 0.0


def test_the_lowest_condition_numbers_are_taken_up_to_the_share() -> None:
    model = tiny_model("llama")
    names = [f"language.layers.{layer}.attn.{role}" for layer in (0, 1) for role in ("q", "o")]
    for kappa, name in zip((40.0, 3.0, 200.0, 7.0), names, strict=True):
        put(model, name, with_spectrum([kappa] + [1.0] * 31, (32, 32)))
    pool = model.map.select(("language.layers.*.attn.{q,o}",))
    expected = [names[1], names[3], names[0], names[2]]
    for share, count in ((0.25, 1), (0.49, 1), (0.5, 2), (0.8, 3), (1.0, 4)):
        choice = choose_by(model.net, pool, "kappa", share)
        assert [one.name for one in choice.ranked] == expected
        assert list(choice.names) == expected[:count]
        taken = sum(one.elements for one in choice.ranked if one.taken)
        assert taken <= share * pool.elements
    assert (
        "1 of 4 matrices, 25.0% of their elements, by the lowest condition number: language.layers.0.attn.o (3)"
        in choose_by(model.net, pool, "kappa", 0.25).about
    )


def test_signal_to_noise_takes_its_share_of_each_family() -> None:
    model = tiny_model("llama")
    for layer, loud in ((0, 50.0), (1, 2.0)):
        for role, level in (("q", 1.0), ("o", 10.0)):
            noise = [level * value for value in np.linspace(1.0, 0.5, 31)]
            put(model, f"language.layers.{layer}.attn.{role}", with_spectrum([level * loud, *noise], (32, 32)))
    pool = model.map.select(("language.layers.*.attn.{q,o}",))
    each = choose_by(model.net, pool, "snr", 0.5)
    assert {name.rsplit(".", 1)[1] for name in each.names} == {"q", "o"}, "one of each kind"
    numbers = {one.name: one.number for one in each.ranked}
    for role in ("q", "o"):
        pair = {layer: numbers[f"language.layers.{layer}.attn.{role}"] for layer in (0, 1)}
        assert f"language.layers.{max(pair, key=pair.__getitem__)}.attn.{role}" in each.names
    assert len(choose_by(model.net, pool, "snr", 0.5, each="all").names) == 2


@pytest.mark.parametrize(
    ("family", "pattern"),
    [("phi3", "language.layers.*.attn.{q,k,v}"), ("qwen3_moe", "language.layers.*.moe.experts.*.*"), ("gpt2", "attention")],
)
def test_slices_and_experts_are_matrices_of_their_own(family: str, pattern: str) -> None:
    model = tiny_model(family)
    pool = model.map.select((pattern,))
    choice = choose_by(model.net, pool, "kappa", 0.4)
    assert {one.name for one in choice.ranked} == set(pool.names)
    one = choice.ranked[0]
    component = next(c for c in pool.components if c.name == one.name and len(c.shape) > 1)
    value = parameters(model.net)[component.parameter].detach()
    matrix = views(value, component.slice)[0].squeeze(0).double().numpy()
    assert one.number == pytest.approx(np.linalg.cond(matrix), rel=1e-3)
    assert model.map.select(choice.names).elements == sum(row.elements for row in choice.ranked if row.taken)


def test_what_has_no_matrix_is_not_there_to_choose_from_and_too_small_a_share_says_so() -> None:
    model = tiny_model("llama")
    pool = model.map.select(("language.layers.*",))
    assert not any(".norm." in one.name for one in choose_by(model.net, pool, "kappa", 0.5).ranked)
    with pytest.raises(NoMatch, match=r"a share of 0\.10% is less than one matrix\. Raise it, to about \d+\.\d+% at least"):
        choose_by(model.net, pool, "kappa", 0.001)
    with pytest.raises(NoMatch, match="no weight matrix to choose from"):
        choose_by(model.net, model.map.select(("language.norm",)), "kappa", 0.5)


def test_a_choice_is_the_same_each_time() -> None:
    model = tiny_model("llava")
    pool = model.map.select(("language-layers",))
    for by in ("kappa", "snr"):
        assert choose_by(model.net, pool, by, 0.5) == choose_by(tiny_model("llava").net, pool, by, 0.5)


GOOD = "name: x\nskills: [{name: a, train: t, test: t}]\n"


def test_a_recipe_chooses_in_place_of_select_or_beside_it() -> None:
    one = parse_recipe(GOOD + "choose: {by: kappa, share: 0.25, within: language-layers}\n")
    assert one.select == ()
    assert one.choose is not None
    assert (one.choose.by, one.choose.share, one.choose.within) == ("kappa", 0.25, ("language-layers",))
    both = parse_recipe(GOOD + "select: projector\nchoose: {by: snr, share: 1, within: [mlp]}\n")
    assert both.select == ("projector",)
    with pytest.raises(RecipeError, match="select: needs at least one entry"):
        parse_recipe(GOOD)
    with pytest.raises(RecipeError, match=r"choose\.share: input should be less than or equal to 1") as caught:
        parse_recipe(GOOD + "choose: {by: kappa, share: 2, within: mlp}\n")
    assert "select: needs" not in str(caught.value)


@pytest.mark.slow
def test_a_run_writes_what_it_chose_into_its_recipe(tmp_path: Path) -> None:
    model = save_model(tiny.llama(), tmp_path / "model")
    path = write_recipe(tmp_path, model, select=["language.norm"], choose={"by": "kappa", "share": 0.3, "within": ["attention", "mlp"]})
    recipe = read_recipe(path, ["optim.max_steps=2"])
    planned = plan(recipe, lambda name: load_any(name, "none"))
    result = run(recipe, registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    folder = Path(result.report or "").parent
    written = read_recipe(folder / "recipe.yaml")
    assert written.choose is not None
    taken = written.choose.taken
    assert taken
    assert result.selection.patterns == ("language.norm", *taken)
    assert planned.selected == result.selection.elements
    assert planned.digest == written.digest != recipe.digest
    assert any(note.startswith(f"choose took {len(taken)} of 14 matrices") for note in result.notes)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (chosen,) = (event for event in events if event["event"] == "chosen")
    assert set(chosen["taken"]) == set(taken)
    assert len(chosen["left"]) == 14 - len(taken)
    assert max(chosen["taken"].values()) <= min(chosen["left"].values())
    log = Registry.open(str(tmp_path / "registry")).log()
    assert log[0].recipe["select"] == ["language.norm", *taken]
    (folder / "stages" / "dogs.json").unlink()
    (again,) = resume(folder)
    assert [update.id for update in again.updates] == [update.id for update in result.updates]
