"""What holds old skills does what its formula says; each formula is computed here a second time, in plain torch."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch.nn import functional

from keeping_fixtures import CALM, copied, inside, keeping, plain_logits, renamed
from selectune.delta import apply, revert, snapshot
from selectune.errors import InputError
from selectune.hashing import manifest
from selectune.models import Model
from selectune.network import parameters
from selectune.recipe import Adapter
from selectune.records import Encoder, Records
from selectune.training import FeatureCache, Session, Step, fit, train
from selectune.training.forward import Forward
from selectune.training.keeping.divergence import Top, Whole
from selectune.training.keeping.pulls import fisher
from selectune.training.preparing import encode
from selectune.training.processes import Processes
from selectune.training.schedule import Schedule
from selectune.training.setup import prepare
from training_fixtures import examples, optim, outside, same, tiny_model

WEIGHT, TEMPERATURE = 0.7, 2.0
ALL: dict[str, Any] = {
    "distill": {"weight": 0.5},
    "l2sp": 0.01,
    "ewc": {"weight": 5.0, "data": "x"},
    "replay": {"share": 0.25},
    "anchors": {"data": "x", "batch": 3},
}


def everything(pictures: bool = True) -> Any:
    """Every term at once."""
    old = renamed(examples(5, pictures=pictures), "old ")
    return keeping(ALL, ewc=old[:3], replay={"earlier": old}, anchors=old)


def after(
    model: Model, patterns: tuple[str, ...], records: Records, settings: Any, kept: Any
) -> tuple[list[Step], dict[str, torch.Tensor]]:
    """The steps, and the selected parameters after them; the model is put back."""
    selection = model.map.select(patterns)
    done = train(model, selection, records, settings, keeping=kept)
    child = apply(model, done.delta)
    found = {name: parameters(child.net)[name].detach().clone() for name in selection.parameters}
    revert(child, done.delta)
    return list(done.steps), found


# -- divergence


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_is_torchs_kl_div_in_value_and_gradient(temperature: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectune.training.losses.CHUNK", {"cpu": 70})
    generator = torch.Generator().manual_seed(0)
    student = (torch.randn(9, 30, generator=generator) * 4).to(dtype).requires_grad_()
    teacher = (torch.randn(9, 30, generator=generator) * 4).to(dtype)
    teacher[0, 3] = -math.inf
    oracle = student.detach().clone().requires_grad_()
    weights = torch.rand(9, generator=generator)
    ours = Whole(logits=teacher).divergence(student, temperature)
    log_student = torch.log_softmax(oracle.float() / temperature, dim=-1)
    theirs = functional.kl_div(log_student, torch.softmax(teacher.float() / temperature, dim=-1), reduction="none").sum(dim=-1)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert student.grad is not None
    assert torch.allclose(student.grad, oracle.grad, atol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("k", [1, 4, 30, 99])
def test_of_a_kept_teacher_the_rest_counts_as_one_word(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectune.training.losses.CHUNK", {"cpu": 70})
    generator = torch.Generator().manual_seed(1)
    student = (torch.randn(7, 30, generator=generator) * 3).requires_grad_()
    teacher = torch.randn(7, 30, generator=generator) * 3
    oracle = student.detach().clone().requires_grad_()
    top = Top.of(teacher, k, TEMPERATURE)
    ours = top.divergence(student, TEMPERATURE)
    p, q = torch.softmax(teacher / TEMPERATURE, dim=-1), torch.softmax(oracle / TEMPERATURE, dim=-1)
    best = p.argsort(dim=-1, descending=True)
    events_p = torch.cat([p.gather(1, best[:, :k]), p.gather(1, best[:, k:]).sum(dim=-1, keepdim=True)], dim=1)
    events_q = torch.cat([q.gather(1, best[:, :k]), q.gather(1, best[:, k:]).sum(dim=-1, keepdim=True)], dim=1)
    events_p, events_q = (events[:, : min(k + 1, 30)] for events in (events_p, events_q))
    theirs = functional.kl_div(events_q.log(), events_p, reduction="none").sum(dim=-1)
    ours.sum().backward()
    theirs.sum().backward()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert student.grad is not None
    assert oracle.grad is not None
    assert torch.allclose(student.grad, oracle.grad, atol=1e-5)
    whole = Whole(logits=teacher).divergence(student, TEMPERATURE)
    assert (ours <= whole + 1e-5).all(), "never more than over all words"
    assert torch.allclose(ours, whole, atol=1e-5) is (k >= 30)
    assert torch.allclose(top.shares.exp().sum(dim=-1) + top.rest.exp(), torch.ones(7), atol=1e-5), "no probability is left out"


# -- distillation


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 5}, {"cache_features": False}, {"checkpointing": True}])
@pytest.mark.parametrize("top_k", [None, 10_000])
def test_distillation_is_cross_entropy_and_the_divergence_from_a_copy_of_the_start(changes: dict[str, Any], top_k: int | None) -> None:
    model = tiny_model()
    settings = optim(**{**CALM, **changes})
    records = examples()
    distill = {"weight": WEIGHT, "temperature": TEMPERATURE, "top_k": top_k}
    steps, ours = after(model, ("attention",), records, settings, keeping({"distill": distill}))
    teacher, _ = copied(model.net, ())
    student, trained = copied(model.net, list(ours))
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, eps=settings.eps, weight_decay=0.0)
    for step in steps:
        with torch.no_grad():
            aims, _ = plain_logits(teacher, model, records)
        logits, targets = plain_logits(student, model, records)
        apart = functional.kl_div(
            torch.log_softmax(logits / TEMPERATURE, dim=-1), torch.softmax(aims / TEMPERATURE, dim=-1), reduction="batchmean"
        )
        term = WEIGHT * TEMPERATURE**2 * apart
        entropy = functional.cross_entropy(logits, targets)
        assert step.loss == pytest.approx(entropy.item(), rel=1e-4)
        assert step.kept["distill"] == pytest.approx(term.item(), rel=1e-3, abs=1e-6)
        optimizer.zero_grad()
        (entropy + term).backward()
        assert step.grad_norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)), rel=1e-4)
        optimizer.step()
    assert steps[-1].kept["distill"] > 1e-3
    assert all(torch.allclose(value, theirs, atol=2e-6) for value, theirs in zip(ours.values(), trained, strict=True))


@pytest.mark.parametrize(
    ("patterns", "changes"), [(("language.layers[1:].attn.*",), {}), (("gate-and-up",), {"in_backward": True, "clip": None})]
)
def test_distillation_begins_at_the_cut_and_steps_in_the_backward_pass(patterns: tuple[str, ...], changes: dict[str, Any]) -> None:
    """A kept teacher that holds every word, one that is asked each time, and a plain pass agree; slices of fused tensors too."""
    model = tiny_model("phi3")
    records = examples(pictures=False)
    settings = optim(**{**CALM, "batch": 4, "max_steps": 9, **changes})
    plain = settings.model_copy(update={"cache_features": False, "in_backward": False})
    given = {"distill": {"weight": WEIGHT, "temperature": TEMPERATURE}}
    _, whole = after(model, patterns, records, settings, keeping(given))
    _, kept = after(model, patterns, records, settings, keeping({"distill": {**given["distill"], "top_k": 10_000}}))
    _, slow = after(model, patterns, records, plain, keeping(given))
    _, without = after(model, patterns, records, settings, keeping({}))
    assert all(torch.allclose(whole[name], slow[name], atol=1e-5) and torch.allclose(whole[name], kept[name], atol=1e-5) for name in whole)
    assert not all(torch.allclose(whole[name], without[name], atol=1e-4) for name in whole)


def test_in_bf16_the_teacher_is_the_start_to_the_bit_and_the_student_is_back_afterwards() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    selection = model.map.select(("attention",))
    settings = optim(**{**CALM, "lr": 1e-3, "max_steps": 3})
    rest = outside(model.net, selection)
    seen = []
    for step in fit(model, selection, examples(), settings, keeping=keeping({"distill": 1.0})):
        seen.append(step.kept["distill"])
        assert same(outside(model.net, selection), rest)
    assert seen[0] == 0.0, "before the first step the student is the teacher, in the same batch, to the bit"
    assert all(value > 0 for value in seen[1:])


def test_a_teacher_that_is_kept_is_asked_once_a_record_and_shared_between_trainings() -> None:
    model = tiny_model("llama")
    selection = model.map.select(("attention",))
    cache = FeatureCache()
    settings = optim(batch=4, max_steps=9)
    given = keeping({"distill": {"top_k": 8}})
    first = train(model, selection, examples(pictures=False), settings, keeping=given, session=Session(features=cache))
    assert len(cache) == 12
    again = train(model, selection, examples(pictures=False), settings, keeping=given, session=Session(features=cache))
    assert len(cache) == 12
    assert again.delta.digest == first.delta.digest
    child = apply(model, first.delta)
    train(child, selection, examples(pictures=False), settings, keeping=given, session=Session(features=cache))
    assert len(cache) == 24, "another start is another teacher"


@pytest.mark.parametrize("adapter", [None, Adapter(rank=2)])
def test_the_base_is_a_teacher_after_earlier_skills(adapter: Adapter | None) -> None:
    model = tiny_model("phi3")
    selection = model.map.select(("language.layers.*.attn.q", "language.layers.1.mlp.down"))
    records = examples(pictures=False)
    base, _ = copied(model.net, ())
    before = snapshot(model, selection)
    first = train(model, selection, records, optim(lr=0.02, max_steps=6))
    child = apply(model, first.delta)
    given = {"distill": {"teacher": "base", "temperature": 1.0, "weight": 1.0}}
    settings = optim(**{**CALM, "adapter": adapter})
    second = train(child, selection, records, settings, keeping=keeping(given, base=before))
    with torch.no_grad():
        aims, _ = plain_logits(base, model, records)
        logits, _ = plain_logits(child.net, model, records)
    apart = functional.kl_div(torch.log_softmax(logits, dim=-1), torch.softmax(aims, dim=-1), reduction="batchmean")
    assert second.steps[0].kept["distill"] == pytest.approx(apart.item(), rel=1e-2)
    assert apart > 1e-4
    start = train(child, selection, records, settings, keeping=keeping({"distill": {"teacher": "start"}}, base=before))
    assert start.steps[0].kept["distill"] == pytest.approx(0.0, abs=1e-6)
    assert manifest(child.net).id == child.id


def test_a_base_that_differs_outside_the_selection_is_refused() -> None:
    model = tiny_model("llama")
    before = snapshot(model, model.map.select(("mlp",)))
    with pytest.raises(InputError, match=r"keep: teacher: base: the base differs from the model in model\.layers\.0\.mlp"):
        train(
            model,
            model.map.select(("attention",)),
            examples(pictures=False),
            optim(),
            keeping=keeping({"distill": {"teacher": "base"}}, base=before),
        )


# -- pulls


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 5}, {"in_backward": True, "clip": None}])
def test_l2sp_pulls_slices_back_to_the_start(changes: dict[str, Any]) -> None:
    """Weight times the squared distance: value, gradient before clipping, and the steps, against autograd on a copy."""
    model = tiny_model("phi3")
    patterns = ("language.layers.*.attn.q", "language.layers.1.mlp.up", "language.layers.0.mlp.down")
    records = examples(pictures=False)
    settings = optim(**{**CALM, **changes})
    steps, ours = after(model, patterns, records, settings, keeping({"l2sp": 0.3}))
    selection = model.map.select(patterns)
    student, trained = copied(model.net, list(ours))
    masks = [inside(selection, name, parameter.shape) for name, parameter in zip(ours, trained, strict=True)]
    start = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, eps=settings.eps, weight_decay=0.0)
    for step in steps:
        optimizer.zero_grad()
        term = 0.3 * sum((parameter - old)[mask].square().sum() for parameter, old, mask in zip(trained, start, masks, strict=True))
        (functional.cross_entropy(*plain_logits(student, model, records)) + term).backward()
        for parameter, mask in zip(trained, masks, strict=True):
            parameter.grad[~mask] = 0.0
        assert step.kept["l2sp"] == pytest.approx(term.item(), rel=1e-4, abs=1e-9)
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.clip or 1e9)
        assert step.grad_norm == pytest.approx(norm.item(), rel=1e-4)
        optimizer.step()
    assert steps[-1].kept["l2sp"] > 0.01
    for value, theirs, old, mask in zip(ours.values(), trained, start, masks, strict=True):
        assert torch.allclose(value[mask], theirs[mask], atol=2e-6)
        assert torch.equal(value[~mask], old[~mask])


def hand_made_fisher(model: Model, name: str, records: Records) -> torch.Tensor:
    """Mean over records of the squared gradient of one answer's log-likelihood, by autograd, one record after the other."""
    net, (parameter,) = copied(model.net, [name])
    total = torch.zeros_like(parameter)
    for record in records:
        (gradient,) = torch.autograd.grad(-functional.cross_entropy(*plain_logits(net, model, [record]), reduction="sum"), parameter)
        total += gradient.square()
    return total / len(records)


