"""In which dtype a model trains: that of its files, or fp32 where the device or the dtype itself is no good for it.

Widening is exact, and the update is one of the original all the same: new values are rounded once, to the original's dtype
(`delta.onto`). Nothing is ever narrowed to train it: that would round what is frozen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from selectune.components import map_model
from selectune.hashing import manifest

if TYPE_CHECKING:
    import torch

    from selectune.models import Model

Wanted = Literal["auto", "stored", "float32"]
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instruction sets, as torch names them, with which a CPU multiplies bf16; without one it converts each number first."""


def choose_dtype(stored: torch.dtype, device: torch.device, wanted: Wanted = "auto") -> tuple[torch.dtype, str]:
    """The dtype to train in, and why."""
    import torch

    name = str(stored).removeprefix("torch.")
    if wanted == "stored":
        return stored, f"{name}, as stored: the recipe says so"
    if wanted == "float32":
        return torch.float32, "float32: the recipe says so"
    if stored == torch.float16:
        return torch.float32, "float32: gradients in float16 underflow without scaled losses"
    if stored != torch.bfloat16:
        return stored, f"{name}, as stored"
    if device.type == "cpu":
        able = [one for one in _BF16 if torch.cpu.get_capabilities().get(one)]
        return (stored, f"bfloat16: the CPU has {able[0]}") if able else (torch.float32, "float32: the CPU has no bfloat16 arithmetic")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32, f"float32: {torch.cuda.get_device_name(device)} has no bfloat16 arithmetic"
    return stored, "bfloat16, as stored"


def widen(model: Model, dtype: torch.dtype) -> Model:
    """The model with its numbers in `dtype`, in place; the result has an id of its own. Exact where `dtype` holds every stored number.

    A model without weights, as a plan has it, has no id before or after.
    """
    model.net.to(dtype=dtype)  # type: ignore[call-arg, unused-ignore]  # transformers narrows torch's signature
    tensors = manifest(model.net) if len(model.manifest) else model.manifest
    return replace(model, map=map_model(model.net, model.name), manifest=tensors)
