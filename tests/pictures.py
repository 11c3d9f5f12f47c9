"""What a small image-text-to-text model takes: pixels for its image features, and what some need beside words to run at all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from behaviour import Run, Subject, noise, tensors
from small import PATCHES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUERIES = 8
"""Places that a picture takes among the words of the types that learn queries for it."""
OWN_RUN = ("MllamaForConditionalGeneration",)
"""Classes that hold a `get_image_features` of a part that they do not use."""


def image_features(subject: Subject) -> list[Tensor]:
    """Everything that the model's `get_image_features` gives for one picture; without that, what vision and projector give in a run."""
    get = _features_of(subject.net)
    with torch.no_grad():
        if get is None:
            return _of_parts(subject)
        return [value.clone() for value in tensors(get(**pixels(subject.net)))]


def _features_of(net: PreTrainedModel) -> Callable[..., Any] | None:
    owner: Any = next((module for module in net.modules() if callable(getattr(type(module), "get_image_features", None))), None)
    return None if owner is None or type(net).__name__ in OWN_RUN else owner.get_image_features


def _of_parts(subject: Subject) -> list[Tensor]:
    """What the modules that hold vision and projector components give when the model runs."""
    seen: list[Tensor] = []
    names = [name for name in subject.components if name.split(".")[0].split("_")[0] in {"vision", "projector"}]
    held = {id(subject.parameters[one.parameter]) for name in names for one in subject.components[name]}
    modules = [module for module in subject.net.modules() if any(id(own) in held for own in module.parameters(recurse=False))]

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        seen.extend(value.clone() for value in tensors(output))

    handles = [module.register_forward_hook(note) for module in modules if module is not subject.net]
    try:
        subject.logits()
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise NotImplementedError("no module of the vision tower is called")
    return seen


def pixels(net: PreTrainedModel) -> dict[str, Any]:
    """Arguments for `get_image_features`: one picture of four by four patches, in the layout that its parameters ask for."""
    asked = inspect.signature(_features_of(net) or net.forward).parameters
    config = _vision(net.config)
    patch = _int(getattr(config, "patch_size", None)) or 4
    channels = _int(getattr(config, "num_channels", None)) or _int(getattr(config, "in_channels", None)) or 3
    side = _int(getattr(config, "image_size", None)) or PATCHES * patch
    found: dict[str, Any] = {}
    for kind, given in LAYOUTS.items():
        if kind in asked:
            found |= given(net.config, config, (channels, patch, side))
    if net.config.model_type in PIXELS:
        return found | PIXELS[net.config.model_type](patch, side)
    found.setdefault("pixel_values", noise(1, channels, side, side))
    return found


def _grid(config: Any, vision: Any, sizes: tuple[int, int, int]) -> dict[str, Any]:
    channels, patch, _ = sizes
    frames = _int(getattr(vision, "temporal_patch_size", None)) or _int(getattr(vision, "patch_temporal", None)) or 1
    return {"pixel_values": noise(PATCHES**2, channels * frames * patch**2), "image_grid_thw": torch.tensor([[1, PATCHES, PATCHES]])}


def _tiles(config: Any, vision: Any, sizes: tuple[int, int, int]) -> dict[str, Any]:
    channels, _, side = sizes
    found: dict[str, Any] = {"image_sizes": torch.tensor([[side, side]])}
    if getattr(config, "image_grid_pinpoints", None):
        config.image_grid_pinpoints = [[side, side]]
        found["pixel_values"] = noise(1, 2, channels, side, side)  # the whole, and one tile
    return found


