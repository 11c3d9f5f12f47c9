"""`arch:TYPE`: the map of an architecture that transformers knows, from its default config on the meta device, without weights."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from selectune.components.component import ComponentMap
from selectune.components.mapping import map_model
from selectune.components.standins import stand_ins
from selectune.errors import ModelError, NotYet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPASS = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
_INDEXER = {"indexer_n_heads": 16, "indexer_kv_heads": 2, "indexer_head_dim": 128, "indexer_budget": 2048, "indexer_compress_ratio": 64}

# What a default config leaves out and the model cannot be built without: values, or functions of the part of the config that they go into,
# by their path in it. The names and layouts of the parts do not depend on these sizes.
_FILLED: Mapping[str, Mapping[str, Any]] = {
    "aya_vision": {"vision_config.num_attention_heads": 16},
    "chameleon": {"vocabulary_map": {"<image>": 8711}},
    "cohere_compass": {"text_config.rope_parameters": _COMPASS},
    "cohere_compass_text": {"rope_parameters": _COMPASS},
    "dbrx": {"attn_config.rope_theta": 500000.0},
    "deepseek_ocr2": {"text_config.mlp_layer_types": lambda part: ["dense"] + ["sparse"] * (part.num_hidden_layers - 1)},
    "diffusion_gemma": {"text_config.num_experts": 128, "text_config.top_k_experts": 8, "text_config.moe_intermediate_size": 704},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "emu3": {"vocabulary_map": {"<image>": 8711, "<|extra_200|>": 8712}},
    "granite4_vision": {"deepstack_layer_map": [[-2, 0], [-8, 3]], "downsample_rate": "4/8"},
    "hunyuan_vl": {"text_config.head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": lambda part: ["full_attention" if n % 4 == 2 else "conv" for n in range(part.num_hidden_layers)]},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "perception_lm": {"vision_config.model_args": {"embed_dim": 1024}},
    "qwen4_exp": {f"text_config.{key}": value for key, value in _INDEXER.items()},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"is_decoder": True},
}


def known_types() -> tuple[str, ...]:
    """Every model type that transformers can build for image-text-to-text or as a causal language model, sorted."""
    return tuple(sorted({*image_text_types(), *causal_types()}))


def image_text_types() -> tuple[str, ...]:
    """The model types of transformers' image-text-to-text models, sorted."""
    return tuple(sorted(_auto_maps()[0]))


def causal_types() -> tuple[str, ...]:
    """The model types of transformers' causal language models, sorted."""
    return tuple(sorted(_auto_maps()[1]))


def _auto_maps() -> tuple[Mapping[str, str], Mapping[str, str]]:
    from transformers.models.auto import modeling_auto

    return modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def map_architecture(model_type: str) -> ComponentMap:
    """The map of the type's image-text-to-text model, or of its causal language model, called `arch:TYPE`.

    Raises ModelError for a type that transformers does not know, with near ones, and NotYet with the reason for one that does not build
    from its default config.
    """
    net = build_architecture(model_type)
    return map_model(net, f"arch:{model_type}")


def build_architecture(model_type: str) -> PreTrainedModel:
    """The model of a type, on the meta device. Raises as `map_architecture`."""
    image, causal = _auto_maps()
    if model_type not in image and model_type not in causal:
        shown = model_type if len(model_type) <= 80 else f"{model_type[:80]}…"
        near = _near_types(model_type[:200], [*image, *causal])
        hint = (
            f"Did you mean {' or '.join(f'arch:{name}' for name in near)}?"
            if near
            else "docs/reference/architectures.md lists them all; llava, qwen2_5_vl and llama are three."
        )
        raise ModelError(f'"{shown}" is no architecture that transformers builds', where=f"arch:{shown}", then=hint)
    return _built(model_type)


def _near_types(text: str, known: list[str]) -> list[str]:
    """Up to three types that look like it; a class's name and a hub id are read as well."""
    bare = re.sub(r"(For\w+|Model|Config)$", "", text.rpartition("/")[2])
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]+", "_", bare).lower()
    close = [name for word in (text, snake) for name in difflib.get_close_matches(word, known, n=3, cutoff=0.5)]
    return list(dict.fromkeys(close))[:3]


def _built(model_type: str) -> PreTrainedModel:
    import torch

    try:
        built, config = default_config(model_type)
        with torch.device("meta"), _quiet(), stand_ins():
            net: PreTrainedModel = built._from_config(config)
            return net
    except build_failures() as error:
        reason = " ".join(str(error).split())[:200]
        raise NotYet(
            f"its default config does not build ({type(error).__name__}: {reason})",
            where=f"arch:{model_type}",
            then="Map a folder with a config.json of this family instead.",
        ) from error


def build_failures() -> tuple[type[Exception], ...]:
    """What transformers raises for a config that builds no model, and for files that cannot be read."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (
        StrictDataclassError,
        SafetensorError,
        OSError,
        ImportError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RuntimeError,
    )


def default_config(model_type: str) -> tuple[Any, Any]:
    """The class of a known type's model, and its default config with what that leaves out filled in. Raises what transformers does."""
    import transformers

    image, causal = _auto_maps()
    built = getattr(transformers, image.get(model_type) or causal[model_type])
    config: Any = transformers.AutoConfig.for_model(model_type)
    if not isinstance(config, built.config_class):
        config = built.config_class()  # a part of the type's config: musicgen's decoder
    for path, value in _FILLED.get(model_type, {}).items():
        *parents, key = path.split(".")
        part = config
        for parent in parents:
            part = getattr(part, parent)
        setattr(part, key, value(part) if callable(value) else value)
    return built, config


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks about defaults, which say nothing about the map."""
    from transformers.utils import logging as remarks

    before = remarks.get_verbosity()
    remarks.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        remarks.set_verbosity(before)
