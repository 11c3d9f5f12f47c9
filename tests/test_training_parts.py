"""Schedule, masters, losses and cached features, each alone."""

from __future__ import annotations

import inspect
import os
import resource
import subprocess
import sys
from ctypes.util import find_library

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from selectune.components import Component, Selection
from selectune.errors import InputError, MissingPackage
from selectune.records import Encoder
from selectune.training import FeatureCache
from selectune.training.allocator import allocator, kept_memory
from selectune.training.features import inject, tower_digest
from selectune.training.losses import cross_entropy
from selectune.training.masters import Masters
from selectune.training.schedule import Schedule, micro_batches
from training_fixtures import attention, examples, optim, tiny_model


def schedule(n: int = 10, seed: int = 0, **changes: object) -> Schedule:
    return Schedule(n=n, optim=optim(max_steps=None, **changes), seed=seed)


@given(n=st.integers(1, 200), batch=st.integers(1, 40), epochs=st.integers(1, 3), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_each_epoch_draws_every_sample_once(n: int, batch: int, epochs: int, seed: int) -> None:
    plan = schedule(n=n, seed=seed, batch=batch, epochs=float(epochs))
    drawn = [index for step in range(1, plan.total + 1) for index in plan.batch(step)]
    assert len(drawn) == n * epochs
    assert all(sorted(drawn[start : start + n]) == list(range(n)) for start in range(0, len(drawn), n))


def test_a_part_of_an_epoch_is_a_part_of_the_samples() -> None:
    plan = schedule(n=10, batch=4, epochs=0.5)
    assert [len(plan.batch(step)) for step in range(1, plan.total + 1)] == [4, 1]


def test_epochs_and_seeds_differ_in_order() -> None:
    plan = schedule(n=50, batch=50, epochs=2.0)
    orders = [plan.batch(1), plan.batch(2), schedule(n=50, batch=50, seed=1).batch(1)]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[0] == schedule(n=50, batch=50).batch(1)


def test_max_steps_repeats_the_epochs_as_often_as_needed() -> None:
    plan = Schedule(n=3, optim=optim(max_steps=5, batch=2), seed=0)
    assert plan.total == 5
    assert [len(plan.batch(step)) for step in range(1, 6)] == [2] * 5


@pytest.mark.parametrize(("name", "oracle"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)])
def test_after_warm_up_the_rate_is_that_of_transformers(name: str, oracle: object) -> None:
    plan = schedule(n=100, batch=1, schedule=name, warmup=0.1, lr=0.5)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = oracle(theirs, plan.warmup, plan.total)
    rates = []
    for _ in range(plan.total):
        rates.append(scheduler.get_last_lr()[0])
        theirs.step()
        scheduler.step()
    assert [plan.lr(step) for step in range(plan.warmup + 1, plan.total + 1)] == pytest.approx(rates[plan.warmup :])
    rising = [plan.lr(step) for step in range(1, plan.warmup + 2)]
    assert rising[0] > 0
    assert rising == sorted(rising)
    assert rising[-1] == pytest.approx(0.5)


def test_a_single_step_is_made_at_the_peak_rate() -> None:
    assert Schedule(n=4, optim=optim(max_steps=1, warmup=0.03, lr=0.5), seed=0).lr(1) == 0.5


def test_a_constant_rate_stays() -> None:
    plan = schedule(n=10, batch=1, schedule="constant", warmup=0.0)
    assert {plan.lr(step) for step in range(1, 11)} == {plan.optim.lr}