LAYOUTS: Mapping[str, Callable[[Any, Any, tuple[int, int, int]], dict[str, Any]]] = {
    "image_grid_thw": _grid,
    "image_grid_hw": lambda config, vision, sizes: {
        "pixel_values": noise(PATCHES**2, sizes[0] * sizes[1] ** 2),
        "image_grid_hw": torch.tensor([[PATCHES, PATCHES]]),
    },
    "image_sizes": _tiles,
    "pixel_attention_mask": lambda config, vision, sizes: {"pixel_values": noise(1, 1, sizes[0], sizes[2], sizes[2])},
    "spatial_shapes": lambda config, vision, sizes: {
        "pixel_values": noise(1, PATCHES**2, sizes[0] * sizes[1] ** 2),
        "pixel_attention_mask": torch.ones(1, PATCHES**2, dtype=torch.long),
        "spatial_shapes": torch.tensor([[PATCHES, PATCHES]]),
    },
    "high_res_pixel_values": lambda config, vision, sizes: {
        "high_res_pixel_values": noise(1, 3, config.high_res_vision_config.image_size, config.high_res_vision_config.image_size)
    },
    "image_position_ids": lambda config, vision, sizes: {
        "pixel_values": noise(1, PATCHES**2, sizes[0] * sizes[1] ** 2),
        "image_position_ids": torch.cartesian_prod(torch.arange(PATCHES), torch.arange(PATCHES))[None],
    },
    "image_token_pooling": lambda config, vision, sizes: {
        "pixel_values": noise(1, PATCHES**2, sizes[0] * sizes[1] ** 2),
        "image_token_pooling": torch.arange(PATCHES**2).reshape(-1, 4),
        "image_grids": torch.tensor([[2, 2, 0, 0]]),
    },
    "qformer_input_ids": lambda config, vision, sizes: {"qformer_input_ids": torch.tensor([[3, 5, 4]])},
}
"""By a parameter of `get_image_features`: what is given where it is asked for; later rows go over earlier ones."""


def _targets(patch: int, side: int) -> dict[str, Any]:
    sizes = torch.tensor([[PATCHES, PATCHES]], dtype=torch.int32)
    return {"pixel_values": noise(1, 3, patch, PATCHES**2 * patch), "target_sizes": sizes}


