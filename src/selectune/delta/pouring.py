"""A delta's part put on a tensor while it is unpacked: beside the tensor, a piece of the part is in memory at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from mmap import MADV_DONTNEED, mmap
from typing import Any

import numpy as np
import zstandard
from torch import Tensor, uint8

from selectune.components.slices import views
from selectune.delta.bits import bit_view
from selectune.delta.encoding import RAW, REPLACE, Bytes
from selectune.delta.format import Part
from selectune.errors import DeltaError

__all__ = ["pour"]

_PIECE = 1 << 20
"""Elements that are unpacked at a time."""


def pour(tensor: Tensor, part: Part, itemsize: int) -> None:
    """Moves a part's region from parent to child, in place, in a contiguous tensor on the CPU.

    What comes of it is not checked: whoever asks hashes the tensor. Raises DeltaError for a part that does not unpack to its region; the
    tensor is then worth nothing.
    """
    found = [one for view in views(tensor, part.slice) for one in _pieces(view)]
    packed = part.encoding not in (RAW, REPLACE)
    take, ended = _unpacked(part.data) if packed else _plain(part.data)
    try:
        # Packed, the first bytes of all elements come first, then all second ones.
        planes: list[int | slice] = [*range(itemsize)] if packed else [slice(None)]
        for plane in planes:
            for piece in found:
                _put(piece[..., plane], take, replaces=part.replaces)
        whole = ended()
    except (zstandard.ZstdError, EOFError) as error:
        raise _refused(part, f"a part does not unpack ({str(error) or 'it ends too soon'})") from error
    finally:
        _let_go(part.data)
    if not whole:
        raise _refused(part, f"a part unpacks to more than the {part.elements * itemsize} bytes that its shape needs")


def _pieces(view: Tensor) -> list[Bytes]:
    """The bytes of a view's elements as arrays of the view's shape and one axis more, in the elements' order, none much over a piece."""
    flat = view.reshape(1) if view.ndim == 0 else view
    rows = max(_PIECE // max(prod(flat.shape[1:]), 1), 1)
    return [bit_view(rows_).unsqueeze(-1).view(uint8).numpy() for rows_ in flat.split(rows)]


def _put(piece: Bytes, take: Callable[[int], Bytes], *, replaces: bool) -> None:
    new = take(piece.size).reshape(piece.shape)
    if replaces:
        piece[...] = new
    else:
        np.bitwise_xor(piece, new, out=piece)


Source = tuple[Callable[[int], Bytes], Callable[[], bool]]
"""What gives the next bytes, and whether there are no more."""


def _plain(data: memoryview) -> Source:
    at = 0

    def take(count: int) -> Bytes:
        nonlocal at
        found = np.frombuffer(data[at : at + count], dtype=np.uint8)
        if found.size != count:
            raise EOFError
        at += count
        return found

    return take, lambda: at == len(data)


def _unpacked(data: memoryview) -> Source:
    # With what follows a frame read as another one, nothing can hide behind the first.
    stream: Any = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)

    def take(count: int) -> Bytes:
        found = np.empty(count, dtype=np.uint8)
        at = 0
        while at < count:
            read = stream.readinto(found.data[at:])
            if not read:
                raise EOFError
            at += read
        return found

    return take, lambda: stream.read(1) == b""


def _let_go(data: memoryview) -> None:
    """Where the delta is a file that is mapped: gives its pages back, which are read again if they are asked for."""
    if sys.platform == "linux" and isinstance(data.obj, mmap):
        data.obj.madvise(MADV_DONTNEED)


def _refused(part: Part, what: str) -> DeltaError:
    return DeltaError(what, where=f"delta: {part.parameter[:200]!r}", then="Fetch the file again.")
