"""LoRA on a selection: PEFT's matrices on exactly the selected weights, and one exact delta in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from selectune.components import views
from selectune.delta import apply, revert
from selectune.errors import InputError, MissingPackage, RecipeError
from selectune.hashing import manifest
from selectune.network import parameters
from selectune.recipe import Adapter, Optim, parse_recipe
from selectune.training import Session, fit, train
from training_fixtures import examples, optim, outside, same, tiny_model

RANK = 3
LORA = optim(adapter=Adapter(rank=RANK), lr=2e-2, weight_decay=0.1)
WHERE = [
    ("llama", ("attention",)),
    ("llava", ("attention", "language.layers.1.mlp.down")),
    ("llava", ("projector",)),
    ("phi3", ("language.layers.*.attn.q", "language.layers.1.attn.v")),
    ("phi3", ("gate-and-up",)),
    ("phi3", ("language.layers.0.mlp.up",)),
    ("gpt2", ("language.layers.*.attn.{q,v,o}",)),
    ("qwen3_moe", ("language.layers.*.moe.experts.*.{gate,up}",)),
    ("qwen3_moe", ("language.layers.*.moe.experts.[1:3].up", "language.layers.0.attn.q")),
    ("qwen3_moe", ("language.layers.1.moe.experts.*.*",)),
    ("llama", ("language.embed",)),
]


def _select(model: Any, patterns: tuple[str, ...]) -> Any:
    return model.map.select(tuple(pattern.replace(".[", "[") for pattern in patterns))


@pytest.mark.parametrize(("family", "patterns"), WHERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_is_of_the_selection_alone_and_of_low_rank(family: str, patterns: tuple[str, ...], dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype)
    selection = _select(model, patterns)
    names = [name for name, _ in model.net.named_parameters()]
    rest = outside(model.net, selection)
    done = train(model, selection, examples(pictures=family == "llava"), LORA)
    assert manifest(model.net).id == model.id
    assert [name for name, _ in model.net.named_parameters()] == names
    before = {name: value.detach().clone() for name, value in parameters(model.net).items()}
    child = apply(model, done.delta)
    assert same(outside(child.net, selection), rest)
    moved = 0
    for name, regions in selection.parameters.items():
        now = parameters(child.net)[name].detach()
        if now.ndim == 1:
            assert torch.equal(now, before[name]), "biases stay"
            continue
        change = (now.float() - before[name].float()).reshape(-1, *now.shape[-2:])
        if dtype == torch.float32:  # rounding to bf16 gives a change of full rank
            assert all(int(torch.linalg.matrix_rank(one, atol=1e-4)) <= RANK for one in change)
        for region in (None,) if regions is None else regions:
            moved += sum(int((part != 0).any()) for part in views(now - before[name], region))
    assert moved
    assert "LoRA of rank 3" in done.reasons["adapter"]
    revert(child, done.delta)


def test_every_selected_component_of_a_dense_model_moves() -> None:
    model = tiny_model("phi3")
    selection = _select(model, ("language.layers.*.attn.q", "gate-and-up"))
    assert train(model, selection, examples(pictures=False), LORA).moved.still == ()


def test_the_adapter_file_on_the_base_gives_the_child(tmp_path: Path) -> None:
    import warnings

    from peft import PeftModel

    warnings.simplefilter("ignore")  # PEFT asks transformers by an old name
    for family, patterns in (("llava", ("attention",)), ("qwen3_moe", ("language.layers.*.moe.experts.*.up", "language.layers.0.attn.q"))):
        model = tiny_model(family)
        done = train(model, _select(model, patterns), examples(pictures=False), LORA)
        assert done.adapter is not None
        folder = done.adapter.save(tmp_path / family)
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        with torch.no_grad():
            base = model.net(input_ids=ids).logits
            beside = PeftModel.from_pretrained(tiny_model(family).net, str(folder)).eval()(input_ids=ids).logits
            child = apply(model, done.delta).net(input_ids=ids).logits
        assert torch.allclose(child, beside, atol=1e-4)
        assert not torch.allclose(child, base, atol=1e-2)


def test_interrupted_and_resumed_is_straight_through(tmp_path: Path) -> None:
    model = tiny_model("phi3")
    selection = _select(model, ("language.layers.*.attn.q",))
    settings = LORA.model_copy(update={"max_steps": 6, "save_every": 3})
    straight = train(model, selection, examples(pictures=False), settings)

    class Enough(Exception):
        pass

    def stop(step: Any) -> None:
        if step.n == 4:
            raise Enough

    with pytest.raises(Enough):
        train(model, selection, examples(pictures=False), settings, session=Session(checkpoint_dir=tmp_path, on_step=stop))
    assert manifest(model.net).id == model.id
    resumed = train(model, selection, examples(pictures=False), settings, session=Session(resume=tmp_path))
    assert resumed.delta.child == straight.delta.child


def test_leaving_early_keeps_what_was_learned_in_the_weights() -> None:
    model = tiny_model("llama")
    modules = [name for name, _ in model.net.named_modules()]
    for step in fit(model, _select(model, ("attention",)), examples(pictures=False), LORA):
        if step.n == 2:
            break
    assert [name for name, _ in model.net.named_modules()] == modules
    assert manifest(model.net).id != model.id
    assert not hasattr(model.net, "peft_config")


def test_the_model_may_be_used_between_steps() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7]])
    seen = []
    for _ in fit(model, _select(model, ("attention",)), examples(pictures=False), LORA):
        with torch.no_grad():
            seen.append(model.net(input_ids=ids).logits)
    with torch.no_grad():
        assert torch.allclose(model.net(input_ids=ids).logits, seen[-1], atol=1e-4), "merging changes nothing but rounding"
    assert not torch.allclose(seen[0], seen[-1], atol=1e-3)


def test_gradient_flags_and_random_state_are_as_they_were() -> None:
    model = tiny_model("llama")
    flags = [parameter.requires_grad for parameter in model.net.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, _select(model, ("attention",)), examples(pictures=False), LORA)
    assert torch.equal(torch.rand(3), expected)
    assert [parameter.requires_grad for parameter in model.net.parameters()] == flags


@pytest.mark.parametrize(
    ("family", "patterns", "reason"),
    [
        ("llama", ("attention", "language.layers.0.norm.*"), "language.layers.0.norm.input_layernorm has no matrix"),
        ("gpt2", ("language.embed",), "language.embed is tied"),
    ],
)
def test_what_has_no_low_rank_form_is_refused_with_the_reason(family: str, patterns: tuple[str, ...], reason: str) -> None:
    model = tiny_model(family)
    selection = model.map.select(patterns, tie="allow")
    with pytest.raises(InputError, match=reason):
        train(model, selection, examples(pictures=False), LORA)
    assert manifest(model.net).id == model.id


def test_a_part_that_is_no_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    model = tiny_model("llama")
    first, second = (c for c in model.map.components if c.name in ("language.layers.0.attn.q", "language.layers.0.attn.o"))
    chosen = _select(model, ("language.layers.0.attn.q",))
    corner = replace(first, slice=((0, 0, 4, 1), (1, 0, 4, 1)), shape=(4, 4), elements=16)
    other = replace(first, slice=((0, 4, 8, 1), (1, 4, 8, 1)), shape=(4, 4), elements=16)
    del second
    with pytest.raises(InputError, match="no block of rows and columns"):
        train(model, replace(chosen, components=(corner, other)), examples(pictures=False), LORA)
    assert manifest(model.net).id == model.id


def test_without_peft_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    model = tiny_model("llama")
    with pytest.raises(MissingPackage, match=r"selectune\[peft\]"):
        train(model, _select(model, ("attention",)), examples(pictures=False), LORA)


def test_a_recipe_may_say_lora_in_one_word_or_in_full() -> None:
    assert Optim.model_validate({"adapter": "lora"}).adapter == Adapter()
    assert Optim.model_validate({"adapter": {"kind": "lora", "rank": 8}}).adapter == Adapter(rank=8)
    assert (Adapter(rank=8).scale, Adapter(rank=8, alpha=4.0).scale) == (16.0, 4.0)
    text = "name: x\nselect: attention\nskills: [{name: a, train: t, test: t}]\noptim: {adapter: {rank: 0}}\n"
    with pytest.raises(RecipeError, match=r"optim\.adapter\.rank"):
        parse_recipe(text)