PIXELS: Mapping[str, Callable[[int, int], dict[str, Any]]] = {
    "fuyu": lambda patch, side: {"pixel_values": noise(1, PATCHES**2, 3 * patch**2)},
    "gemma4_unified": lambda patch, side: {"pixel_values": noise(1, PATCHES**2, 3 * (3 * patch) ** 2)},
    "granite_docling": lambda patch, side: {
        "pixel_values": noise(1, 1, 3, side, side),
        "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
    },
    "inkling2": lambda patch, side: {
        "pixel_values": noise(PATCHES, 2 * patch, 2 * patch, 3),
        "image_grid_thw": torch.tensor([[1, PATCHES // 2, PATCHES // 2]]),
    },
    "inkling_mm_model": lambda patch, side: {"pixel_values": noise(PATCHES, 2, patch, patch, 3)},
    "kimi_k25": lambda patch, side: {"pixel_values": noise(PATCHES**2, 3, patch, patch)},
    "minicpm_ocr": _targets,
    "minicpmv4_6": _targets,
    "minicpmv4_7": _targets,
    "paddleocr_vl": lambda patch, side: {"pixel_values": noise(PATCHES**2, 3, patch, patch)},
    "video_llama_3": lambda patch, side: {"image_merge_sizes": torch.tensor([2])},
}
"""By model type, from the sizes of a patch and of a picture: what no parameter's name tells."""


def _vision(config: Any) -> Any:
    for name in ("vision_config", "vq_config", "vlm_config", "encoder"):
        part = getattr(config, name, None)
        if part is not None and not isinstance(part, dict):
            return _vision(part)
    return config


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) else value[0] if isinstance(value, (list, tuple)) else None


def _side(net: PreTrainedModel) -> int:
    return int(_int(_vision(net.config).image_size) or 0)


def _picture(net: PreTrainedModel, *leading: int) -> Tensor:
    return noise(*(leading or (1,)), 3, _side(net), _side(net))


def _behind(token: int, count: int, words: Tensor) -> Tensor:
    """The words after as many tokens of a picture."""
    return torch.cat([torch.full((1, count), token), words], 1)


def _mllama(net: PreTrainedModel, words: Tensor) -> Any:
    tiles = net.config.vision_config.max_num_tiles
    mask = torch.zeros(1, 1, tiles, dtype=torch.long)
    mask[..., 0] = 1
    return net(
        input_ids=words,
        pixel_values=_picture(net, 1, 1, tiles),
        aspect_ratio_ids=torch.ones(1, 1, dtype=torch.long),
        aspect_ratio_mask=mask,
        cross_attention_mask=torch.ones(1, words.shape[1], 1, tiles, dtype=torch.long),
    )


def _pi0(net: PreTrainedModel, words: Tensor) -> Any:
    config = net.config
    return net(
        state=noise(1, config.max_state_dim),
        noise=noise(1, config.chunk_size, config.max_action_dim),
        timestep=torch.tensor([0.5]),
        input_ids=_behind(config.vlm_config.image_token_id, PATCHES**2, words),
        pixel_values=_picture(net, 1, 1),
        pixel_attention_mask=torch.ones(1, 1, dtype=torch.bool),
    )


def _kosmos(net: PreTrainedModel, words: Tensor) -> Any:
    place = torch.arange(QUERIES + words.shape[1])[None] < QUERIES
    return net(pixel_values=_picture(net), input_ids=_behind(5, QUERIES, words), image_embeds_position_mask=place)


def _kosmos_flat(net: PreTrainedModel, words: Tensor) -> Any:
    place = torch.arange(QUERIES + words.shape[1])[None] < QUERIES
    return net(flattened_patches=_flat(), input_ids=_behind(5, QUERIES, words), image_embeds_position_mask=place)


def _flat() -> Tensor:
    """Patches with their row and column before the pixels, as Pix2Struct and Kosmos 2.5 take them."""
    places = torch.cartesian_prod(torch.arange(PATCHES), torch.arange(PATCHES))[None]
    return torch.cat([places + 1.0, noise(1, PATCHES**2, 3 * 16 * 16)], -1)


RUNS: Mapping[str, Run] = {
    "blip": lambda net, words: net(pixel_values=_picture(net), input_ids=words),
    "blip-2": lambda net, words: net(pixel_values=_picture(net), input_ids=_behind(net.config.image_token_index, QUERIES, words)),
    "git": lambda net, words: net(pixel_values=_picture(net), input_ids=words),
    "idefics": lambda net, words: net(
        input_ids=words, pixel_values=_picture(net, 1, 1), image_attention_mask=torch.ones(1, words.shape[1], 1)
    ),
    "instructblip": lambda net, words: net(
        pixel_values=_picture(net), qformer_input_ids=words, input_ids=_behind(net.config.image_token_index, QUERIES, words)
    ),
    "instructblipvideo": lambda net, words: net(
        pixel_values=_picture(net, 1, 2), qformer_input_ids=words, input_ids=_behind(net.config.video_token_index, 2 * QUERIES, words)
    ),
    "kosmos-2": _kosmos,
    "kosmos-2.5": _kosmos_flat,
    "mllama": _mllama,
    "musicgen": lambda net, words: net(input_ids=words.repeat(net.config.num_codebooks, 1), encoder_hidden_states=noise(1, 5, 64)),
    "musicgen_melody": lambda net, words: net(input_ids=words.repeat(net.config.num_codebooks, 1), encoder_hidden_states=noise(1, 5, 64)),
    "pi0": _pi0,
    "pix2struct": lambda net, words: net(flattened_patches=_flat(), decoder_input_ids=words),
    "pp_formulanet": lambda net, words: net(pixel_values=_picture(net), decoder_input_ids=words),
    "udop": lambda net, words: net(
        input_ids=words, bbox=noise(1, words.shape[1], 4).sigmoid(), pixel_values=_picture(net), decoder_input_ids=words
    ),
    "whisper": lambda net, words: net(input_ids=words, encoder_outputs=(noise(1, 5, 64),)),
    "vision-encoder-decoder": lambda net, words: net(pixel_values=_picture(net), decoder_input_ids=words),
}
"""How a type is run that does not run on words alone, or not all of it."""
