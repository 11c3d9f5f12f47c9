"""Every architecture small enough to run: the default config with its sizes cut, random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from selectune.components.architecture import default_config
from selectune.components.standins import stand_ins

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN, HEADS, HEAD, INNER, LAYERS, WORDS, PATCHES = 64, 4, 16, 96, 2, 300, 4
"""`PATCHES` are those of an image's side."""

SIZES: dict[str, int] = {
    name: size
    for size, names in {
        HIDDEN: "hidden_size d_model n_embd embed_dim dim model_dim word_embed_proj_dim attention_hidden_size out_hidden_size output_dim"
        " text_hidden_size encoder_hidden_size projection_dim image_text_hidden_size projector_hidden_size projection_hidden_size"
        " projection_hidden_dim decoder_hidden_size vision_hidden_size projection_intermediate_size"
        " alignment_intermediate_size output_channels output_proj_dims moe_hidden_size embedding_dim mm_embed_dim projector_input_dim"
        " projector_output_dim",
        HEADS: "num_attention_heads n_head num_heads n_heads attention_heads encoder_attention_heads decoder_attention_heads"
        " num_encoder_heads swa_num_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts resampler_n_heads",
        HEAD: "head_dim d_kv attention_head_dim swa_head_dim global_head_dim v_head_dim swa_v_head_dim resampler_head_dim linear_head_dim",
        INNER: "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim mlp_dim moe_intermediate_size"
        " shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp dense_intermediate_size share_expert_dim",
        LAYERS: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth layers num_global_layers"
        " resampler_depth num_decoder_layers num_res_blocks",
        WORDS: "vocab_size vocab_size_per_layer_input entity_vocab_size unpadded_vocab_size mel_vocab_size",
        3: "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts",
        1: "num_expert_group n_group topk_group num_shared_experts n_shared_experts moe_num_shared_experts",
        0: "num_nextn_predict_layers first_k_dense_replace num_kv_shared_layers insert_layer_id",
        32: "kv_lora_rank q_lora_rank o_lora_rank latent_channels base_channels num_embeddings codebook_size linear_num_heads",
        8: "qk_nope_head_dim qk_rope_head_dim rotary_dim num_query_tokens latent_query_num resampler_n_latents num_image_tokens",
    }.items()
    for name in names.split()
} | {
    "qk_head_dim": 16,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 64,
    "hidden_size_per_layer_input": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "max_window_layers": 2,
    "max_num_patches": 64,
    "seq_len": 64,
    "position_embedding_size": 64,
    "interleave_moe_layer_step": 1,
}
SHARED = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads")
LISTS = ("layer_types", "mlp_layer_types", "attn_types", "layers_block_type", "attention_layers", "block_types", "no_rope_layers")
INDICES = (
    "fullatt_block_indexes",
    "global_attn_indexes",
    "deepstack_visual_indexes",
    "intermediate_layers_indices",
    "cross_attention_layers",
)

