"""How many weights each family of components should have, worked out from the config alone, as a check on the map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Keys that make layers of one tower differ from each other, so that no single figure holds for all of them.
_UNEVEN = (
    "first_k_dense_replace",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "q_lora_rank",
    "kv_lora_rank",
    "attn_layer_period",
    "num_kv_shared_layers",
    "linear_num_value_heads",
    "mamba_d_state",
    "block_types",
    "hybrid_override_pattern",
)


def expected_weights(net: nn.Module) -> Mapping[str, int]:
    """By family, the elements of one component's weight matrix: `language.layers.*.attn.q` is hidden size x heads x head size.

    For evenly built decoders and the usual vision transformers; empty where the config does not determine the counts (experts, hybrid
    layers, low-rank attention). Biases are left out, because configs seldom say whether there are any.
    """
    from transformers import PreTrainedModel

    if not isinstance(net, PreTrainedModel):
        return {}
    text = net.config.get_text_config()
    counts: dict[str, int] = {}
    if not any(getattr(text, key, None) for key in _UNEVEN):
        counts |= _layers("language", text, gated=True)
    embeddings = _size(text, "vocab_size"), _size(text, "hidden_size")
    if embeddings[0] and embeddings[1]:
        counts |= {"language.embed": embeddings[0] * embeddings[1], "head": embeddings[0] * embeddings[1]}
    vision = getattr(net.config, "vision_config", None)
    if vision is not None:
        counts |= _layers("vision", vision, gated=False)
    return counts


def _layers(tower: str, config: Any, *, gated: bool) -> dict[str, int]:
    hidden, heads, inner = (
        _size(config, "hidden_size"),
        _size(config, "num_attention_heads", "num_heads"),
        _size(config, "intermediate_size"),
    )
    if not hidden or not heads or not inner or hidden % heads:
        return {}
    head = _size(config, "head_dim") or hidden // heads
    keys = _size(config, "num_key_value_heads") or heads
    counts = {
        "attn.q": hidden * heads * head,
        "attn.k": hidden * keys * head,
        "attn.v": hidden * keys * head,
        "attn.o": hidden * heads * head,
    }
    counts |= {"mlp.up": hidden * inner, "mlp.down": hidden * inner} | ({"mlp.gate": hidden * inner} if gated else {})
    return {f"{tower}.layers.*.{role}": count for role, count in counts.items()}


def _size(config: Any, *keys: str) -> int | None:
    return next((value for key in keys if isinstance(value := getattr(config, key, None), int) and value > 0), None)