def test_the_fisher_information_is_the_mean_of_squared_gradients_of_single_records() -> None:
    model = tiny_model("phi3")
    selection = model.map.select(("language.layers.1.attn.k",))
    records = examples(5, pictures=False)
    encoder = Encoder(model.processor)
    samples = encode(model, encoder, records, optim())
    found = fisher(model, selection, samples, Forward(model, encoder, None, "no"), Processes(model))
    (name,) = selection.parameters
    theirs = hand_made_fisher(model, name, records)[inside(selection, name, parameters(model.net)[name].shape)]
    assert torch.allclose(torch.cat([part.flatten() for part in found.values()]), theirs, rtol=1e-3, atol=1e-9)
    assert theirs.max() > 0
    pooled, (parameter,) = copied(model.net, [name])
    (gradient,) = torch.autograd.grad(functional.cross_entropy(*plain_logits(pooled, model, records), reduction="sum"), parameter)
    assert not torch.allclose(theirs, gradient[inside(selection, name, gradient.shape)].square(), rtol=0.1), "not of their sum"
    assert all(not parameter.requires_grad or parameter.grad is None for parameter in model.net.parameters())


def test_ewc_pulls_each_element_by_its_fisher_information() -> None:
    model = tiny_model("phi3")
    patterns = ("language.layers.1.attn.k",)
    records, old = examples(pictures=False), renamed(examples(4, pictures=False), "old ")
    settings = optim(**CALM)
    steps, ours = after(model, patterns, records, settings, keeping({"ewc": {"weight": 1e7, "data": "x"}}, ewc=old))
    (name,) = ours
    mask = inside(model.map.select(patterns), name, ours[name].shape)
    importance = hand_made_fisher(model, name, old)
    student, (parameter,) = copied(model.net, [name])
    start = parameter.detach().clone()
    optimizer = torch.optim.AdamW([parameter], lr=settings.lr, eps=settings.eps, weight_decay=0.0)
    for step in steps:
        optimizer.zero_grad()
        term = 1e7 / 2 * (importance * (parameter - start).square())[mask].sum()
        (functional.cross_entropy(*plain_logits(student, model, records)) + term).backward()
        parameter.grad[~mask] = 0.0
        assert step.kept["ewc"] == pytest.approx(term.item(), rel=1e-3, abs=1e-9)
        assert step.grad_norm == pytest.approx(torch.nn.utils.clip_grad_norm_([parameter], 1.0).item(), rel=1e-3)
        optimizer.step()
    assert steps[-1].kept["ewc"] > 1e-3
    assert torch.allclose(ours[name][mask], parameter[mask], atol=2e-6)


