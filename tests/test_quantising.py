"""A frozen base in few bits: what is selected stays as it was, and the update is one of the original, bit for bit."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from selectune.delta import apply, onto
from selectune.errors import InputError, MissingPackage, QuantisedSelection, WrongParent
from selectune.hashing import manifest
from selectune.models import Model, assemble
from selectune.quantising import Kind, quantise
from selectune.recipe import Optim
from selectune.training import train
from training_fixtures import examples, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _made(seed: int = 0) -> Model:
    """A tiny Llama of a size that bitsandbytes multiplies on a CPU."""
    made = tiny_model("llama")
    config = made.net.config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(seed)
    return assemble("tiny", type(made.net)(config).to(torch.bfloat16), made.processor)


def _bytes(net: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_an_update_beside_a_quantised_base_is_one_of_the_original(kind: Kind, adapter: str | None) -> None:
    model = _made()
    original, size = model.manifest, _bytes(model.net)
    selection = model.map.select(("attention",))
    small = quantise(model, [selection], kind)
    assert {c.name.rpartition(".")[2] for c in small.map.components if c.quantised} == {"gate", "up", "down"}
    assert _bytes(small.net) < size
    done = train(
        small,
        small.map.select(("attention",)),
        examples(pictures=False),
        Optim.model_validate({"lr": 2e-2, "batch": 4, "max_steps": 6, "adapter": adapter}),
    )
    delta = onto(done.delta, original)
    child = apply(_made(), delta)
    assert (delta.parent, child.id) == (original.id, manifest(child.net).id)
    beside = dict(apply(small, done.delta).net.named_parameters())
    for name in selection.parameters:
        assert torch.equal(beside[name], dict(child.net.named_parameters())[name])


def test_what_the_model_says_is_close_to_what_it_said() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = _made().net(input_ids=ids).logits.float()
        for kind, limit in (("int8", 0.05), ("nf4", 0.25)):
            model = _made()
            small = quantise(model, [model.map.select(("attention",))], kind)
            off = (small.net(input_ids=ids).logits.float() - plain).norm() / plain.norm()
            assert 0 < off < limit


def test_what_is_quantised_cannot_be_selected_afterwards() -> None:
    model = _made()
    small = quantise(model, [model.map.select(("attention",))], "int8")
    with pytest.raises(QuantisedSelection):
        small.map.select(("gate-and-up",))


def test_several_selections_are_all_kept() -> None:
    model = _made()
    keep = [model.map.select((pattern,)) for pattern in ("language.layers.0.attn.q", "language.layers.1.mlp.up")]
    small = quantise(model, keep, "int8")
    plain = {c.name for c in small.map.components if c.quantised is None}
    assert {"language.layers.0.attn.q", "language.layers.1.mlp.up", "head", "language.embed"} <= plain
    assert "language.layers.1.attn.q" not in plain


def test_a_delta_goes_onto_no_model_whose_selected_parts_are_others() -> None:
    model, other = _made(), _made(seed=1)
    done = train(model, model.map.select(("attention",)), examples(pictures=False), Optim(lr=2e-2, batch=4, max_steps=2))
    with pytest.raises(WrongParent, match="are others in model"):
        onto(done.delta, other.manifest)


def test_nothing_to_quantise_and_no_bitsandbytes_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _made()
    with pytest.raises(InputError, match="every linear layer is trained"):
        quantise(model, [model.map.select(("language-layers",))], "int8")
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(MissingPackage, match=r"selectune\[quantised\]"):
        quantise(model, [model.map.select(("attention",))], "nf4")
