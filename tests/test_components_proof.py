"""The proof of selection: it passes when exactly the selection moved, and names whatever else did, buffers and ties included."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch

from selectune.components import Proof, Selection, forecast, map_model, views
from selectune.errors import SelectionViolated

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tiny = Callable[[str], "PreTrainedModel"]


def _move(net: PreTrainedModel, selection: Selection) -> None:
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for component in selection.components:
            for view in views(parameters[component.parameter], component.slice):
                view += 0.5


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("llava", "attention"), ("phi3", "language.layers.*.attn.q"), ("qwen3_moe", "*.experts.2.up"), ("tied", "language")],
)
def test_a_step_that_moves_exactly_the_selection_passes(name: str, pattern: str, tiny: Tiny) -> None:
    net = tiny(name)
    selection = map_model(net, name).select([pattern])
    proof = Proof.start(net, selection)
    _move(net, selection)
    moved = proof.check(net)
    assert (moved.components, moved.elements, moved.still) == (len(selection.names), selection.elements, ())


def test_one_element_outside_the_selection_is_named(tiny: Tiny) -> None:
    net = tiny("llava")
    selection = map_model(net, "llava").select(["attention"])
    proof = Proof.start(net, selection)
    _move(net, selection)
    with torch.no_grad():
        net.model.vision_tower.encoder.layers[1].mlp.fc1.weight[0, 0] += 1e-3
    with pytest.raises(SelectionViolated, match=r"vision\.layers\.1\.mlp\.up \(.*fc1\.weight\) changed and is not selected"):
        proof.check(net)


def test_another_slice_of_a_selected_tensor_is_named(tiny: Tiny) -> None:
    """Weight decay on a whole fused tensor moves the rows that were not selected."""
    net = tiny("phi3")
    selection = map_model(net, "phi3").select(["language.layers.*.attn.q"])
    proof = Proof.start(net, selection)
    with torch.no_grad():
        for layer in net.model.layers:
            layer.self_attn.qkv_proj.weight *= 0.99
    with pytest.raises(SelectionViolated, match=r"language\.layers\.0\.attn\.k .* changed and is not selected") as caught:
        proof.check(net)
    assert "attn.q (" not in str(caught.value)


def test_a_moved_buffer_is_named_even_if_no_checkpoint_holds_it(tiny: Tiny) -> None:
    net = tiny("llama")
    selection = map_model(net, "llama").select(["attention"])
    proof = Proof.start(net, selection)
    _move(net, selection)
    assert "model.rotary_emb.inv_freq" not in net.state_dict()
    net.model.rotary_emb.inv_freq += 1
    with pytest.raises(SelectionViolated, match=r"the buffer model\.rotary_emb\.inv_freq changed"):
        proof.check(net)


def test_a_selected_component_that_stands_still_is_named_or_reported(tiny: Tiny) -> None:
    net = tiny("llama")
    found = map_model(net, "llama")
    proof = Proof.start(net, found.select(["attention"]))
    _move(net, found.select(["attention", "!language.layers.1.attn.v"]))
    with pytest.raises(SelectionViolated, match=r"language\.layers\.1\.attn\.v is selected and did not move"):
        proof.check(net)
    assert proof.check(net, still="report").still == ("language.layers.1.attn.v",)


def test_a_cut_tie_is_named(tiny: Tiny) -> None:
    net = tiny("tied")
    selection = map_model(net, "tied").select(["attention"])
    proof = Proof.start(net, selection)
    _move(net, selection)
    net.lm_head.weight = torch.nn.Parameter(net.lm_head.weight.detach().clone())
    with pytest.raises(SelectionViolated, match=r"lm_head\.weight was model\.embed_tokens\.weight and is a tensor of its own now"):
        proof.check(net)


def test_a_tensor_in_another_dtype_has_changed(tiny: Tiny) -> None:
    net = tiny("llama")
    selection = map_model(net, "llama").select(["attention"])
    proof = Proof.start(net, selection)
    _move(net, selection)
    net.model.norm.to(torch.bfloat16)
    with pytest.raises(SelectionViolated, match=r"language\.norm .* changed"):
        proof.check(net)


@pytest.mark.parametrize("name", ["llama", "qwen2", "llava", "llava_onevision", "phi3"])
def test_counts_agree_with_layers_times_heads_times_widths(name: str, tiny: Tiny) -> None:
    net = tiny(name)
    rows = forecast(net, map_model(net, name).select(["attention", "mlp"]))
    assert len(rows) == 7
    assert all(row.agrees for row in rows)
    by_family = {row.family: row for row in rows}
    assert by_family["language.layers.*.attn.k"].expected == 2 * 32 * (2 * 8)


def test_a_family_that_the_config_does_not_determine_has_no_expected_count(tiny: Tiny) -> None:
    net = tiny("qwen3_moe")
    rows = forecast(net, map_model(net, "moe").select(["mlp"]))
    assert {row.agrees for row in rows} == {None}


def test_a_count_that_disagrees_with_the_config_shows(tiny: Tiny) -> None:
    net = tiny("llama")
    selection = map_model(net, "llama").select(["mlp"])
    net.config.intermediate_size = 47
    assert {row.agrees for row in forecast(net, selection)} == {False}