_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16}
_TURNS = "text_config.rope_parameters.mrope_section"
_NEMOTRON = {
    "layers_block_type": ["linear_attention", "moe", "full_attention"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "n_groups": 2,
    "moe_shared_expert_intermediate_size": 96,
}
_BOTH = ["linear_attention", "full_attention"]
FITTED: Mapping[str, Mapping[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 8}},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 299},
    "blt": {
        "encoder_hash_byte_group_vocab": 300,
        "num_hidden_layers": 2,
        "global_config.hidden_size": 128,
        "global_config.head_dim": 32,
        "decoder_config.hidden_size_global": 128,
    },
    "chameleon": {"vocabulary_map": {"<image>": 298} | {f"IMGIMG{chr(65 + n // 10)}{chr(65 + n % 10)}Z": 200 + n for n in range(32)}},
    "dbrx": {"attn_config.clip_qkv": 1000.0},
    "deepseek_ocr2": {"text_config.num_experts_per_tok": 2, "vision_config.sam_config.downsample_channels": [64, 64]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "deepseek_v4": {"mlp_layer_types": ["moe", "hash_moe"]},
    "dots3_note": {
        "vision_config.adapter_in_dim": 64,
        "vision_config.adapter_out_dim": 64,
        "vision_config.mlp_layer_types": ["dense", "dense"],
        "audio_config.adapter_input_size": 64,
        "audio_config.adapter_out_dim": 64,
        "audio_config.downsample_hidden_size": 32,
        "audio_config.conv_output_size": 512,
    },
    "emu3": {
        "vq_config.hidden_size": 128,
        "vocabulary_map": {"<image>": 298, "<|extra_200|>": 297} | {f"<|visual token {n:06d}|>": 200 + n for n in range(32)},
    },
    "ernie4_5_vl_moe": {"text_config.moe_intermediate_size": [96, 48], _TURNS: [3, 3, 2]},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 128, "mamba_chunk_size": 16},
    "florence2": {
        "vision_config.depths": [1, 1],
        "vision_config.patch_size": [7, 3],
        "vision_config.patch_stride": [4, 2],
        "vision_config.patch_padding": [3, 1],
        "vision_config.patch_prenorm": [False, True],
        "vision_config.embed_dim": [32, 64],
        "vision_config.num_heads": [2, 4],
        "vision_config.num_groups": [2, 4],
        "vision_config.window_size": 4,
    },
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n": {"text_config.intermediate_size": [96, 96]},
    "gemma3n_text": {"intermediate_size": [96, 96]},
    "glm46v": {_TURNS: [2, 3, 3]},
    "glm4v": {_TURNS: [2, 3, 3]},
    "glm4v_moe": {_TURNS: [2, 1, 1]},
    "glm_ocr": {_TURNS: [2, 3, 3]},
    "glmga": {_TURNS: [2, 3, 3]},
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[-2, 0], [-1, 1]]},
    "granitemoehybrid": _MAMBA | {"layer_types": _BOTH},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "hunyuan_v1_moe": {"num_experts": 4},
    "hunyuan_vl": {_TURNS: [2, 2, 2, 2]},
    "idefics": {"cross_layer_interval": 2},
    "instructblip": {"image_token_index": 299},
    "instructblipvideo": {"video_token_index": 299},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "llama4": {"vision_config.intermediate_size": 256},
    "longcat_flash": {"expert_ffn_hidden_size": 96, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8},
    "minimax_m3_vl": {"merged_hidden_size": 256},
    "mistral4": {"head_dim": 16},
    "mllama": {"vision_config.vision_output_dim": 128},
    "molmo2": {"vision_config.num_position_embeddings": 16, "adapter_config.vision_feature_layer": [-1, -2]},
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256},
    "nemotron_h": _NEMOTRON,
    "nemotron_h_omni": {f"text_config.{key}": value for key, value in _NEMOTRON.items()},
    "paddleocr_vl": {_TURNS: [2, 3, 3]},
    "pp_formulanet": {
        "vision_config.post_conv_out_channels": 64,
        "vision_config.post_conv_in_channels": 64,
        "vision_config.post_conv_mid_channels": 64,
        "vision_config.image_size": 128,
    },
    "qwen2_5_omni_thinker": {_TURNS: [2, 3, 3]},
    "qwen2_5_vl": {_TURNS: [2, 3, 3]},
    "qwen2_vl": {_TURNS: [2, 3, 3]},
    "reformer": {"axial_pos_embds_dim": (16, 48), "axial_pos_shape": (8, 16), "attn_layers": ["local", "lsh"], "hash_seed": 0},
    "roc_bert": {"shape_vocab_size": 300, "pronunciation_vocab_size": 300},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "step3p7": {"text_config.sliding_window": 64},
    "t5gemma2": {"encoder.mm_tokens_per_image": 4},
    "unlimited_ocr": {"vision_config.sam_config.downsample_channels": [64, 64]},
    "vipllava": {"vision_feature_layer": [-2, -1]},
    "xlm": {"emb_dim": 64},
    "xlstm": {"qk_dim_factor": 1.0, "num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {"hybrid_layer_ids": [1], "mamba_headdim": 16, "attention_head_dim": 32, "attention_hidden_size": 128},
}
"""What cutting each part alone would leave not fitting together: values by their path in a type's config."""

