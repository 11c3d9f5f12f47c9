"""Tensors as bits: integer views that share memory, so that every dtype is compared and changed exactly."""

from __future__ import annotations

import hashlib
from typing import cast

import numpy as np
import torch

from selectune.components.slices import Region, views
from selectune.delta.encoding import Bytes
from selectune.delta.format import Part
from selectune.hashing import tensor_bytes
from selectune.network import is_sharded, local, same_sharding, whole

__all__ = ["bit_view", "flip", "look", "outside_digest", "put", "read", "write"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the same width, without a graph. Writing to it writes to the tensor."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


def read(tensor: torch.Tensor, region: Region | None) -> Bytes:
    """A copy of the raw bytes of a region on the CPU: box after box in the order of its ranges, each row by row."""
    return np.concatenate(_boxes(tensor, region))


def look(tensor: torch.Tensor, region: Region | None) -> Bytes:
    """The bytes that `read` copies, not copied where they lie on the CPU one behind the other: for who is done before they change."""
    boxes = _boxes(tensor, region)
    return boxes[0] if len(boxes) == 1 else np.concatenate(boxes)


def _boxes(tensor: torch.Tensor, region: Region | None) -> list[Bytes]:
    return [np.frombuffer(tensor_bytes(view), dtype=np.uint8) for view in views(bit_view(whole(tensor)), region)]


def flip(tensor: torch.Tensor, region: Region | None, bits: Bytes) -> None:
    """Flips the bits of a region that are set in `bits` (in the order of `read`), in place; twice is the identity."""
    _each(tensor, region, bits, flipping=True)


def write(tensor: torch.Tensor, region: Region | None, bits: Bytes) -> None:
    """Sets a region to raw bytes (in the order of `read`), in place."""
    _each(tensor, region, bits, flipping=False)


def put(tensor: torch.Tensor, part: Part, itemsize: int, *, checked: bool = True) -> Bytes | None:
    """Moves a part's region from parent to child, in place: an xor flips bits, new bits are written. Gives what those were put in place of.

    Raises DeltaError for a damaged part before anything is written; not `checked`, whoever asks hashes what became of the tensor.
    """
    raw = part.raw(itemsize, checked=checked)
    if not part.replaces:
        flip(tensor, part.slice, raw)
        return None
    old = read(tensor, part.slice)
    write(tensor, part.slice, raw)
    return old


def _each(tensor: torch.Tensor, region: Region | None, bits: Bytes, *, flipping: bool) -> None:
    held = whole(tensor)
    live = bit_view(held)
    source = torch.from_numpy(bits).view(live.dtype)
    at = 0
    for view in views(live, region):
        new = source[at : at + view.numel()].reshape(view.shape).to(view.device)
        if flipping:
            view.bitwise_xor_(new)
        else:
            view.copy_(new)
        at += view.numel()
    if is_sharded(tensor):
        local(tensor).copy_(same_sharding(held, tensor))


def outside_digest(tensor: torch.Tensor, regions: tuple[Region, ...]) -> str:
    """sha256 of a tensor's raw bytes with the regions zeroed: equal before and after means that nothing outside them moved."""
    rest = bit_view(whole(tensor)).clone()
    for region in regions:
        for view in views(rest, region):
            view.zero_()
    return hashlib.sha256(tensor_bytes(rest)).hexdigest()


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors name."""
    from selectune.hashing import DTYPES

    return cast(torch.dtype, getattr(torch, DTYPES[name][0]))