@pytest.mark.parametrize("adapter", [Adapter(rank=2), Adapter(kind="osf", preserve=0.5)])
@pytest.mark.parametrize("in_backward", [False, True])
def test_with_an_adapter_the_pulls_are_of_what_it_adds_to_the_weights(adapter: Adapter, in_backward: bool) -> None:
    model = tiny_model("llama")
    patterns = ("language.layers.1.attn.q",)
    records = examples(pictures=False)
    settings = optim(**{**CALM, "adapter": adapter, "clip": None, "in_backward": in_backward, "max_steps": 4})
    given = keeping({"l2sp": 0.5, "ewc": {"weight": 30.0, "data": "x"}}, ewc=records[:3])
    three = settings.model_copy(update={"max_steps": 3})
    steps, _ = after(model, patterns, records, settings, given)
    _, ours = after(model, patterns, records, three, given)
    (name,) = ours
    moved = ours[name] - parameters(model.net)[name].detach()
    importance = hand_made_fisher(model, name, records[:3])
    assert steps[3].kept["l2sp"] == pytest.approx(0.5 * moved.square().sum().item(), rel=1e-3)
    assert steps[3].kept["ewc"] == pytest.approx(15.0 * (importance * moved.square()).sum().item(), rel=1e-3)
    _, free = after(model, patterns, records, three, keeping({}))
    assert moved.norm() < 0.9 * (free[name] - parameters(model.net)[name].detach()).norm()


