"""What a selection takes by tower and by layer: counts that add up, and what the program prints of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from conftest import FAMILIES
from selectune.cli import app
from selectune.cli.models import _numbers
from selectune.components import Component, ComponentMap, Span, map_model, portions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tiny = Callable[[str], "PreTrainedModel"]


def _map(*names: str) -> ComponentMap:
    """Components of four elements."""
    components = tuple(Component(name=n, parameter=n, slice=None, shape=(2, 2), elements=4, tied=(), dtype="F32") for n in names)
    return ComponentMap(model="invented", components=components, shapes=dict.fromkeys(names, (2, 2)))


LAYERS = _map(
    "language.embed", *(f"language.layers.{n}.{part}" for n in range(8) for part in ("attn.q", "mlp.up")), "language.norm", "head"
)


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_and_spans_add_up_to_the_model_and_to_the_selection(family: str, tiny: Tiny) -> None:
    found = map_model(tiny(family), family)
    selection = found.select(["attention", "language.layers[-1:].*", "head"], tie="allow")
    taken = portions(found, selection)
    assert sum(tower.of_elements for tower in taken.towers) == taken.elements == found.elements
    assert sum(tower.elements for tower in taken.towers) == sum(span.elements for span in taken.spans) == selection.elements
    assert sum(tower.components for tower in taken.towers) == sum(span.components for span in taken.spans) == len(selection.names)
    assert {tower.tower for tower in taken.towers} == {name.split(".")[0] for name in found.families}
    assert all(0 < span.share <= 1 for span in taken.spans)


def test_a_whole_model_is_taken_whole(tiny: Tiny) -> None:
    found = map_model(tiny("llava"), "llava")
    taken = portions(found, found.select(["full"]))
    assert {tower.share for tower in taken.towers} == {span.share for span in taken.spans} == {1.0}


def test_without_a_selection_towers_are_counted_and_nothing_is_taken(tiny: Tiny) -> None:
    found = map_model(tiny("llava"), "llava")
    taken = portions(found)
    assert [(tower.tower, tower.elements) for tower in taken.towers] == [("vision", 0), ("projector", 0), ("language", 0), ("head", 0)]
    assert taken.spans == ()


def test_layers_of_which_the_same_is_taken_are_one_span() -> None:
    spans = portions(LAYERS, LAYERS.select(["language.layers[2:6].*", "language.layers[::2].attn.q", "!language.layers.4.mlp.up"])).spans
    assert [(span.layers, span.parts, span.elements, span.of_elements) for span in spans] == [
        ((0, 4, 6), ("attn.q",), 12, 24),
        ((2, 3, 5), ("attn.q", "mlp.up"), 24, 24),
    ]


def test_what_lies_outside_layers_is_a_span_of_its_tower() -> None:
    spans = portions(LAYERS, LAYERS.select(["language.embed", "head", "language.layers.7.attn.q"])).spans
    assert [(span.place, span.layers, span.parts, span.share) for span in spans] == [
        ("language", (), ("embed",), 0.5),
        ("language.layers", (7,), ("attn.q",), 0.5),
        ("head", (), (), 1.0),
    ]


def test_other_experts_are_another_span_though_they_are_as_many() -> None:
    found = _map(*(f"language.layers.{n}.moe.experts.{expert}.up" for n in range(2) for expert in range(4)))
    spans = portions(found, found.select(["language.layers.0.moe.experts[:2].up", "language.layers.1.moe.experts[2:].up"])).spans
    assert [(span.layers, span.parts, span.components) for span in spans] == [
        ((0,), ("moe.experts.*.up",), 2),
        ((1,), ("moe.experts.*.up",), 2),
    ]


def test_parts_of_a_fused_tensor_are_counted_by_their_slices(tiny: Tiny) -> None:
    found = map_model(tiny("phi3"), "phi3")
    (span,) = portions(found, found.select(["language.layers.*.attn.{q,v}"])).spans
    assert (span.layers, span.parts, span.elements) == ((0, 1), ("attn.q", "attn.v"), 2 * (32 + 16) * 32)


def test_a_second_encoder_has_layers_of_its_own_and_an_index_may_be_a_part() -> None:
    found = _map("language.encoder.layers.1.attn.q", "language.layers.1.attn.q", "vision.layers.0.0", "vision.layers.0.1")
    spans = portions(found, found.select(["full", "!vision.layers.0.1"])).spans
    assert [(span.place, span.layers, span.parts) for span in spans] == [
        ("language.encoder.layers", (1,), ("attn.q",)),
        ("language.layers", (1,), ("attn.q",)),
        ("vision.layers", (0,), ("*",)),
    ]


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((3,), "3"),
        ((8, 9, 10), "8-10"),
        ((0, 1), "0-1"),
        ((0, 2), "0, 2"),
        ((0, 2, 4, 6), "0-6 by 2"),
        ((4, 12, 20, 28), "4-28 by 8"),
        ((0, 1, 4, 6, 7, 8), "0-1, 4, 6-8"),
    ],
)
def test_layers_are_written_short(layers: tuple[int, ...], text: str) -> None:
    assert _numbers(layers) == text


def _printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["map", "arch:llama", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_program_prints_towers_layers_and_the_sum() -> None:
    text = _printed("language.layers[8:24].mlp.{gate,up}", "language.layers[30:].*", "head", "!head")
    lines = [line.split() for line in text.splitlines()]
    assert ["language", "50", "290", f"{16 * 2 * 4096 * 11008 + 2 * 202_383_360:,}", "28.0%", "27.4%"] in lines
    assert ["head", "0", "1", "0", "0.0%", "0.0%"] in lines
    assert "language.layers 8-23: mlp.{gate,up}" in text
    assert "language.layers 30-31: everything" in text
    assert text.splitlines()[-1].startswith(
        "selected by language.layers[8:24].mlp.{gate,up} language.layers[30:].* head !head: 1,847,607,296 of "
    )


def test_the_document_has_the_same_under_taken() -> None:
    document = json.loads(_printed("language.layers[8:24].mlp.gate", "--json"))
    assert list(document) == ["model", "elements", "components", "selected", "taken"]
    language, head = document["taken"]["towers"]
    assert language["elements"] == document["selected"]["elements"]
    assert language["share_of_model"] == language["elements"] / document["elements"]
    assert (head["tower"], head["components"], head["of_components"], head["share"]) == ("head", 0, 1, 0.0)
    (span,) = document["taken"]["spans"]
    assert (span["place"], span["layers"], span["parts"]) == ("language.layers", list(range(8, 24)), ["mlp.gate"])
    assert json.loads(_printed("--json"))["taken"]["spans"] == []


def test_a_span_knows_its_share() -> None:
    assert Span(place="x", layers=(), parts=(), components=1, elements=1, of_elements=4).share == 0.25
