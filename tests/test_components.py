"""The map of each family, presets, ties, fused tensors: what a name claims is checked by what the model does where it can be."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, TimmWrapperConfig

from selectune.components import PRESETS, ComponentMap, map_architecture, map_model, views
from selectune.components.architecture import image_text_types
from selectune.components.standins import TIMM_TYPES
from selectune.errors import InputError, ModelError, NoMatch, NotYet, TiedSelection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tiny = Callable[[str], "PreTrainedModel"]
VISION_FAMILIES = ["llava", "llava_next", "llava_onevision", "qwen2_5_vl"]


def _parameters(found: ComponentMap, *patterns: str) -> set[str]:
    return {component.parameter for component in found.select(patterns).components}


def test_a_llama_has_the_names_of_the_design(tiny: Tiny) -> None:
    found = map_model(tiny("llama"), "llama")
    assert dict(found.families) == {
        "language.embed": 1,
        **{f"language.layers.*.attn.{role}": 2 for role in "qkvo"},
        **{f"language.layers.*.mlp.{role}": 2 for role in ("gate", "up", "down")},
        "language.layers.*.norm.input_layernorm": 2,
        "language.layers.*.norm.post_attention_layernorm": 2,
        "language.norm": 1,
        "head": 1,
    }


def test_biases_belong_to_the_component_of_their_weight(tiny: Tiny) -> None:
    found = map_model(tiny("qwen2"), "qwen2")
    entries = [component for component in found.components if component.name == "language.layers.0.attn.q"]
    assert [component.parameter.rsplit(".", 2)[1:] for component in entries] == [["q_proj", "weight"], ["q_proj", "bias"]]


@pytest.mark.parametrize("name", VISION_FAMILIES)
def test_language_roles_never_touch_the_vision_tower(name: str, tiny: Tiny) -> None:
    """Must not repeat 2, measured fact M1: substrings such as `self_attn.q_proj` and `mlp.gate_proj` hit vision tensors too."""
    net = tiny(name)
    found = map_model(net, name)
    text = {id(value) for value in net.get_decoder().parameters()}
    by_name = dict(net.named_parameters())
    chosen = _parameters(found, "attention", "mlp")
    assert len(chosen) >= 2 * 7
    assert all(id(by_name[parameter]) in text for parameter in chosen)
    assert {component.name for component in found.select(["attention"]).components} == {
        f"language.layers.{layer}.attn.{role}" for layer in range(2) for role in "qkvo"
    }


def test_the_substring_loop_would_have_trained_the_vision_towers(tiny: Tiny) -> None:
    """Measured fact M1, on the tiny models: what the test above guards against is real."""
    for name, word in (("llava_onevision", "self_attn.q_proj"), ("qwen2_5_vl", "mlp.gate_proj")):
        found = map_model(tiny(name), name)
        hit = {component.name.split(".")[0] for component in found.components if word in component.parameter}
        assert hit == {"language", "vision"}


@pytest.mark.parametrize("name", VISION_FAMILIES)
def test_a_vision_family_has_three_towers(name: str, tiny: Tiny) -> None:
    net = tiny(name)
    found = map_model(net, name)
    inside = {"vision": "vision_tower", "projector": "multi_modal_projector"} | ({"vision": "visual"} if name == "qwen2_5_vl" else {})
    assert all(inside["vision"] in component.parameter for component in found.components if component.name.startswith("vision."))
    assert found.select(["vision", "projector", "language"]).elements == found.elements == sum(value.numel() for value in net.parameters())
    assert _parameters(found, "vision.patch")
    assert _parameters(found, "vision.layers.*.attn.{q,k,v,o}", "vision.layers.*.norm.*")


def test_the_merger_of_qwen_and_the_newline_of_llava_belong_to_the_projector(tiny: Tiny) -> None:
    assert all(".merger." in parameter for parameter in _parameters(map_model(tiny("qwen2_5_vl"), "q"), "projector"))
    assert "model.image_newline" in _parameters(map_model(tiny("llava_next"), "n"), "projector")


def _convnet_llava() -> PreTrainedModel:
    """A Llava whose vision tower is a convnet with names that no table knows, registered as third parties do."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig, PreTrainedModel

    class OddConfig(PreTrainedConfig):
        model_type = "odd_convnet"

    class OddModel(PreTrainedModel):
        config_class = OddConfig
        main_input_name = "pixel_values"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self._conv_first = nn.Conv2d(3, 8, 3)
            self._bn_first = nn.BatchNorm2d(8)
            self.cells = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)) for _ in range(3))
            self.head = nn.Conv2d(8, 16, 1)
            self.q_proj = nn.Linear(16, 16)
            self.post_init()

        def get_input_embeddings(self) -> nn.Module:
            return self._conv_first

    text = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    net = LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
    )
    config = OddConfig()
    net.model.vision_tower = OddModel(config)
    net.config.vision_config = config
    return net


