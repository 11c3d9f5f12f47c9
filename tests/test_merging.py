"""Two updates of one parent as one: composed bit by bit, or by strategies that mergekit and the papers' formulas check."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from delta_fixtures import model_of, quick_disk, selecting, step_of, tied
from deriving_fixtures import base_folder, loaded, record, update_of
from selectune.cli import app
from selectune.components import Region
from selectune.delta import Dare, Delta, Linear, Ties, apply, extract, merge, revert, snapshot
from selectune.delta.merging import Strategy, overlaps
from selectune.errors import DeltaError, InputError, WrongParent
from selectune.hashing import manifest
from selectune.models import Model
from selectune.network import state
from selectune.pipeline import load_version, merge_updates
from selectune.registry import Registry

RECORDED = json.loads((Path(__file__).parent / "recorded" / "mergekit.json").read_text())
Parts = dict[str, Region | None]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


class Matrices(nn.Module):
    """Parameters with these values."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor.clone(), requires_grad=False))


def update(model: Model, **new: Tensor) -> Delta:
    """The delta to other values of whole tensors; the model is as it was."""
    tensors = state(model.net)
    selection = selecting(model.net, dict.fromkeys(new))
    before = snapshot(model, selection)
    for name, tensor in new.items():
        tensors[name].copy_(tensor)
    delta = extract(model, before, selection)
    revert(model.updated(manifest(model.net)), delta)
    return delta


def read_of(model: Model) -> Callable[[str], Tensor]:
    return lambda name: state(model.net)[name].detach()


def merged(model: Model, first: Delta, second: Delta, strategy: Strategy | None = None) -> Delta:
    return merge(first, second, model.manifest, read_of(model), strategy)


def steps(first: Parts, second: Parts) -> tuple[Model, Delta, Delta]:
    model = model_of(tied())
    found = []
    for parts, amount in ((first, 0.25), (second, -0.5)):
        child, delta = step_of(model, parts, amount)
        revert(child, delta)
        found.append(delta)
    return model, found[0], found[1]


DISJOINT: list[tuple[Parts, Parts]] = [
    ({"q.weight": None}, {"o.weight": None}),
    ({"q.weight": ((0, 0, 4, 1),)}, {"q.weight": ((0, 4, 8, 1),)}),
    ({"q.weight": ((0, 0, 8, 2),), "q.bias": None}, {"q.weight": ((0, 1, 8, 2),)}),
    ({"q.weight": ((0, 0, 4, 1), (1, 0, 3, 1))}, {"q.weight": ((0, 0, 4, 1), (1, 3, 6, 1)), "embed.weight": None}),
]


@pytest.mark.parametrize(("first", "second"), DISJOINT)
def test_disjoint_updates_compose_exactly_and_in_either_order(first: Parts, second: Parts, tmp_path: Path) -> None:
    model, a, b = steps(first, second)
    both = merged(model, a, b)
    assert both.digest == merged(model, b, a).digest
    both.save(tmp_path / "both.delta")
    child = apply(model, Delta.load(tmp_path / "both.delta"))
    assert child.id == both.child == manifest(child.net).id
    expected = tied()
    for parts, amount in ((first, 0.25), (second, -0.5)):
        step_of(model_of(expected), parts, amount)
    assert manifest(expected).id == child.id
    assert [row["child"] for row in both.meta["merged"]["of"]] == sorted([a.child, b.child])


def test_selections_that_overlap_compose_where_no_element_moved_in_both() -> None:
    model = model_of(Matrices(w=torch.zeros(4, 4)))
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    a[0, 0], b[3, 3] = 1.0, 2.0
    child = apply(model, merged(model, update(model, w=a), update(model, w=b)))
    assert torch.equal(state(child.net)["w"], a + b)


def test_an_exact_merge_reads_only_tensors_that_both_touch() -> None:
    model, a, b = steps(*DISJOINT[2])
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return read_of(model)(name)

    merge(a, b, model.manifest, read)
    assert asked == ["q.weight"]


def test_an_overlap_is_refused_and_counted_unless_a_strategy_is_named() -> None:
    model, a, b = steps({"q.weight": ((0, 0, 5, 1),)}, {"q.weight": ((0, 4, 8, 1),), "o.weight": None})
    assert overlaps(a, b) == {"q.weight": 6}
    with pytest.raises(
        DeltaError, match=r"6 elements of 1 tensors moved in both updates \(q\.weight\).*Name a strategy: linear, ties or dare"
    ):
        merged(model, a, b)
    child = apply(model, merged(model, a, b, Linear(weights=(1.0, 1.0))))
    before, after = tied(), state(child.net)["q.weight"]
    change = after - state(before)["q.weight"]
    assert torch.allclose(change[:4], torch.tensor(0.25), atol=1e-6)
    assert torch.allclose(change[4], torch.tensor(-0.25), atol=1e-6)
    assert torch.allclose(change[5:], torch.tensor(-0.5), atol=1e-6)