ADDED: Mapping[str, tuple[str, ...]] = {"gemma4": ("vision_config",), "gemma4_unified": ("vision_config",)}
"""Towers that a type has and its default config has not."""


def small(model_type: str, device: str = "cpu") -> PreTrainedModel:
    """The type's model in fp32, in evaluation mode, from seed 0. Raises what its parts raise where the sizes do not fit."""
    built, config = default_config(model_type)
    for name in ADDED.get(model_type, ()):
        setattr(config, name, type(config).sub_configs[name]())
    tokens: dict[int, int] = {}
    for part in parts(config):
        cut(part)
        renumber(part, tokens)
    for path, value in FITTED.get(model_type, {}).items():
        *parents, key = path.split(".")
        part = config
        for parent in parents:
            part = getattr(part, parent)
        if isinstance(part, dict):
            part[key] = value
        else:
            setattr(part, key, value)
    torch.manual_seed(0)
    with stand_ins(), torch.device(device):
        net: PreTrainedModel = built._from_config(config, attn_implementation="eager", dtype=torch.float32)
    return net.eval()


def parts(config: Any) -> Iterator[Any]:
    """The config and every config in it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from parts(value)


def cut(config: Any) -> None:
    """Cuts the sizes of one config, in place."""
    had = {name: vars(config).get(name) for name in (*SIZES, *SHARED)}
    heads = next((had[name] for name in ("num_attention_heads", "n_head", "num_heads", "n_heads") if isinstance(had.get(name), int)), None)
    for name, size in SIZES.items():
        if isinstance(had[name], int) and not isinstance(had[name], bool) and had[name] > size:
            with suppress(AttributeError):  # a property that follows from the others
                setattr(config, name, size)
    for name in SHARED:
        if isinstance(had.get(name), int):
            setattr(config, name, HEADS if had[name] == heads else 1 if had[name] == 1 else 2)
    if isinstance(had.get("qk_rope_head_dim"), int) and isinstance(had.get("head_dim"), int):
        config.head_dim = min(had["qk_rope_head_dim"], SIZES["qk_rope_head_dim"])
    for name in LISTS:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and len(value) > LAYERS:
            kinds = list(dict.fromkeys(value))[:LAYERS]
            setattr(config, name, type(value)([*kinds, *value[: LAYERS - len(kinds)]]))
    for name in INDICES:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and value:
            setattr(config, name, type(value)(sorted({min(index, LAYERS - 1) for index in value})))
    _cut_image(config)
    _cut_rotation(config)


def _cut_rotation(config: Any) -> None:
    """Rotation by time, height and width: how many of a head's pairs turn with each, in the old proportions."""
    rope = getattr(config, "rope_parameters", None) or {}
    sections = rope.get("mrope_section")
    if not sections:
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = int(size * rope.get("partial_rotary_factor", 1.0)) // 2
    rest = [max(1, part * pairs // sum(sections)) for part in sections[1:]]
    rope["mrope_section"] = [pairs - sum(rest), *rest]


def _cut_image(config: Any) -> None:
    patch, image = vars(config).get("patch_size"), vars(config).get("image_size")
    if isinstance(patch, int) and isinstance(image, int) and image > PATCHES * patch:
        config.image_size = PATCHES * patch


def renumber(config: Any, tokens: dict[int, int]) -> None:
    """Gives tokens beyond the cut vocabulary numbers inside it, the same for the same token everywhere."""

    def inside(token: Any) -> Any:
        if isinstance(token, (list, tuple)):
            return type(token)(inside(one) for one in token)
        if not isinstance(token, int) or isinstance(token, bool) or token < WORDS - 50:
            return token
        return tokens.setdefault(token, WORDS - 1 - len(tokens))

    for name, value in list(vars(config).items()):
        if "token" in name and name.split("_")[-1] in {"id", "ids", "index"}:
            setattr(config, name, inside(value))