def test_every_part_of_an_unknown_vision_tower_is_called_vision() -> None:
    net = _convnet_llava()
    found = map_model(net, "odd")
    names = {component.name for component in found.components if "vision_tower" in component.parameter}
    assert all(name.startswith("vision.") for name in names)
    assert {"vision.patch", "vision.layers.0.0", "vision.layers.2.norm.1", "vision.head", "vision.q_proj"} <= names
    assert "vision_tower" not in " ".join(_parameters(found, "attention", "language"))


def test_the_language_preset_has_embeddings_norm_and_head_and_the_layers_preset_has_not(tiny: Tiny) -> None:
    found = map_model(tiny("llava"), "llava")
    rest = set(found.select(["language"]).names) - set(found.select(["language-layers"]).names)
    assert rest == {"language.embed", "language.norm", "head"}


def test_gate_and_up_leaves_down_and_the_upper_half_is_half(tiny: Tiny) -> None:
    found = map_model(tiny("llama"), "llama")
    both = found.select(["gate-and-up"])
    assert {name.rsplit(".", 1)[1] for name in both.names} == {"gate", "up"}
    assert found.select(["upper-gate-and-up"]).elements * 2 == both.elements
    assert found.select(["mlp"]).elements == both.elements + found.select(["down"]).elements


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_chooses_something_of_a_vision_language_model(name: str, tiny: Tiny) -> None:
    assert map_model(tiny("llava"), "llava").select([name]).elements > 0


def test_a_preset_that_matches_nothing_stops(tiny: Tiny) -> None:
    """Must not repeat 1."""
    with pytest.raises(NoMatch, match='the preset "vision" matches no component of llama'):
        map_model(tiny("llama"), "llama").select(["vision"])


def test_a_tied_head_says_what_it_is_and_asks_for_tie_allow(tiny: Tiny) -> None:
    """Must not repeat 7."""
    found = map_model(tiny("tied"), "tied")
    (embed,) = [component for component in found.components if component.name == "language.embed"]
    assert embed.tied == ("head",)
    with pytest.raises(TiedSelection, match=r'"head" is language\.embed: they are one tensor.*tie: allow'):
        found.select(["head"])
    with pytest.raises(TiedSelection, match=r'"language\.embed" is head'):
        found.select(["language.embed"])
    assert found.select(["head"], tie="allow").components == (embed,)


def test_a_selection_that_names_all_of_a_tie_needs_no_permission(tiny: Tiny) -> None:
    found = map_model(tiny("tied"), "tied")
    assert found.select(["language"]).elements == found.select(["full"]).elements == found.elements


def test_an_excluded_name_of_a_tie_is_never_selected_through_the_other(tiny: Tiny) -> None:
    found = map_model(tiny("tied"), "tied")
    with pytest.raises(TiedSelection):
        found.select(["language", "!head"])
    assert "language.embed" not in found.select(["language", "!head"], tie="allow").names


def test_fused_tensors_are_slices_of_the_right_sizes(tiny: Tiny) -> None:
    found = map_model(tiny("phi3"), "phi3")
    by_name = {component.name: component for component in found.components}
    assert by_name["language.layers.0.attn.q"].slice == ((0, 0, 32, 1),)
    assert by_name["language.layers.0.attn.k"].slice == ((0, 32, 48, 1),)
    assert by_name["language.layers.0.mlp.up"].slice == ((0, 48, 96, 1),)
    transposed = {component.name: component for component in map_model(tiny("gpt2"), "gpt2").components if len(component.shape) == 2}
    assert transposed["language.layers.0.attn.k"].slice == ((1, 32, 64, 1),)