def test_updates_of_two_parents_are_refused() -> None:
    model, a, b = steps(*DISJOINT[0])
    with pytest.raises(WrongParent, match="Rebase one onto the parent"):
        merged(model, a, replace(b, parent="0" * 64))
    with pytest.raises(WrongParent, match="Give their parent"):
        merge(a, b, manifest(tied(seed=3)), read_of(model))
    with pytest.raises(WrongParent, match=r'"q\.weight" is not what the delta was made on'):
        merge(*steps(*DISJOINT[1])[1:], model.manifest, read_of(model_of(tied(seed=3))))


def _tensor(name: str, one: str) -> Tensor:
    data = np.frombuffer(base64.b64decode(RECORDED["tensors"][name][one]), dtype=np.int16).copy()
    return torch.from_numpy(data).view(torch.bfloat16).reshape(RECORDED["shapes"][one])


def _recorded() -> tuple[Model, Delta, Delta, dict[str, str]]:
    names = {f"w{number}": one for number, one in enumerate(RECORDED["shapes"])}
    model = model_of(Matrices(**{name: _tensor("base", one) for name, one in names.items()}))
    a, b = (update(model, **{name: _tensor(side, one) for name, one in names.items()}) for side in "ab")
    return model, a, b, names


@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ("linear", Linear()),
        ("task_arithmetic", Linear(weights=(0.7, 0.4))),
        ("dare_keeping_all", Dare(weights=(0.7, 0.4), drop=0.0)),
        ("ties", Ties(density=0.3)),
        ("ties_weighted", Ties(weights=(1.0, 0.5), density=0.5)),
    ],
)
def test_a_strategy_makes_what_mergekit_makes_of_the_same_checkpoints(method: str, strategy: Strategy) -> None:
    """Of bf16 checkpoints, computed in fp32 and rounded once by both.

    `linear` there averages models, here differences: where the two sums are other fp32 numbers, the bf16 result may be the next one. Of
    differences as large as the last one that TIES keeps, bf16 has several, and mergekit keeps any of them, ours the first.
    """
    model, a, b, names = _recorded()
    child = apply(model, merged(model, a, b, strategy))
    for name, one in names.items():
        ours, theirs = state(child.net)[name].detach(), _tensor(method, one)
        apart = (ours.view(torch.int16).int() - theirs.view(torch.int16).int()).abs()
        if isinstance(strategy, Ties):
            sizes = [(_tensor(side, one).float() - _tensor("base", one).float()).abs() for side in "ab"]
            limits = [size.flatten().sort(descending=True).values[int(strategy.density * size.numel()) - 1] for size in sizes]
            at_limit = torch.stack([size == limit for size, limit in zip(sizes, limits, strict=True)]).any(0)
            assert float(at_limit.float().mean()) < 0.2
            apart = torch.where(at_limit, 0, apart)
        assert int(apart.max()) <= 1
        assert int((apart != 0).sum()) <= (apart.numel() // 50 if method == "linear" else 0), method


def test_every_number_of_mergekits_dare_is_one_of_the_four_that_dropping_may_give() -> None:
    """Its random numbers are others than ours, and so is what is dropped. It was recorded without rescaling, which it does to the old l1
    norm; ours is the paper's, by 1 / (1 - p)."""
    model, a, b, names = _recorded()
    settings = RECORDED["methods"]["dare"]
    assert (settings["density"], settings["rescale"]) == (0.4, False)
    child = apply(model, merged(model, a, b, Dare(drop=0.6)))
    for name, one in names.items():
        base, first, second = (_tensor(side, one).float() for side in ("base", "a", "b"))
        for found, factor in ((_tensor("dare", one), 1.0), (state(child.net)[name].detach(), 1 / 0.4)):
            parts = [0.5 * factor * (tensor - base) for tensor in (first, second)]
            choices = torch.stack([(base + x * parts[0] + y * parts[1]).bfloat16() for x in (0, 1) for y in (0, 1)])
            apart = (found.view(torch.int16).int() - choices.view(torch.int16).int()).abs().min(0).values
            assert int(apart.max()) <= 1
            assert float((apart == 0).float().mean()) > 0.98


def _ties_by_the_paper(base: Any, tuned: list[Any], density: float) -> Any:
    """Algorithm 1 of Yadav et al. (2023), for one tensor, with lambda 1: trim, elect, merge the disjoint."""
    vectors = []
    for one in tuned:
        vector = (one - base).reshape(-1)
        order = np.argsort(-np.abs(vector), kind="stable")
        kept = np.zeros_like(vector)
        kept[order[: int(density * vector.size)]] = vector[order[: int(density * vector.size)]]
        vectors.append(kept)
    gamma = np.sign(np.sum(vectors, axis=0))
    total = np.zeros_like(vectors[0])
    for p in range(total.size):
        agreeing = [vector[p] for vector in vectors if np.sign(vector[p]) == gamma[p] and vector[p] != 0]
        total[p] = np.mean(agreeing) if agreeing else 0.0
    return base + total.reshape(base.shape)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.2, 0.5, 1.0]))