def test_a_pull_is_no_gradient_that_reaches_a_part() -> None:
    """A component that the records do not use stays dead, though weight decay moves it and the pull takes it back."""
    from selectune.errors import SelectionViolated

    model = tiny_model()
    with pytest.raises(SelectionViolated, match="vision"):
        train(model, model.map.select(("vision",)), examples(pictures=False), optim(max_steps=3), keeping=keeping({"l2sp": 0.1}))


# -- replay


@given(
    n=st.integers(1, 60),
    pools=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    batch=st.integers(1, 20),
    percent=st.integers(1, 90),
    epochs=st.integers(1, 3),
)
def test_the_share_of_replays_is_exact_at_every_step(n: int, pools: list[int], batch: int, percent: int, epochs: int) -> None:
    share = Fraction(percent, 100)
    plan = Schedule(n=n, optim=optim(batch=batch, epochs=float(epochs), max_steps=None), seed=3, replayed=share, pools=tuple(pools))
    drawn: list[int] = []
    for step in range(1, plan.total + 1):
        found = plan.batch(step)
        assert len(found) == batch or step == plan.total
        drawn += found
        assert sum(index >= n for index in drawn) == math.floor(share * len(drawn))
    assert Counter(index for index in drawn if index < n) == dict.fromkeys(range(n), epochs), "every new record once an epoch"
    bounds = [n + sum(pools[:number]) for number in range(len(pools) + 1)]
    counts = [Counter(index for index in drawn if low <= index < high) for low, high in pairwise(bounds)]
    assert tuple(count.total() for count in counts) == plan.replays()
    assert max(plan.replays()) - min(plan.replays()) <= 1, "the sources take turns"
    assert all(
        max(count.values(), default=0) - min((count[i] for i in range(low, low + size)), default=0) <= 1
        for count, low, size in zip(counts, bounds, pools, strict=False)
    )


