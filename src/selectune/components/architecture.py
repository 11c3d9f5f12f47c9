"""`arch:TYPE`: the map of an architecture that transformers knows, from its default config on the meta device, without weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from selectune.components.component import ComponentMap
from selectune.components.mapping import map_model
from selectune.errors import ModelError, NotYet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where a default config cannot be built as it is: values by their path in it. They are sizes that the family really has.
_FILLED: Mapping[str, Mapping[str, Any]] = {
    "aya_vision": {"vision_config.num_attention_heads": 16},
    "hunyuan_vl": {"text_config.head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
}


def known_types() -> tuple[str, ...]:
    """Every model type that transformers can build for image-text-to-text or as a causal language model, sorted."""
    image, causal = _auto_maps()
    return tuple(sorted({*image, *causal}))


def _auto_maps() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
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
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    image, causal = _auto_maps()
    if model_type not in image and model_type not in causal:
        near = difflib.get_close_matches(model_type, [*image, *causal], n=3, cutoff=0.5)
        hint = (
            f"Did you mean {' or '.join(f'arch:{name}' for name in dict.fromkeys(near))}?"
            if near
            else "transformers lists its model types."
        )
        raise ModelError(f'"{model_type}" is no architecture that transformers builds', where=f"arch:{model_type}", then=hint)
    auto = AutoModelForImageTextToText if model_type in image else AutoModelForCausalLM
    return _built(model_type, auto.from_config)


def _built(model_type: str, build: Callable[[Any], PreTrainedModel]) -> PreTrainedModel:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    # Default configs fail in many ways; all of these mean that the family needs values that only a real config has.
    failures = (
        StrictDataclassError,
        ImportError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RuntimeError,
    )
    try:
        config = AutoConfig.for_model(model_type)
        for path, value in _FILLED.get(model_type, {}).items():
            *parents, key = path.split(".")
            part = config
            for parent in parents:
                part = getattr(part, parent)
            setattr(part, key, value)
        with torch.device("meta"), _quiet():
            return build(config)
    except failures as error:
        reason = " ".join(str(error).split())[:200]
        raise NotYet(
            f"its default config does not build ({type(error).__name__}: {reason})",
            where=f"arch:{model_type}",
            then="Map a folder with a config.json of this family instead.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks about defaults, which say nothing about the map."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