def test_ties_is_the_papers_algorithm(seed: int, density: float) -> None:
    numbers = np.random.default_rng(seed)
    base, a, b = (numbers.normal(size=(5, 4)) for _ in range(3))
    model = model_of(Matrices(w=torch.from_numpy(base)))
    child = apply(model, merged(model, *(update(model, w=torch.from_numpy(one)) for one in (a, b)), Ties(density=density)))
    expected = _ties_by_the_paper(base, [a, b], density)
    assert np.allclose(state(child.net)["w"].detach().numpy(), expected, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.9]))
def test_dare_keeps_the_mean_of_a_difference_by_rescaling_what_is_left(seed: int, drop: float) -> None:
    """Equation 1 of Yu et al. (2023): a share of 1 - p is left, each divided by 1 - p."""
    left = Dare(drop=drop, seed=seed).thinned(torch.ones(20_000), seed % 1000)
    assert torch.allclose(left[left != 0], torch.tensor(1 / (1 - drop)))
    share = float((left != 0).double().mean())
    assert abs(share - (1 - drop)) < 5 * math.sqrt(drop * (1 - drop) / 20_000) + 1e-9


def test_dares_random_numbers_are_of_its_seed_and_of_each_update() -> None:
    model, a, b, _ = _recorded()
    children = {seed: merged(model, a, b, Dare(drop=0.5, seed=seed)).child for seed in (0, 1)}
    assert children[0] != children[1]
    assert merged(model, a, b, Dare(drop=0.5)).child == children[0]


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.sampled_from(["linear", "ties", "dare"]),
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_a_merge_is_the_same_in_either_order_and_moves_nothing_that_neither_moved(
    seed: int, dtype: torch.dtype, name: str, weights: tuple[float, float]
) -> None:
    numbers = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 5, generator=numbers).to(dtype)
    model = model_of(Matrices(w=base))
    moved = [torch.rand(6, 5, generator=numbers) < 0.5 for _ in range(2)]
    a, b = (update(model, w=torch.where(one, torch.randn(6, 5, generator=numbers).to(dtype), base)) for one in moved)
    kinds: dict[str, Callable[[tuple[float, float]], Strategy]] = {
        "linear": lambda w: Linear(weights=w),
        "ties": lambda w: Ties(weights=w, density=0.5),
        "dare": lambda w: Dare(weights=w, drop=0.5, seed=seed),
    }
    one, other = merged(model, a, b, kinds[name](weights)), merged(model, b, a, kinds[name](weights[::-1]))
    assert one.child == other.child
    child = apply(model, one)
    after = state(child.net)["w"].detach()
    still = ~(moved[0] | moved[1])
    assert torch.equal(after[still], base[still])
    assert bool(torch.isfinite(after).all())


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_weights_of_one_and_nothing_give_the_first_update_itself(seed: int, dtype: torch.dtype) -> None:
    numbers = torch.Generator().manual_seed(seed)
    base, first, second = (torch.randn(4, 3, generator=numbers).to(dtype) for _ in range(3))
    model = model_of(Matrices(w=base))
    a, b = update(model, w=first), update(model, w=second)
    assert merged(model, a, b, Linear(weights=(1.0, 0.0))).child == a.child
    assert merged(model, a, b, Linear(weights=(0.0, 1.0))).child == b.child


def test_where_nothing_is_added_the_parent_keeps_its_bits() -> None:
    base = torch.tensor([[-0.0, float("inf")], [1.0, 2.0]])
    model = model_of(Matrices(w=base))
    a, b = (update(model, w=base + torch.tensor([[0.0, 0.0], [0.0, step]])) for step in (1.0, -1.0))
    child = merged(model, a, b, Linear())
    assert child.child == model.id, "a half of +1 and a half of -1 is nothing, and minus zero stays minus zero"