def test_without_replays_the_order_is_what_it_was() -> None:
    plain = Schedule(n=7, optim=optim(batch=3, max_steps=6), seed=4)
    given = Schedule(n=7, optim=optim(batch=3, max_steps=6), seed=4, replayed=Fraction(1, 4))
    assert [plain.batch(step) for step in range(1, 7)] == [given.batch(step) for step in range(1, 7)]


def test_replayed_records_are_trained_on_and_counted() -> None:
    """Sources whose ids are the same; the loss of a batch is over new and replayed labels alike."""
    model = tiny_model()
    new, old = examples(12), examples(4)
    given = keeping({"replay": 0.25}, replay={"digits": old, "more": renamed(examples(3), "r")})
    done = train(model, model.map.select(("attention",)), new, optim(batch=8, max_steps=4), keeping=given)
    assert done.replayed == {"digits": 4, "more": 4}
    assert done.reasons["keep.replay"] == "0.25 of all that is drawn: digits 4 times of 4 records, more 4 times of 3 records"
    plan = Schedule(n=12, optim=optim(batch=8, max_steps=4), seed=0, replayed=Fraction(1, 4), pools=(4, 3))
    everything = [*new, *old, *examples(3)]
    logits, targets = plain_logits(model.net, model, [everything[index] for index in plan.batch(1)])
    assert done.steps[0].loss == pytest.approx(functional.cross_entropy(logits, targets).item(), rel=1e-5)
    alone = train(model, model.map.select(("attention",)), new, optim(batch=8, max_steps=4), keeping=keeping({"replay": 0.25}))
    assert alone.replayed == {}
    assert alone.reasons["keep.replay"] == "nothing: no skill came before, and no data are named"


