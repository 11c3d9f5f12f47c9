"""The dtype that is trained with is chosen for a reason, and the update is one of the original whatever it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model, write_recipe
from selectune.delta import Delta, applied, apply, onto, revert
from selectune.errors import WrongParent
from selectune.hashing import manifest
from selectune.models import Model, assemble
from selectune.pipeline import load_any, plan, run
from selectune.precision import choose_dtype, widen
from selectune.recipe import Optim, read_recipe
from selectune.registry import Registry
from selectune.training import train
from training_fixtures import examples, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("stored", "features", "dtype", "why"),
    [
        (torch.float32, {}, torch.float32, "float32, as stored"),
        (torch.float16, {"avx512_bf16": True}, torch.float32, "float32: gradients in float16 underflow"),
        (torch.bfloat16, {"avx512_bf16": True}, torch.bfloat16, "bfloat16: the CPU has avx512_bf16"),
        (torch.bfloat16, {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16, "bfloat16: the CPU has amx_bf16"),
        (torch.bfloat16, {"avx2": True, "avx512_bf16": False}, torch.float32, "float32: the CPU has no bfloat16 arithmetic"),
    ],
)
def test_a_dtype_is_chosen_by_what_is_stored_and_what_the_device_can(
    stored: torch.dtype, features: dict[str, bool], dtype: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    found, reason = choose_dtype(stored, CPU)
    assert found == dtype
    assert reason.startswith(why)


def test_a_recipe_may_say_which_dtype_it_wants() -> None:
    assert choose_dtype(torch.float16, CPU, "stored") == (torch.float16, "float16, as stored: the recipe says so")
    assert choose_dtype(torch.bfloat16, CPU, "float32")[0] == torch.float32


def _narrow(dtype: torch.dtype) -> Model:
    return tiny_model("llama", dtype=dtype)


def _trained(wide: Model, patterns: tuple[str, ...], adapter: str | None = None) -> Delta:
    optim = Optim.model_validate({"lr": 2e-2, "batch": 4, "max_steps": 4, "adapter": adapter})
    return train(wide, wide.map.select(patterns), examples(pictures=False), optim).delta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("patterns", [("attention",), ("language.layers.0.attn.q",)])
def test_an_update_trained_in_float32_is_one_of_the_original_rounded_once(dtype: torch.dtype, patterns: tuple[str, ...]) -> None:
    original = _narrow(dtype)
    wide = widen(_narrow(dtype), torch.float32)
    assert wide.id != original.id
    done = _trained(wide, patterns)
    delta = onto(done, original.manifest, wide)
    child = apply(_narrow(dtype), delta)
    assert (delta.parent, delta.child) == (original.id, manifest(child.net).id)
    with applied(wide, done) as moved:
        expected = {name: value.to(dtype) for name, value in moved.net.named_parameters()}
    for name, value in child.net.named_parameters():
        assert torch.equal(value, expected[name]), name
    assert revert(child, delta).id == original.id


def test_an_adapter_trained_in_float32_leads_to_an_update_of_the_original() -> None:
    original, wide = _narrow(torch.bfloat16), widen(_narrow(torch.bfloat16), torch.float32)
    delta = onto(_trained(wide, ("attention",), "lora"), original.manifest, wide)
    assert apply(_narrow(torch.bfloat16), delta).id == delta.child


def test_an_update_of_the_original_goes_onto_the_wide_model_and_back_without_loss() -> None:
    original, wide = _narrow(torch.bfloat16), widen(_narrow(torch.bfloat16), torch.float32)
    delta = onto(_trained(wide, ("gate-and-up",)), original.manifest, wide)
    there = onto(delta, wide.manifest, wide)
    assert {one.dtype for one in there.tensors.values()} == {"F32"}
    assert onto(there, original.manifest, wide).digest == delta.digest
    child = apply(_narrow(torch.bfloat16), delta)
    with applied(wide, there) as moved:
        for name, value in moved.net.named_parameters():
            assert torch.equal(value, child.net.get_parameter(name).float())


def test_a_model_with_other_numbers_is_refused() -> None:
    wide = widen(_narrow(torch.bfloat16), torch.float32)
    delta = _trained(wide, ("attention",))
    torch.manual_seed(9)
    made = _narrow(torch.bfloat16)
    other = assemble("other", type(made.net)(made.net.config).to(torch.bfloat16), made.processor)
    with pytest.raises(WrongParent, match="tensors that the delta touches are others"):
        onto(delta, other.manifest, wide)
    with pytest.raises(WrongParent, match="tensors that the delta touches are others"):
        onto(delta, _narrow(torch.bfloat16).manifest)


@pytest.mark.slow
def test_a_run_on_a_float16_model_records_updates_of_that_very_model(tmp_path: Path) -> None:
    made = tiny.llama()
    base = assemble("tiny", made.net.to(torch.float16), made.processor)
    folder, url = save_model(base, tmp_path / "model"), str(tmp_path / "registry")
    recipe = read_recipe(write_recipe(tmp_path, folder), ["optim.lr=0.02"])
    assert plan(recipe, lambda name: load_any(name, "none")).reasons["dtype"].startswith("float32: gradients in float16")
    result = run(recipe, registry=url, out=tmp_path / "runs")
    first, second = result.updates
    assert (first.base, second.parent) == (base.id, first.id)
    found = load_any(second.id, url)
    assert found.id == second.child
    assert found.net.dtype == torch.float16
    assert any("trained and measured in float32" in note for note in result.notes)
    Registry.open(url).verify().demand()
