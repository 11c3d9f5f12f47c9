"""Masters as a checkpoint holds them: what changed in the weights, and beside it what rounding took from the masters.

A weight that trains differs from where it began in its low bits alone, so the xor of both packs to a fraction of either. The rest of an
fp32 master, which its rounded weight does not tell, is as good as random and stays as large as it is: it belongs to the optimizer's part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from selectune.delta.bits import bit_view
from selectune.delta.encoding import PLANES, RAW, pack, unpack
from selectune.hashing import tensor_bytes

DELTA = "delta/"
"""How the names of what changed in the weights begin."""
REST = "rest/"
"""How the names of what the masters have beyond their weights begin; a model in fp32 has none of it."""
MASTER = "master/"
_HALF = 1 << 15
"""Half a step of bf16, in the last places of fp32: with it added, a distance from the rounded value is not negative."""


def packed(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, with each master whose weights at the `start` are known as `delta/` and `rest/`, flat uint8, in its place."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        key = name.removeprefix(MASTER)
        if name.startswith(MASTER) and key in start:
            found |= dict(_pack(key, tensor, start[key]))
        else:
            found[name] = tensor
    return found


def unpacked(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `packed` was given, bit for bit. Raises DeltaError for parts of another size than the start's."""
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith((DELTA, REST))}
    for key, value in start.items():
        if f"{DELTA}{key}" in tensors:
            weight = bit_view(value) ^ _bits(tensors[f"{DELTA}{key}"], bit_view(value))
            master = weight.view(value.dtype).float()
            rest = tensors.get(f"{REST}{key}")
            if rest is not None:
                master = (bit_view(master) + _bits(rest, bit_view(master)) - _HALF).view(torch.float32)
            found[f"{MASTER}{key}"] = master
    return found


def _pack(key: str, master: Tensor, start: Tensor) -> Iterator[tuple[str, Tensor]]:
    weight = master.to(start.dtype)
    yield f"{DELTA}{key}", _bytes(bit_view(weight) ^ bit_view(start))
    if start.dtype != master.dtype:
        # Whole numbers, not bits: rounding up carries into the high half, and the distance has none. Modulo 2 ** 32, so any value is kept.
        yield f"{REST}{key}", _bytes(bit_view(master) - bit_view(weight.to(master.dtype)) + _HALF)


def _bytes(bits: Tensor) -> Tensor:
    import numpy as np

    _, data = pack(np.frombuffer(tensor_bytes(bits), dtype=np.uint8), bits.element_size())
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bits(data: Tensor, like: Tensor) -> Tensor:
    """Packed bytes as integers of `like`'s dtype and shape; only what does not pack is as large as it was."""
    size = like.numel() * like.element_size()
    found = unpack(tensor_bytes(data), RAW if data.numel() == size else PLANES, size, like.element_size())
    return torch.from_numpy(found).view(like.dtype).reshape(like.shape)