# -- anchors


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("changes", [{}, {"micro_batch": 2}, {"in_backward": True, "clip": None}, {"checkpointing": True}])
def test_anchors_hold_the_prompts_own_positions(positions: str, changes: dict[str, Any]) -> None:
    model = tiny_model()
    records, prompts = examples(), renamed(examples(6), "p")
    settings = optim(**{**CALM, **changes, "max_steps": 2})
    given = keeping({"anchors": {"data": "x", "batch": 6, "weight": 1.5, "positions": positions}}, anchors=prompts)
    steps, ours = after(model, ("attention",), records, settings, given)
    teacher, _ = copied(model.net, ())
    student, trained = copied(model.net, list(ours))
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, eps=settings.eps, weight_decay=0.0)
    encoder = Encoder(model.processor)

    def prompt_logits(net: Any) -> torch.Tensor:
        parts = []
        for record in prompts:
            ids = encoder.prompt(record).input_ids
            logits = net(input_ids=torch.tensor([ids]), **encoder.pixels(record.pictures)).logits[0]
            text = [place for place, token in enumerate(ids) if token != model.net.config.image_token_id]
            parts.append(logits[text] if positions == "all" else logits[-1:])
        return torch.cat(parts)

    for step in steps:
        optimizer.zero_grad()
        with torch.no_grad():
            aims = prompt_logits(teacher)
        apart = functional.kl_div(torch.log_softmax(prompt_logits(student), -1), torch.softmax(aims, -1), reduction="batchmean")
        (functional.cross_entropy(*plain_logits(student, model, records)) + 1.5 * apart).backward()
        assert step.kept["anchors"] == pytest.approx(1.5 * apart.item(), rel=1e-3, abs=1e-6)
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.clip or 1e9)
        assert step.grad_norm == pytest.approx(norm.item(), rel=1e-4)
        optimizer.step()
    assert steps[1].kept["anchors"] > 1e-3
    assert all(torch.allclose(value, theirs, atol=2e-6) for value, theirs in zip(ours.values(), trained, strict=True))


def test_anchors_read_no_answer_and_take_plain_text_too() -> None:
    from evaluation_fixtures import record, records, text

    model = tiny_model()
    selection = model.map.select(("language.layers[1:].attn.*",))
    given = {"anchors": {"data": "x", "batch": 3}}
    digests = {
        train(
            model,
            selection,
            examples(),
            optim(batch=4, max_steps=6),
            keeping=keeping(
                given, anchors=records(record("a", "What is it?", said, shade=3), text("b", "one two three"), record("c", "Is it?", said))
            ),
        ).delta.digest
        for said in ("seven", "a red fish")
    }
    assert len(digests) == 1


def test_a_term_without_its_records_is_an_error_that_says_how_to_give_them() -> None:
    model = tiny_model("llama")
    for name in ("ewc", "anchors"):
        given = {name: {"data": "x", "weight": 1.0}}
        with pytest.raises(InputError, match=rf"keep\.{name}: its records are not given\. Give them: Keeping\({name}="):
            train(model, model.map.select(("attention",)), examples(pictures=False), optim(), keeping=keeping(given))


