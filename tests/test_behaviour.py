"""Names are believed where the model behaves as they claim: every architecture that is mapped, made small."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from behaviour import Findings, Subject
from behaviour_roles import check_roles
from behaviour_separation import check_pictures_apart, check_text_apart
from behaviour_types import DATA, all_types, behaviour_of, counted, row
from pictures import image_features
from selectune.components import Component
from selectune.components.architecture import causal_types, image_text_types
from small import small

CHUNKS = 8
SPLIT_QKV = (
    *("bloom", "codegen", "dbrx", "falcon", "fuyu", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "jetmoe", "mpt", "persimmon"),
    *("phi3", "phi4_multimodal"),
)
"""Types whose keys and values, and mostly queries too, share a tensor."""
SPLIT_GATE_UP = ("glm", "glm4", "glm4v", "glm_ocr", "modernbert-decoder", "phi3", "phi4_multimodal")
PACKED = ("dbrx", "deepseek_v3", "gpt_oss", "jetmoe", "llama4", "longcat_flash", "mixtral", "qwen3_moe", "qwen3_vl_moe")


def _data() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(DATA.read_text("utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # half of the families have a remark to make
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_types_behave_as_the_stored_findings_say(chunk: int) -> None:
    """What is stored is what the architectures page shows: after a change, `python tests/behaviour_types.py` writes it anew."""
    data = _data()
    for model_type in all_types()[chunk::CHUNKS]:
        try:
            found = row(model_type, behaviour_of(model_type))
        except Exception as error:
            error.add_note(f"of the type {model_type}")
            raise
        assert {model_type: found} == {model_type: data.get(model_type)}


def test_the_stored_findings_cover_enough_types() -> None:
    data = _data()
    assert tuple(data) == all_types()
    assert counted(data, image_text_types()) >= 80
    assert counted(data, causal_types()) >= 150
    assert sum("apart.text" in entry.get("checked", "") for entry in data.values()) >= 80
    assert sum("apart.pictures" in entry.get("checked", "") for entry in data.values()) >= 80
    assert not [model_type for model_type, entry in data.items() if "no check" in entry.get("left", {}).values()]


def test_every_fused_layout_is_among_the_checked() -> None:
    data = _data()
    roles = {model_type: set(entry.get("checked", "").split()) for model_type, entry in data.items()}
    assert not [model_type for model_type in SPLIT_QKV if not {"attn.q", "attn.k", "attn.v", "attn.o"} <= roles[model_type]]
    assert not [model_type for model_type in SPLIT_GATE_UP if not {"mlp.gate", "mlp.up", "mlp.down"} <= roles[model_type]]
    assert not [model_type for model_type in PACKED if not {"moe.experts.gate", "moe.experts.down"} <= roles[model_type]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_fused_types_are_fused() -> None:
    """Their roles are parts of a tensor here as in the large models, transposed ones on the last axis."""
    for types, role in ((SPLIT_QKV, "attn.v"), (SPLIT_GATE_UP, "mlp.up"), (PACKED, "moe.experts.1.up")):
        for model_type in types:
            subject = Subject(small(model_type))
            place = subject.layer("language.layers", role)
            assert place is not None, model_type
            assert subject.components[f"{place}.{role}"][0].slice is not None, model_type
    (region,) = Subject(small("gpt2")).components["language.layers.0.attn.v"][0].slice or ()
    assert region[0] == 1


def _exchange(subject: Subject, *pairs: tuple[str, str]) -> None:
    for left, right in pairs:
        for place in (f"language.layers.{layer}" for layer in subject.layers("language.layers")):
            names = f"{place}.{left}", f"{place}.{right}"
            if all(name in subject.components for name in names):
                subject.components[names[0]], subject.components[names[1]] = (subject.components[name] for name in reversed(names))


@pytest.mark.parametrize(
    ("model_type", "pair", "found_out"),
    [
        ("llama", ("mlp.up", "mlp.gate"), {"mlp.up", "mlp.gate"}),
        ("llama", ("mlp.up", "mlp.down"), {"mlp.up"}),
        ("llama", ("attn.v", "attn.k"), {"attn.v"}),
        ("llama", ("attn.v", "attn.q"), {"attn.v", "attn.q"}),
        ("phi3", ("attn.v", "attn.k"), {"attn.v"}),
        ("gpt2", ("attn.v", "attn.q"), {"attn.v", "attn.q"}),
        ("deepseek_v3", ("attn.kv_b", "attn.q_b"), {"attn.kv_b", "attn.uniform"}),
        ("deepseek_v3", ("attn.kv_a", "attn.q_a"), {"attn.kv_a"}),
        ("qwen3_moe", ("moe.experts.1.gate", "moe.experts.1.up"), {"moe.experts.up"}),
        ("qwen3_moe", ("moe.experts.1.gate", "moe.experts.2.gate"), {"moe.experts.gate"}),
        ("qwen3_moe", ("moe.experts.1.down", "moe.experts.2.down"), {"moe.experts.gate"}),
        ("bart", ("cross.v", "cross.k"), {"cross.v"}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_name_is_found_out(model_type: str, pair: tuple[str, str], found_out: set[str]) -> None:
    """The checks can fail: with two roles under each other's names they do."""
    subject = Subject(small(model_type))
    _exchange(subject, pair)
    found = Findings()
    check_roles(subject, found)
    assert found_out <= found.wrong.keys()
    with torch.no_grad():
        assert subject.net(input_ids=torch.tensor([[3, 4]])).logits.isfinite().all()


@pytest.mark.parametrize("model_type", ["gpt_neox", "falcon", "codegen"])
def test_a_layout_taken_for_another_is_found_out(model_type: str) -> None:
    """Queries, keys and values one after the other where they alternate by head or block."""
    subject = Subject(small(model_type))
    for name, components in list(subject.components.items()):
        place, _, role = name.rpartition(".")
        if place.endswith(".attn") and role in {"q", "k", "v"}:
            subject.components[name] = [_third(subject, one, "qkv".index(role)) for one in components]
    found = Findings()
    check_roles(subject, found)
    assert found.wrong.keys() & {"attn.q", "attn.k", "attn.v", "attn.uniform"}


def _third(subject: Subject, one: Component, index: int) -> Component:
    rows = subject.parameters[one.parameter].shape[0] // 3
    shape = (rows, *one.shape[1:])
    return Component(
        name=one.name,
        parameter=one.parameter,
        slice=((0, index * rows, (index + 1) * rows, 1),),
        shape=shape,
        elements=one.elements,
        tied=one.tied,
        dtype=one.dtype,
    )


def test_a_part_of_another_tower_is_found_out() -> None:
    """An MLP of the language tower under vision's name changes what comes of words; a projector under language's, a picture's features."""
    subject, found = Subject(small("llava")), Findings()
    subject.components["vision.taken"] = subject.components.pop("language.layers.0.mlp.up")
    check_text_apart(subject, found)
    subject.components["language.taken"] = subject.components.pop("projector.linear_1")
    check_pictures_apart(subject, found, lambda: image_features(subject))
    assert {"apart.text", "apart.pictures"} <= found.wrong.keys()