def test_micro_batches_divide_a_batch_by_length() -> None:
    lengths = [9, 1, 8, 2, 7]
    assert micro_batches([0, 1, 2, 3], lengths, 2) == [[1, 3], [2, 0]]
    assert micro_batches([0, 1, 2, 3], lengths, None) == [[1, 3, 2, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_equals_torch_in_value_and_gradient(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectune.training.losses.CHUNK", {"cpu": 50})
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(7, 20, generator=generator) * 4).to(dtype).requires_grad_()
    oracle = logits.detach().clone().requires_grad_()
    targets = torch.randint(0, 20, (7,), generator=generator)
    weights = torch.rand(7, generator=generator)
    ours, theirs = cross_entropy(logits, targets), functional.cross_entropy(oracle.float(), targets, reduction="none")
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, oracle.grad, atol=1e-6 if dtype == torch.float32 else 1e-2)


def sliced(region: tuple[tuple[int, int, int, int], ...] | None, shape: tuple[int, ...] = (8, 4)) -> tuple[torch.nn.Linear, Selection]:
    """A layer, and the selection of a region of its weight."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 8)
    component = Component(name="part", parameter="weight", slice=region, shape=shape, elements=1, tied=(), dtype="F32")
    return layer, Selection(patterns=("part",), components=(component,), full_shapes={"weight": (8, 4)})


@pytest.mark.parametrize("region", [((0, 2, 5, 1),), ((0, 0, 8, 3),), ((0, 0, 2, 1), (0, 6, 8, 1)), ((0, 1, 3, 1), (1, 0, 4, 2)), None])
def test_a_slice_moves_as_adamw_says_and_the_rest_not_at_all(region: tuple[tuple[int, int, int, int], ...] | None) -> None:
    layer, selection = sliced(region)
    inside = torch.zeros(8, 4, dtype=torch.bool)
    from selectune.components import views

    for view in views(inside, region):
        view.fill_(True)
    before = layer.weight.detach().clone()
    settings = optim(lr=0.1, weight_decay=0.3, clip=None)
    masters = Masters(layer, selection, settings)
    oracle = torch.nn.Parameter(before.clone())
    theirs = torch.optim.AdamW([oracle], lr=0.1, weight_decay=0.3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(3, 4, generator=generator)
        layer(x).square().sum().backward()
        oracle.grad = layer.weight.grad.clone()
        masters.collect()
        masters.step(0.1, masters.norm(), None)
        theirs.step()
        with torch.no_grad():
            oracle[~inside] = before[~inside]
    assert torch.equal(layer.weight[~inside], before[~inside])
    assert torch.allclose(layer.weight[inside], oracle[inside], atol=1e-6)
    assert not torch.equal(layer.weight[inside], before[inside])


def test_masters_gather_what_bf16_loses() -> None:
    layer, selection = sliced(None)
    layer.to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    masters = Masters(layer, selection, optim(lr=1e-3))
    for _ in range(8):
        layer.weight.grad = torch.ones_like(layer.weight)
        masters.collect()
        masters.step(1e-3, masters.norm(), None)
        if torch.equal(layer.weight, torch.ones_like(layer.weight)):
            assert masters.still() == []
    assert layer.weight.dtype == torch.bfloat16
    assert (layer.weight < 1).all(), "one step of 1e-3 is lost beside 1.0, eight are not"


def test_gradients_of_micro_batches_add_up_in_fp32() -> None:
    layer, selection = sliced(((0, 0, 4, 1),))
    layer.to(torch.bfloat16)
    masters = Masters(layer, selection, optim())
    for value in (1.0, 1e-3):
        layer.weight.grad = torch.full_like(layer.weight, value)
        masters.collect()
    (master,) = masters.values.values()
    assert master.grad is not None
    assert master.grad.dtype == torch.float32
    assert torch.allclose(master.grad, torch.tensor(1.001), atol=1e-5)
    assert layer.weight.grad is None


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit", "adafactor"])
@pytest.mark.filterwarnings("ignore")
def test_a_slice_under_each_optimizer_moves_alone_and_its_state_goes_on(name: str) -> None:
    region = ((0, 0, 64, 1),)
    chosen = optim(optimizer=name, lr=0.05, weight_decay=0.1)

    def made() -> tuple[torch.nn.Linear, Masters]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(128, 96, bias=False)
        component = Component(name="part", parameter="weight", slice=region, shape=(64, 128), elements=64 * 128, tied=(), dtype="F32")
        return layer, Masters(layer, Selection(patterns=("part",), components=(component,), full_shapes={"weight": (96, 128)}), chosen)

    def run(layer: torch.nn.Linear, masters: Masters, steps: range) -> None:
        for step in steps:
            layer.weight.grad = torch.randn(96, 128, generator=torch.Generator().manual_seed(step))
            masters.collect()
            masters.step(0.05, masters.norm(), 1.0)

    layer, masters = made()
    old = layer.weight.detach().clone()
    run(layer, masters, range(4))
    assert torch.equal(layer.weight[64:], old[64:])
    assert (layer.weight[:64] != old[:64]).all()
    assert masters.still() == []
    half, first = made()
    run(half, first, range(2))
    kept = {key: tensor.clone() for key, tensor in first.state().items()}
    again, second = made()
    second.load(kept)
    assert second.still() == []
    run(again, second, range(2, 4))
    assert torch.equal(again.weight, layer.weight)
    moments = sum(tensor.numel() * tensor.element_size() for key, tensor in kept.items() if not key.startswith("master/"))
    assert moments / (64 * 128) < {"adamw": 8.1, "adamw-8bit": 2.6, "adafactor": 0.2}[name], "bytes of moments for each element"


def test_without_bitsandbytes_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    layer, selection = sliced(None)
    with pytest.raises(MissingPackage, match=r"selectune\[quantised\]"):
        Masters(layer, selection, optim(optimizer="adamw-8bit"))


def test_what_rounding_loses_is_counted() -> None:
    layer, selection = sliced(((0, 0, 4, 1),))
    layer.to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    base = {"weight#0": layer.weight.detach()[:4].clone()}
    masters = Masters(layer, selection, optim(lr=1e-3, weight_decay=0.0))
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.weight.grad[:2] = 1.0
    masters.collect()
    masters.step(1e-3, masters.norm(), None)
    assert masters.lost_to_rounding(base) == (8, 8), "half of them moved, and none far enough"
    for _ in range(8):
        layer.weight.grad = torch.zeros_like(layer.weight)
        layer.weight.grad[:2] = 1.0
        masters.collect()
        masters.step(1e-3, masters.norm(), None)
    assert masters.lost_to_rounding(base) == (8, 0)


def test_an_empty_selection_is_refused() -> None:
    with pytest.raises(InputError, match="the selection is empty"):
        Masters(torch.nn.Linear(2, 2), Selection(patterns=(), components=(), full_shapes={}), optim())


def test_a_parameter_without_a_gradient_is_still() -> None:
    layer, selection = sliced(None)
    masters = Masters(layer, selection, optim(weight_decay=0.5))
    masters.collect()
    masters.step(0.1, masters.norm(), 1.0)
    assert masters.still() == ["weight"]


def test_a_picture_is_seen_once_and_its_features_are_the_models_own() -> None:
    model = tiny_model()
    encoder, cache = Encoder(model.processor), FeatureCache()
    pictures = [record.pictures[0] for record in examples(3)]
    tower = cache.bind(model)
    with torch.inference_mode():
        first = tower.of(encoder, [pictures[0], pictures[1], pictures[0]])
    again = tower.of(encoder, pictures)
    assert (cache.misses, cache.hits) == (3, 2 + 1)
    assert first[0].tokens is first[2].tokens
    assert again[1].tokens is first[1].tokens
    assert not first[0].tokens.is_inference(), "what an evaluation cached must serve training too"
    pixels = encoder.pixels([pictures[2]])
    with torch.no_grad():
        own = model.net.get_image_features(**pixels, return_dict=True).pooler_output[0]
    assert torch.equal(again[2].tokens, own)


def test_a_full_cache_computes_on_and_counts_it() -> None:
    model = tiny_model()
    encoder = Encoder(model.processor)
    pictures = [record.pictures[0] for record in examples(4)]
    tokens = FeatureCache().of(model, encoder, pictures[:1])[0].tokens
    size = tokens.numel() * tokens.element_size()
    cache = FeatureCache(budget=2 * size, disk=0)
    assert len(cache.of(model, encoder, pictures)) == 4
    assert (len(cache), cache.store.refused, cache.store.nbytes) == (2, 2, 2 * size)


def test_what_memory_cannot_hold_is_kept_on_disk_bit_for_bit() -> None:
    model = tiny_model()
    encoder = Encoder(model.processor)
    pictures = [record.pictures[0] for record in examples(4)]
    plain = FeatureCache().of(model, encoder, pictures)
    cache = FeatureCache(budget=plain[0].tokens.numel() * 4)
    tower = cache.bind(model)
    tower.of(encoder, pictures)
    again = tower.of(encoder, pictures)
    assert (cache.hits, cache.misses, len(cache)) == (4, 4, 4)
    assert cache.store.on_disk > 0
    for left, right in zip(plain, again, strict=True):
        assert torch.equal(left.tokens, right.tokens)


def test_injected_features_give_the_logits_of_pixels() -> None:
    model = tiny_model()
    encoder = Encoder(model.processor)
    samples = [encoder.encode(record) for record in examples(1)]
    ids = torch.tensor([samples[0].input_ids])
    features = inject(FeatureCache().of(model, encoder, samples[0].pictures))
    with torch.no_grad():
        plain = model.net(input_ids=ids, **encoder.pixels(samples[0].pictures)).logits
        fast = model.net(input_ids=ids, **features).logits
    assert torch.equal(plain, fast)
    assert inject([]) == {}


def test_the_towers_digest_knows_vision_and_projector_alone() -> None:
    model = tiny_model()
    before = tower_digest(model)
    parameters = dict(model.net.named_parameters())
    language = attention(model).components[0].parameter
    with torch.no_grad():
        parameters[language].add_(1.0)
    assert tower_digest(model) == before
    projector = next(component.parameter for component in model.map.components if component.name.startswith("projector"))
    with torch.no_grad():
        parameters[projector].add_(1.0)
    assert tower_digest(model) != before


def faults(rounds: int) -> int:
    """Page faults while blocks of 8 MiB come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(2 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_kept_inside_and_goes_back_afterwards() -> None:
    with kept_memory():
        faults(3)
        assert faults(20) < 2048, "one block of 8 MiB has 2048 pages; twenty in the same place touch them no second time"


@pytest.mark.skipif(find_library("tcmalloc_minimal") is None, reason="libtcmalloc-minimal4 is not installed")
def test_a_process_under_tcmalloc_knows_it_and_its_plan_counts_fewer_holes() -> None:
    assert allocator() == "glibc"
    imports = "import resource\nimport torch\nfrom selectune.training.allocator import allocator, kept_memory\n"
    script = f"""
{imports}from selectune.training.forecast import HOLES

{inspect.getsource(faults)}
with kept_memory():
    faults(3)
    print(allocator(), faults(20), HOLES[allocator()][2] < HOLES["glibc"][2])
"""
    there = os.environ | {"LD_PRELOAD": find_library("tcmalloc_minimal") or ""}
    found = subprocess.run([sys.executable, "-c", script], env=there, capture_output=True, text=True, check=True).stdout.split()
    assert found[0] == "tcmalloc"
    assert int(found[1]) < 2048, "one block of 8 MiB has 2048 pages; twenty in the same place touch them no second time"
    assert found[2] == "True"
