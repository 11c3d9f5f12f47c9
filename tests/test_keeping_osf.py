"""OSF on a selection: PEFT's factors on exactly the selected weights, against a second implementation in plain torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from keeping_fixtures import CALM, copied, plain_logits
from selectune.delta import apply, revert
from selectune.errors import InputError, RecipeError
from selectune.hashing import manifest
from selectune.network import parameters
from selectune.recipe import Adapter, Optim, parse_recipe
from selectune.training import Session, train
from selectune.training.adapter import Beside, matrix_elements
from training_fixtures import examples, optim, outside, same, tiny_model

OSF = Adapter(kind="osf", preserve=0.75)


@pytest.mark.parametrize(
    ("family", "patterns"),
    [
        ("llama", ("attention",)),
        ("llava", ("attention", "language.layers.1.mlp.down")),
        ("llava", ("projector",)),
        ("qwen2", ("language.layers.1.attn.q",)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_is_of_the_selection_alone(family: str, patterns: tuple[str, ...], dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype)
    selection = model.map.select(patterns)
    rest = outside(model.net, selection)
    done = train(model, selection, examples(pictures=family == "llava"), optim(adapter=OSF, lr=1e-3))
    assert manifest(model.net).id == model.id
    before = {name: value.detach().clone() for name, value in parameters(model.net).items()}
    child = apply(model, done.delta)
    assert same(outside(child.net, selection), rest)
    for name in selection.parameters:
        now = parameters(child.net)[name].detach()
        assert torch.equal(now, before[name]) is (now.ndim == 1), "weights move, biases stay"
    assert "OSF that preserves 0.75 of the singular directions" in done.reasons["adapter"]
    revert(child, done.delta)


def test_training_is_adamw_on_the_small_directions_with_projected_gradients() -> None:
    """An oracle in plain torch: decompose, train U, S and V of the rest, take the preserved directions out of their gradients."""
    model = tiny_model("llama")
    selection = model.map.select(("language.layers.1.attn.q", "language.layers.0.mlp.down"))
    records = examples(pictures=False)
    settings = optim(**{**CALM, "adapter": OSF, "clip": None})
    done = train(model, selection, records, settings)
    child = apply(model, done.delta)
    ours = {name: parameters(child.net)[name].detach().clone() for name in selection.parameters}
    revert(child, done.delta)
    student, weights = copied(model.net, list(ours))
    parts, factors = [], []
    for weight in weights:
        u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
        held = int(len(s) * 0.75)
        low = [torch.nn.Parameter(part.clone()) for part in (u[:, held:], s[held:], v[held:])]
        parts.append((weight, weight.detach().clone(), u[:, :held], v[:held], low, (low[0] * low[1] @ low[2]).detach()))
        factors += low
    optimizer = torch.optim.AdamW(factors, lr=settings.lr, eps=settings.eps, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        values = {name: start + (low[0] * low[1]) @ low[2] - first for name, (_, start, _, _, low, first) in zip(ours, parts, strict=True)}
        with torch.nn.utils.stateless._reparametrize_module(student, values):  # type: ignore[attr-defined]
            loss = functional.cross_entropy(*plain_logits(student, model, records))
            loss.backward()
        for _, _, high_u, high_v, (u, _, v), _ in parts:
            assert u.grad is not None
            assert v.grad is not None
            u.grad -= high_u @ (high_u.T @ u.grad)
            v.grad -= (v.grad @ high_v.T) @ high_v
            assert (high_u.T @ u.grad).norm() < 1e-5
        optimizer.step()
    for name, (_, start, _, _, low, first) in zip(ours, parts, strict=True):
        theirs = start + (low[0] * low[1]) @ low[2] - first
        assert torch.allclose(ours[name], theirs, atol=2e-5)
        assert not torch.allclose(ours[name], start, atol=1e-4)


def test_in_bf16_the_factors_are_orthogonal_to_six_digits() -> None:
    model = tiny_model("llama", torch.bfloat16)
    beside = Beside(model.net, model.map.select(("language.layers.0.attn.q",)), OSF, seed=0)
    (wrapper,) = beside._wrappers.values()
    low = wrapper._osf_U_low_init["default"]
    assert low.dtype == torch.float32
    assert torch.allclose(low.T @ low, torch.eye(low.shape[1]), atol=1e-5)
    assert all(torch.equal(update, torch.zeros_like(update)) for _, update in beside.updates())
    beside.remove()
    assert manifest(model.net).id == model.id
    assert not hasattr(model.net, "peft_config")


def test_the_adapter_file_on_the_base_gives_the_child(tmp_path: Path) -> None:
    from peft import PeftModel

    warnings.simplefilter("ignore")  # PEFT asks transformers by an old name
    model = tiny_model("llava")
    done = train(model, model.map.select(("attention",)), examples(), optim(adapter=OSF, lr=2e-3))
    assert done.adapter is not None
    folder = done.adapter.save(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        base = model.net(input_ids=ids).logits
        beside = PeftModel.from_pretrained(tiny_model("llava").net, str(folder)).eval()(input_ids=ids).logits
        child = apply(model, done.delta).net(input_ids=ids).logits
    assert torch.allclose(child, beside, atol=1e-4)
    assert not torch.allclose(child, base, atol=1e-3)


def test_interrupted_and_resumed_is_straight_through(tmp_path: Path) -> None:
    model = tiny_model("llama")
    selection = model.map.select(("language.layers[1:].attn.*",))
    settings = optim(adapter=OSF, max_steps=6, save_every=3)
    straight = train(model, selection, examples(pictures=False), settings)
    assert straight.moved.still == ()

    class Enough(Exception):
        pass

    def stop(step: Any) -> None:
        if step.n == 4:
            raise Enough

    with pytest.raises(Enough):
        train(model, selection, examples(pictures=False), settings, session=Session(checkpoint_dir=tmp_path, on_step=stop))
    resumed = train(model, selection, examples(pictures=False), settings, session=Session(resume=tmp_path))
    assert resumed.delta.child == straight.delta.child


def test_a_plan_counts_the_factors() -> None:
    model = tiny_model("llama")
    selection = model.map.select(("attention", "language.layers.0.mlp.up"))
    beside = Beside(model.net, selection, OSF, seed=0)
    assert matrix_elements(selection, OSF) == beside.selection.elements
    beside.remove()


@pytest.mark.parametrize(
    ("family", "patterns", "reason"),
    [
        (
            "phi3",
            ("language.layers.*.attn.q",),
            "a part of model.layers.0.self_attn.qkv_proj.weight is selected, and PEFT decomposes a weight as a whole",
        ),
        ("gpt2", ("attention",), "PEFT has it for linear layers alone, and .* is a part of Conv1D"),
        ("llama", ("language.embed",), "PEFT has it for linear layers alone, and .* is a part of Embedding"),
        ("qwen3_moe", ("language.layers.*.moe.experts.*.*",), "PEFT has it for linear layers alone"),
        ("llama", ("attention", "language.layers.0.norm.*"), "has no matrix"),
    ],
)
def test_what_peft_cannot_decompose_is_refused_with_the_reason(family: str, patterns: tuple[str, ...], reason: str) -> None:
    model = tiny_model(family)
    with pytest.raises(InputError, match=f"OSF cannot be put on this selection: .*{reason}"):
        train(model, model.map.select(patterns), examples(pictures=False), optim(adapter=OSF))
    assert manifest(model.net).id == model.id


def test_a_share_of_less_than_one_direction_is_refused() -> None:
    model = tiny_model("llama")
    tiny = Adapter(kind="osf", preserve=0.01)
    with pytest.raises(InputError, match=r"preserve 0\.01 of .* is less than one direction"):
        train(model, model.map.select(("attention",)), examples(pictures=False), optim(adapter=tiny))


def test_a_recipe_may_say_osf_in_one_word_or_in_full() -> None:
    assert Optim.model_validate({"adapter": "osf"}).adapter == Adapter(kind="osf", preserve=0.5)
    text = "name: x\nselect: attention\nskills: [{name: a, train: t, test: t}]\n"
    with pytest.raises(RecipeError, match=r"optim\.adapter: rank is no setting of osf"):
        parse_recipe(text + "optim: {adapter: {kind: osf, rank: 8}}\n")
    with pytest.raises(RecipeError, match=r"optim\.adapter: preserve is no setting of lora"):
        parse_recipe(text + "optim: {adapter: {kind: lora, preserve: 0.9}}\n")