def test_packed_experts_are_one_component_each(tiny: Tiny) -> None:
    by_name = {component.name: component for component in map_model(tiny("qwen3_moe"), "moe").components}
    assert by_name["language.layers.1.moe.experts.3.up"].slice == ((0, 3, 4, 1), (1, 16, 32, 1))
    rows = {component.name: component for component in map_model(tiny("gpt_oss"), "oss").components if len(component.shape) == 3}
    assert rows["language.layers.1.moe.experts.3.up"].slice == ((0, 3, 4, 1), (2, 1, 2 * 48, 2))


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "qwen2", "phi3", "gpt2", "bloom", "gpt_neox", "gpt_bigcode", "codegen", "mpt", "persimmon"),
        *("falcon", "falcon_heads", "falcon_groups", "dbrx"),
    ],
)
def test_silencing_v_silences_attention_and_q_does_not(name: str, tiny: Tiny) -> None:
    """Behaviour decides: with v at zero the attention gives no more than o's bias, wherever the rows of v are."""
    silenced = {role: _attention_output(tiny(name), name, role) for role in ("q", "v")}
    bias, out = silenced["v"]
    assert torch.allclose(out, bias.expand_as(out), atol=1e-6)
    bias, out = silenced["q"]
    assert not torch.allclose(out, bias.expand_as(out), atol=1e-4)


