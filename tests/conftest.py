"""Tiny models of the families that users have, built from configs: hidden 32, two layers, a vocabulary of 64, seeded, on the CPU."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from selectune.governance import PrivateKey

# Before anything imports transformers, which this file does only when a model is asked for: tests without one start fast.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no fault of the code: no deadline. The same examples each run, so that a failure is one for everybody.
hypothesis.settings.register_profile("selectune", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("selectune")

pytest_plugins = ["database_fixtures", "places_fixtures"]


@pytest.fixture(name="keys", scope="module")
def _keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PrivateKey]:
    """A key for each of the people of `governance_fixtures`."""
    from governance_fixtures import make_keys

    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(name="deltas", scope="module")
def _deltas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The deltas of a line of three updates, in files."""
    from governance_fixtures import make_deltas

    return make_deltas(tmp_path_factory.mktemp("deltas"))


IMAGE_TOKEN = 60
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
}
QWEN_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "depth": 2,
    "num_heads": 4,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "window_size": 32,
    "fullatt_block_indexes": [1],
}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128}
_DBRX_ATTENTION: dict[str, Any] = {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}
_DBRX_FFN: dict[str, Any] = {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}
# Twelve dimensions of a head of 8 cannot be rotated in three parts; these are of 8.
QWEN_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def _text(kind: str, **more: Any) -> PreTrainedModel:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**TEXT, **more})
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def _image(kind: str, text: str, vision: str, **more: Any) -> PreTrainedModel:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        text_config=getattr(transformers, f"{text}Config")(**TEXT),
        vision_config=getattr(transformers, f"{vision}Config")(**VISION),
        image_token_id=IMAGE_TOKEN,
        **more,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def _gpt2() -> PreTrainedModel:
    import transformers

    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=128, bos_token_id=1, eos_token_id=2)
    return transformers.GPT2LMHeadModel(config)


def _qwen() -> PreTrainedModel:
    import transformers

    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": QWEN_ROPE}, vision_config=QWEN_VISION, image_token_id=IMAGE_TOKEN, vision_start_token_id=61
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


_BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: _text("Llama"),
    "tied": lambda: _text("Llama", tie_word_embeddings=True),
    "qwen2": lambda: _text("Qwen2"),
    "phi3": lambda: _text("Phi3"),
    "qwen3_moe": lambda: _text("Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
    "gpt_oss": lambda: _text("GptOss", num_local_experts=4, head_dim=8),
    "bloom": lambda: _text("Bloom", n_layer=2, n_head=4),
    "gpt_neox": lambda: _text("GPTNeoX"),
    "gpt2": _gpt2,
    "gpt_bigcode": lambda: _text("GPTBigCode", **_GPT),
    "codegen": lambda: _text("CodeGen", **_GPT, rotary_dim=8),
    "mpt": lambda: _text("Mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=128),
    "persimmon": lambda: _text("Persimmon"),
    "falcon": lambda: _text("Falcon"),
    "falcon_heads": lambda: _text("Falcon", multi_query=False),
    "falcon_groups": lambda: _text("Falcon", new_decoder_architecture=True, num_kv_heads=2),
    "dbrx": lambda: _text("Dbrx", d_model=32, n_heads=4, n_layers=2, max_seq_len=128, attn_config=_DBRX_ATTENTION, ffn_config=_DBRX_FFN),
    "llava": lambda: _image("Llava", "Llama", "CLIPVision", vision_feature_layer=-1, vision_feature_select_strategy="default"),
    "llava_next": lambda: _image("LlavaNext", "Llama", "CLIPVision", image_grid_pinpoints=[[16, 32], [32, 16]]),
    "llava_onevision": lambda: _image("LlavaOnevision", "Qwen2", "SiglipVision", image_grid_pinpoints=[[16, 16]], vision_feature_layer=-1),
    "qwen2_5_vl": _qwen,
}
FAMILIES = tuple(_BUILDERS)
VISION_FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl")


@cache
def _built(name: str) -> PreTrainedModel:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _BUILDERS[name]().eval()


def tiny_model(name: str) -> PreTrainedModel:
    """A fresh copy of the tiny model of a family: the same weights each time, and free to be changed."""
    return copy.deepcopy(_built(name))


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], PreTrainedModel]:
    """`tiny(name)`: a fresh copy of a tiny model; the names are `FAMILIES`."""
    return tiny_model
