"""The selections that have a name, as patterns. A part of a preset may match nothing; the whole of it may not."""

from __future__ import annotations

from collections.abc import Mapping

_QKV = "language.*attn.{q,k,v,q_a,q_b,kv,kv_a,kv_b}"
_ATTENTION = "language.*attn.{q,k,v,o,q_a,q_b,kv,kv_a,kv_b,o_a,o_b}"
_MLP = ("language.*mlp.{ROLES}", "language.*moe.experts.*.{ROLES}", "language.*moe.*.experts.*.{ROLES}", "language.*moe.shared.{ROLES}")


def _mlp(roles: str, layers: str = "language.*") -> tuple[str, ...]:
    return tuple(pattern.replace("language.*", layers, 1).replace("ROLES", roles) for pattern in _MLP)


PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": (_ATTENTION,),
    "attention-qkv": (_QKV,),
    "gate-and-up": _mlp("gate,up"),
    "upper-gate-and-up": _mlp("gate,up", "language.layers[50%:]."),
    "mlp": _mlp("gate,up,down"),
    "down": _mlp("down"),
    "attention+gate-and-up": (_ATTENTION, *_mlp("gate,up")),
    "projector": ("projector.*",),
    "vision": ("vision.*", "vision_*.*"),
    "language": ("language.*", "head", "head.*"),
    "language-layers": ("language.layers.*", "language.encoder.layers.*"),
    "full": ("*",),
}
"""Name: patterns. `upper-…` is the upper half of the layers, an odd middle one included; `down` alone is the counter-example."""
