"""Law 3: apply then revert is the identity; save then load keeps the digest; a wrong parent is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from delta_fixtures import model_of, quick_disk, selecting
from selectune.components import Region
from selectune.delta import Delta, apply, extract, revert, snapshot
from selectune.errors import WrongParent
from selectune.hashing import manifest, state

FAMILIES = ["llama-tied", "llama", "gpt2", "llava"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _net(family: str, dtype: torch.dtype) -> torch.nn.Module:
    """A tiny model of a family, from its configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, CLIPVisionConfig, GPT2Config, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=family == "llama-tied",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "gpt2":
            return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)).to(dtype)
        if family == "llava":
            vision = CLIPVisionConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
            )
            return AutoModelForImageTextToText.from_config(LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)).to(
                dtype
            )
        return AutoModelForCausalLM.from_config(text).to(dtype)


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_law_3_holds(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    net = _net(family, dtype)
    model = model_of(net)
    matrices = [name for name, tensor in state(net).items() if tensor.ndim == 2]
    parts: dict[str, Region | None] = {name: ((0, 0, 16, 3),) if number % 2 else None for number, name in enumerate(matrices)}
    selection = selecting(net, parts)
    before = snapshot(model, selection)
    with torch.no_grad():
        for name, region in parts.items():
            tensor = state(net)[name]
            (tensor if region is None else tensor[0:16:3]).mul_(1.01)
    child = model.updated(manifest(net))
    delta = extract(model, before, selection, meta={"family": family})
    delta.save(tmp_path / "x.delta")
    loaded = Delta.load(tmp_path / "x.delta")
    assert loaded.digest == delta.digest
    assert (loaded.parent, loaded.child) == (model.id, child.id)
    parent = revert(child, loaded)
    assert parent.id == model.id == manifest(net).id
    assert apply(parent, loaded).id == child.id == manifest(net).id
    with pytest.raises(WrongParent):
        apply(child, loaded)
    if family == "llama-tied":
        assert net.get_output_embeddings().weight is net.get_input_embeddings().weight