def test_what_cannot_be_combined_is_refused() -> None:
    model = model_of(Matrices(w=torch.ones(2, dtype=torch.float16), n=torch.ones(2, dtype=torch.int32)))
    a = update(model, w=torch.full((2,), 60000.0), n=torch.tensor([1, 2]))
    b = update(model, w=torch.full((2,), 59000.0), n=torch.tensor([3, 1]))
    with pytest.raises(DeltaError, match='"n" is I32 and moved; only real numbers can be combined'):
        merged(model, a, b, Linear())
    a, b = update(model, w=torch.full((2,), 60000.0)), update(model, w=torch.full((2,), 59000.0))
    with pytest.raises(DeltaError, match='2 numbers of "w" overflow F16'):
        merged(model, a, b, Linear(weights=(1.0, 1.0)))
    bad = update(model, w=torch.tensor([math.nan, 1.0]))
    with pytest.raises(DeltaError, match='1 numbers of "w" overflow F16 or are not finite'):
        merged(model, a, bad, Linear())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(weights=(math.inf, 1.0)), "weights .* are not two finite numbers"),
        (lambda: Ties(density=0.0), r"density 0\.0 is no share above 0"),
        (lambda: Ties(density=1.5), r"density 1\.5"),
        (lambda: Dare(drop=1.0), r"drop 1\.0 is no probability below 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], Strategy], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


@pytest.fixture(name="line", scope="module")
def _line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """A base folder, a registry, and three updates of the base in it: a and c are disjoint, b overlaps both."""
    with pytest.MonkeyPatch.context() as patch:
        quick_disk(patch)
        place = tmp_path_factory.mktemp("merging")
        base = base_folder(place / "base")
        model = loaded(base)
        registry = Registry.open(place / "registry", create=True)
        patterns = {"a": ["language.layers.*.attn.q"], "b": ["language.layers.*.attn.{q,o}"], "c": ["language.layers.*.attn.o"]}
        ids = {
            name: record(registry, update_of(model, chosen, seed), base, place, skill=name, verdict="passed")
            for seed, (name, chosen) in enumerate(patterns.items())
        }
    return base, place / "registry", ids


def test_merged_updates_are_a_candidate_that_names_both_and_has_no_verdict(line: tuple[Path, Path, dict[str, str]]) -> None:
    _, place, ids = line
    registry = Registry.open(place)
    found = merge_updates(registry, ids["a"], ids["c"], actor="ann")
    assert found.id == merge_updates(registry, ids["c"], ids["a"]).id
    assert (found.verdict, found.skill, found.parent) == ("", "a+c", None)
    assert found.meta["merged"] == {"of": sorted([ids["a"], ids["c"]]), "strategy": "disjoint", "settings": {}}
    model = load_version(registry, found.id)
    assert model.id == found.child == manifest(model.net).id
    with pytest.raises(DeltaError, match="moved in both updates"):
        merge_updates(registry, ids["a"], ids["b"])
    mixed = merge_updates(registry, ids["a"], ids["b"], Ties(density=0.5))
    assert mixed.meta["merged"]["settings"] == {"weights": [1.0, 1.0], "density": 0.5}
    assert manifest(load_version(registry, mixed.id).net).id == mixed.child
    registry.verify().demand()


def test_merge_on_the_command_line_says_that_nobody_judged_it(line: tuple[Path, Path, dict[str, str]]) -> None:
    _, place, ids = line
    done = CliRunner().invoke(app, ["merge", ids["a"], ids["c"], "--registry", str(place)])
    assert done.exit_code == 0, done.output
    assert "merged (disjoint)" in done.stdout
    assert "not judged: measure it before you promote it" in done.stdout
    words = ["merge", ids["a"], ids["b"], "--registry", str(place), "--strategy", "dare", "--drop", "0.5", "--seed", "3", "--json"]
    document = json.loads(CliRunner().invoke(app, words).stdout)
    assert document["meta"]["merged"]["settings"] == {"weights": [0.5, 0.5], "drop": 0.5, "seed": 3}
    refused = CliRunner().invoke(app, ["merge", ids["a"], ids["b"], "--registry", str(place), "--strategy", "ties", "--drop", "0.5"])
    assert refused.exit_code == 2
    assert "--drop has no meaning with ties" in refused.output
