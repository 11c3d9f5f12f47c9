"""Every architecture small enough to run: the default config with its sizes cut, random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from selectune.components.architecture import default_config
from selectune.components.standins import stand_ins

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN, HEADS, HEAD, INNER, LAYERS, WORDS = 64, 4, 16, 96, 2, 300

SIZES: dict[str, int] = {
    name: size
    for size, names in {
        HIDDEN: "hidden_size d_model n_embd embed_dim dim model_dim word_embed_proj_dim attention_hidden_size",
        HEADS: "num_attention_heads n_head num_heads n_heads attention_heads encoder_attention_heads decoder_attention_heads"
        " num_encoder_heads swa_num_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts",
        HEAD: "head_dim d_kv attention_head_dim swa_head_dim global_head_dim v_head_dim swa_v_head_dim",
        INNER: "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim mlp_dim moe_intermediate_size"
        " shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp",
        LAYERS: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth",
        WORDS: "vocab_size vocab_size_per_layer_input entity_vocab_size",
        1: "num_experts_per_tok moe_topk moe_k top_k_experts n_group topk_group n_shared_experts",
        0: "num_nextn_predict_layers first_k_dense_replace num_kv_shared_layers",
        32: "kv_lora_rank q_lora_rank o_lora_rank",
        8: "qk_nope_head_dim qk_rope_head_dim rotary_dim",
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
}
LISTS = ("layer_types", "mlp_layer_types", "attn_types", "layers_block_type", "attention_layers", "block_types", "no_rope_layers")


def small(model_type: str, device: str = "cpu") -> PreTrainedModel:
    """The type's model in fp32, in evaluation mode, from seed 0. Raises what its parts raise where the sizes do not fit."""
    built, config = default_config(model_type)
    for part in parts(config):
        cut(part)
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
    had = {name: vars(config).get(name) for name in (*SIZES, "num_key_value_heads", "num_kv_heads")}
    heads = next((had[name] for name in ("num_attention_heads", "n_head", "num_heads", "n_heads") if isinstance(had.get(name), int)), None)
    for name, size in SIZES.items():
        if isinstance(had[name], int) and not isinstance(had[name], bool) and had[name] > size:
            with suppress(AttributeError):  # a property that follows from the others
                setattr(config, name, size)
    for name in ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"):
        if isinstance(had.get(name), int):
            setattr(config, name, HEADS if had[name] == heads else 1 if had[name] == 1 else 2)
    if isinstance(had.get("qk_rope_head_dim"), int) and isinstance(had.get("head_dim"), int):
        config.head_dim = min(had["qk_rope_head_dim"], SIZES["qk_rope_head_dim"])
    for name in LISTS:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and len(value) > LAYERS:
            kinds = list(dict.fromkeys(value))[:LAYERS]
            setattr(config, name, type(value)([*kinds, *value[: LAYERS - len(kinds)]]))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value >= WORDS:
            setattr(config, name, 1)
