"""The same names and the same proof, whatever is wrapped around the model or its parts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import tiny_model
from delta_fixtures import model_of
from distributed_fixtures import PATTERNS, ROWS, main
from selectune.components import Proof, map_model
from selectune.components.patterns import family
from selectune.delta import Delta, apply, capture
from selectune.errors import InputError, QuantisedSelection, SelectionViolated
from selectune.hashing import manifest
from selectune.models import assemble
from selectune.network import bare, hosts, parameters
from selectune.recipe import Optim
from selectune.training import train
from training_fixtures import examples
from training_fixtures import tiny_model as with_processor


def _peft(net: Any, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by an old name
        return get_peft_model(net, LoraConfig(r=2, **options))


def _compiled_parts(net: Any) -> Any:
    for number, layer in enumerate(net.model.layers):
        net.model.layers[number] = torch.compile(layer, backend="eager")
    return net


def _checkpointed(net: Any) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for number, layer in enumerate(net.model.layers):
        net.model.layers[number] = checkpoint_wrapper(layer)
    return net


WRAPPERS: dict[str, Any] = {
    "compile": lambda net: torch.compile(net, backend="eager"),
    "compile of parts": _compiled_parts,
    "activation checkpoints": _checkpointed,
    "DataParallel": nn.DataParallel,
    "lora": lambda net: _peft(net, target_modules=["qkv_proj", "down_proj"]),
    "lora, compiled": lambda net: torch.compile(_peft(net, target_modules="all-linear"), backend="eager"),
    "modules_to_save": lambda net: _peft(net, target_modules=["qkv_proj"], modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_map_and_the_identity_are_those_of_the_bare_model(wrapper: str) -> None:
    plain = map_model(tiny_model("phi3"), "m")
    wrapped = WRAPPERS[wrapper](tiny_model("phi3"))
    added = hosts(wrapped)
    own = tuple(component for component in map_model(wrapped, "m").components if component.parameter not in added)
    assert own == plain.components
    assert bool(added) == ("lora" in wrapper or wrapper == "modules_to_save")
    if not added:
        assert manifest(wrapped).id == manifest(tiny_model("phi3")).id


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name != "DataParallel"])
def test_capture_proves_the_selection_through_a_wrapper(wrapper: str) -> None:
    plain = tiny_model("phi3")
    model = model_of(plain)
    wrapped = WRAPPERS[wrapper](tiny_model("phi3"))
    with capture(wrapped, map_model(wrapped, "m").select(PATTERNS)) as captured:
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
        for _ in range(2):
            wrapped(input_ids=ROWS, labels=ROWS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    if not hosts(wrapped):
        assert apply(model, captured.delta).id == captured.delta.child, "a delta of a wrapped model is one of the model"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_moves_outside_is_seen_through_a_wrapper(wrapper: str) -> None:
    wrapped = WRAPPERS[wrapper](tiny_model("phi3"))
    proof = Proof.start(wrapped, map_model(wrapped, "m").select(PATTERNS))
    with torch.no_grad():
        parameters(wrapped)["model.layers.1.mlp.down_proj.weight"][0, 0] += 1
    with pytest.raises(SelectionViolated, match=r"language\.layers\.1\.mlp\.down"):
        proof.check(wrapped, still="report")


def test_matrices_that_peft_adds_have_names_and_can_be_selected_and_proven() -> None:
    wrapped = _peft(
        tiny_model("qwen3_moe"), target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    )
    found = map_model(wrapped, "m")
    names = [component.name for component in found.components if ".adapter." in component.name]
    assert [name for name in names if name.startswith("language.layers.0.")] == [
        "language.layers.0.adapter.attn.q.lora_A.default",
        "language.layers.0.adapter.attn.q.lora_B.default",
        "language.layers.0.adapter.moe.experts.gate_up.lora_A.default",
        "language.layers.0.adapter.moe.experts.gate_up.lora_B.default",
        "language.layers.0.adapter.moe.experts.down.lora_A.default",
        "language.layers.0.adapter.moe.experts.down.lora_B.default",
    ]
    selection = found.select(("language.layers.*.adapter.*",))
    with capture(wrapped, selection, still="report") as captured:
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.05)
        wrapped(input_ids=ROWS, labels=ROWS).loss.backward()
        optimizer.step()
    assert captured.delta.tensors.keys() == selection.parameters.keys()


def test_a_name_that_only_looks_like_a_wrappers_is_left_alone() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(2, 2)
            self.module = nn.Linear(2, 2)

    assert list(parameters(Odd())) == ["base_layer.weight", "base_layer.bias", "module.weight", "module.bias"]


def test_the_bare_model_is_found_inside_several_wrappers() -> None:
    net = tiny_model("llama")
    assert bare(torch.compile(_peft(net, target_modules=["q_proj"]), backend="eager")) is net


def test_the_map_after_saving_and_loading_is_the_same(tmp_path: Path) -> None:
    for name in ("phi3", "qwen3_moe", "llava", "tied", "gpt2"):
        net = tiny_model(name)
        net.save_pretrained(tmp_path / name)
        loaded = type(net).from_pretrained(tmp_path / name)
        assert map_model(loaded, "m").components == map_model(net, "m").components
        assert manifest(loaded).id == manifest(net).id


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_see_one_model_and_prove_the_same_delta(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(main, args=(str(tmp_path), kind), nprocs=2)
    delta = Delta.load(tmp_path / "update.delta")
    model = model_of(tiny_model("phi3"))
    assert delta.parent == model.id
    assert apply(model, delta).id == delta.child
    old, new = parameters(tiny_model("phi3")), parameters(model.net)
    fused = "model.layers.0.self_attn.qkv_proj.weight"
    assert torch.equal(new[fused][32:], old[fused][32:])
    assert (new[fused][:32] != old[fused][:32]).any()


def test_sharding_inside_the_block_is_refused_for_a_part_of_a_tensor() -> None:
    net = tiny_model("phi3")
    selection = map_model(net, "m").select(("language.layers.0.attn.q",))
    layer = net.model.layers[0].self_attn.qkv_proj

    def shard_and_step() -> None:
        with capture(net, selection):
            layer.weight = nn.Parameter(layer.weight.detach()[:10].clone())
            optimizer = torch.optim.SGD([layer.weight], lr=0.1)
            layer.weight.grad = torch.ones_like(layer.weight)
            optimizer.step()

    with pytest.raises(InputError, match="before the block begins"):
        shard_and_step()


def _bitsandbytes(net: Any, folder: Path, bits: int) -> Any:
    """The network with its MLPs in 4 or 8 bits, and the rest in bf16."""
    from transformers import BitsAndBytesConfig

    net.to(torch.bfloat16).save_pretrained(folder)
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}
    kept = ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]
    config = BitsAndBytesConfig(llm_int8_skip_modules=kept, **options)
    return type(net).from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)


def _two_tensors(net: Any) -> Any:
    """MLP weights as torch's own example of a tensor that is made of two; torchao's quantised tensors are of the same kind."""
    from torch.testing._internal.two_tensor import TwoTensor

    for layer in net.to(torch.bfloat16).model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            values = linear.weight.detach()
            linear.weight = nn.Parameter(TwoTensor(values.clone(), values.clone()), requires_grad=False)
    return net


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["tensors of tensors", "bitsandbytes 4", "bitsandbytes 8"])
def test_a_quantised_base_is_mapped_and_proven_and_never_selected(kind: str, tmp_path: Path) -> None:
    net = tiny_model("llama")
    net = _two_tensors(net) if kind == "tensors of tensors" else _bitsandbytes(net, tmp_path, int(kind[-1]))
    found = map_model(net, "m")
    assert [c.name for c in found.components] == [c.name for c in map_model(tiny_model("llama"), "m").components]
    quantised = {family(component.name) for component in found.components if component.quantised}
    assert quantised == {f"language.layers.*.mlp.{role}" for role in ("gate", "up", "down")}
    with pytest.raises(QuantisedSelection, match=r"language\.layers\.0\.mlp\.gate is quantised"):
        found.select(("gate-and-up",))
    selection = found.select(("attention",))
    with capture(net, selection) as captured:
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
        net(input_ids=ROWS, labels=ROWS).loss.backward()
        optimizer.step()
    assert captured.delta.tensors.keys() == selection.parameters.keys()
    proof = Proof.start(net, selection)
    with torch.no_grad():
        weight = net.model.layers[0].mlp.down_proj.weight
        (weight.b if kind == "tensors of tensors" else weight.data).view(torch.uint8)[0, 0] ^= 1
    with pytest.raises(SelectionViolated, match=r"language\.layers\.0\.mlp\.down"):
        proof.check(net, still="report")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_the_engine_trains_bf16_parts_of_a_quantised_base(adapter: str | None, bits: int, tmp_path: Path) -> None:
    made = with_processor("llama")
    config = made.net.config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16  # bitsandbytes' products on a CPU want multiples of 64
    net = type(made.net)(config)
    model = assemble("quantised", _bitsandbytes(net, tmp_path, bits), made.processor)
    settings = Optim.model_validate({"lr": 2e-2, "batch": 4, "max_steps": 3, "adapter": adapter})
    done = train(model, model.map.select(("attention",)), examples(pictures=False), settings)
    assert manifest(model.net).id == model.id
    child = apply(model, done.delta)
    assert child.id == done.delta.child != model.id
    assert done.moved.still == ()