def _attention_output(net: PreTrainedModel, name: str, role: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first layer's attention output with one role at zero, and the bias of its output matrix."""
    found = map_model(net, name)
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for component in found.components:
            if component.name == f"language.layers.0.attn.{role}":
                for view in views(parameters[component.parameter], component.slice):
                    view.zero_()
    weights = [component.parameter for component in found.components if component.name == "language.layers.0.attn.o"]
    module = net.get_submodule(weights[0].rpartition(".")[0])
    seen: list[torch.Tensor] = []
    module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    with torch.no_grad():
        net(input_ids=torch.arange(3, 11)[None])
    bias = getattr(module, "bias", None)
    return (torch.zeros(()) if bias is None else bias.detach()), seen[0]


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen3_moe", "gpt_oss"])
def test_doubling_up_doubles_a_gated_mlp_and_doubling_gate_does_not(name: str, tiny: Tiny) -> None:
    base, up, gate = (_mlp_output(tiny(name), name, role) for role in (None, "up", "gate"))
    if name == "gpt_oss":  # its up half enters as up + 1, so that doubling is no doubling; zero gate silences it all the same
        assert torch.equal(_mlp_output(tiny(name), name, "gate", factor=0.0), torch.zeros_like(base))
        return
    assert torch.allclose(up, 2 * base, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gate, 2 * base, rtol=1e-2, atol=1e-6)


def _mlp_output(net: PreTrainedModel, name: str, role: str | None, *, factor: float = 2.0) -> torch.Tensor:
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for component in map_model(net, name).components:
            if re.fullmatch(rf"language\.layers\.0\.(mlp|moe\.experts\.\d+)\.{role}", component.name):
                for view in views(parameters[component.parameter], component.slice):
                    view *= factor
        hidden = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
        output = net.model.layers[0].mlp(hidden)
    return output[0] if isinstance(output, tuple) else output


def test_part_of_a_fused_tensor_of_unknown_layout_is_not_yet_and_never_more_than_asked(tiny: Tiny) -> None:
    net = tiny("phi3")
    for layer in net.model.layers:
        layer.self_attn.__class__ = type("SomebodysAttention", (type(layer.self_attn),), {})
    found = map_model(net, "odd")
    with pytest.raises(NotYet, match=r"qkv_proj\.weight holds .*attn\.q, .*only language\.layers\.0\.attn\.q is asked for"):
        found.select(["language.layers.*.attn.q"])
    whole = found.select(["language.layers.*.attn.{q,k,v}"])
    assert set(whole.names) == {"language.layers.0.attn.qkv", "language.layers.1.attn.qkv"}
    assert found.select(["attention"]).elements == map_model(tiny("phi3"), "phi3").select(["attention"]).elements


def test_parts_without_a_name_are_listed_and_refused(tiny: Tiny) -> None:
    net = tiny("llava")
    net.model.mystery = nn.Linear(4, 4)
    found = map_model(net, "odd")
    assert found.families["other.model.mystery"] == 1
    with pytest.raises(InputError, match=r'"full" takes in 1 parts of odd that have no name of their own, such as other\.model\.mystery'):
        found.select(["full"])
    assert "other.model.mystery" not in found.select(["language"]).names
    assert found.select(["other.*"]).elements == 20


def test_the_regions_of_a_parameter_add_up_to_the_whole(tiny: Tiny) -> None:
    found = map_model(tiny("phi3"), "phi3")
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert found.select(["language.layers.0.attn.{q,k,v}"]).parameters == {name: None}
    assert found.select(["language.layers.0.attn.{q,v}"]).parameters == {name: (((0, 0, 32, 1),), ((0, 48, 64, 1),))}


def test_the_same_selection_has_the_same_digest_whatever_the_patterns(tiny: Tiny) -> None:
    found = map_model(tiny("llama"), "llama")
    one = found.select(["attention"])
    assert one.digest == found.select(["language.layers.*.attn.*"]).digest != found.select(["mlp"]).digest
    (row,) = [row for row in one.table() if row.family == "language.layers.*.attn.k"]
    assert (row.count, row.elements) == (2, 2 * 16 * 32)


def test_the_json_has_the_shape_of_the_design(tiny: Tiny) -> None:
    found = map_model(tiny("phi3"), "phi3")
    chosen = found.select(["language.layers.0.attn.q"])
    document = found.to_json(chosen)
    assert list(document) == ["model", "elements", "components", "selected"]
    assert document["selected"] == {"patterns": ["language.layers.0.attn.q"], "elements": 1024, "components": 1}
    assert [row for row in document["components"] if row["selected"]] == [
        {
            "name": "language.layers.0.attn.q",
            "parameter": "model.layers.0.self_attn.qkv_proj.weight",
            "slice": [[0, 0, 32, 1]],
            "shape": [32, 32],
            "elements": 1024,
            "tied": [],
            "selected": True,
        }
    ]
    assert document["elements"] == sum(row["elements"] for row in document["components"])


def test_an_architecture_is_mapped_without_weights() -> None:
    document = map_architecture("llava").to_json()
    assert document["model"] == "arch:llava"
    # Llama 7B with 32,000 words, CLIP's large tower at 336 pixels, and a projector of 1024 to 4096 to 4096.
    assert document["elements"] == 6_738_415_616 + 303_507_456 + (1024 + 1) * 4096 + (4096 + 1) * 4096
    row = next(row for row in document["components"] if row["name"] == "language.layers.0.attn.q")
    assert row == {
        "name": "language.layers.0.attn.q",
        "parameter": "model.language_model.layers.0.self_attn.q_proj.weight",
        "slice": None,
        "shape": [4096, 4096],
        "elements": 16_777_216,
        "tied": [],
        "selected": False,
    }


def test_an_unknown_architecture_lists_near_ones() -> None:
    with pytest.raises(ModelError, match=r'arch:lava: "lava" is no architecture that transformers builds\. Did you mean arch:llava'):
        map_architecture("lava")


def test_a_default_config_that_does_not_build_says_why() -> None:
    with pytest.raises(NotYet, match=r"arch:gemma4_assistant: its default config does not build \(.*Map a folder"):
        map_architecture("gemma4_assistant")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm builds its own tower")
@pytest.mark.parametrize("model_type", TIMM_TYPES)
def test_a_tower_of_timm_is_one_component_that_says_so(model_type: str) -> None:
    found = map_architecture(model_type)
    stand_in = [component for component in found.components if component.parameter.endswith("stand_in.weight")]
    assert [component.name for component in stand_in] == ["vision.stand_in"]
    assert found.select(["attention"]).elements > 0
    with pytest.raises(ImportError, match="timm"):
        AutoModel.from_config(TimmWrapperConfig())


@pytest.mark.slow
def test_every_image_text_architecture_maps_without_mixing_its_towers() -> None:
    for model_type in image_text_types():
        found = map_architecture(model_type)
        for component in found.components:
            assert not component.name.startswith("other."), f"{model_type}: {component.name}"
            # ERNIE's language layers have experts of their own for image tokens: the one family where the words meet.
            inside_vision = re.search(r"vision_tower|vision_model|visual\.|image_encoder", component.parameter)
            assert not (inside_vision and component.name.startswith("language.")), (
                f"{model_type}: {component.name} is {component.parameter}"
            )
            assert not (".language_model." in component.parameter and component.name.startswith("vision")), (
                f"{model_type}: {component.name}"
            )