# -- all of it


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("adapter", [None, Adapter(rank=2)])
def test_everything_at_once_interrupted_and_resumed_is_straight_through(tmp_path: Path, top_k: int | None, adapter: Adapter | None) -> None:
    model = tiny_model("llava", torch.bfloat16)
    selection = model.map.select(("language.layers[1:].attn.*", "language.layers.1.mlp.down"))
    settings = optim(max_steps=7, batch=4, micro_batch=3, save_every=3, adapter=adapter)
    old = renamed(examples(5), "old ")
    terms = {**ALL, "distill": {"top_k": top_k}, "anchors": {"data": "x", "batch": 3, "top_k": top_k}}
    given = keeping(terms, ewc=old[:3], replay={"earlier": old}, anchors=old)
    straight = train(model, selection, examples(), settings, keeping=given)
    assert set(straight.steps[-1].kept) == {"distill", "l2sp", "ewc", "anchors"}
    assert all(math.isfinite(value) and value >= 0 for step in straight.steps for value in step.kept.values())

    class Enough(Exception):
        pass

    def stop(step: Step) -> None:
        if step.n == 5:
            raise Enough

    with pytest.raises(Enough):
        train(model, selection, examples(), settings, keeping=given, session=Session(checkpoint_dir=tmp_path, on_step=stop))
    assert manifest(model.net).id == model.id
    resumed = train(model, selection, examples(), settings, keeping=given, session=Session(resume=tmp_path))
    assert resumed.delta.child == straight.delta.child
    assert [step.kept for step in resumed.steps] == [step.kept for step in straight.steps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_training_takes_the_same_fisher_information_again_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    """It is no part of a checkpoint: one backward pass for each record gives the same bits in another process's fresh model."""
    records, old = examples(), renamed(examples(5), "old ")
    settings = optim(max_steps=6, save_every=4)
    given = keeping({"ewc": {"weight": 1e5, "data": "x"}}, ewc=old)
    found, digests = [], []
    for session in (Session(checkpoint_dir=tmp_path), Session(resume=tmp_path)):
        torch.manual_seed(17 * len(found))
        model = tiny_model("llava", dtype)
        selection = model.map.select(("language.layers[1:].attn.*",))
        setup = prepare(model, selection, records, settings, given, session)
        (pull,) = setup.keeper._terms.pulls
        assert pull.importance is not None
        found.append(pull.importance)
        digests.append(train(model, selection, records, settings, keeping=given, session=session).delta.digest)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert any(bool(value.any()) for value in found[0].values())
    assert digests[0] == digests[1]
    with safe_open(str(tmp_path / "checkpoint-00000004.safetensors"), framework="pt") as file:
        assert not any("fisher" in name or "importance" in name for name in file.keys())  # noqa: SIM118  # not a mapping


def test_a_checkpoint_of_other_terms_is_refused_with_the_difference(tmp_path: Path) -> None:
    from selectune.errors import ResumeError

    model = tiny_model("llama")
    selection = model.map.select(("attention",))
    settings = optim(save_every=2)
    records = examples(pictures=False)
    train(model, selection, records, settings, keeping=keeping({"l2sp": 0.1}), session=Session(checkpoint_dir=tmp_path))
    with pytest.raises(ResumeError, match=r"keep\.settings\.l2sp\.weight was 0\.1, is 0\.2"):
        train(model, selection, records, settings, keeping=keeping({"l2sp": 0.2}), session=Session(resume=tmp_path))
    with pytest.raises(ResumeError, match=r"keep"):
        train(model, selection, records, settings, session=Session(resume=tmp_path))


def test_keeping_nothing_changes_nothing() -> None:
    model = tiny_model()
    selection = model.map.select(("attention",))
    assert (
        train(model, selection, examples(), optim(), keeping=keeping({})).delta.digest
        == train(model, selection, examples(), optim()).delta.digest
    )
