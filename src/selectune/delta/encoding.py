"""How the bits of one part are packed: as they are, or as byte planes under zstandard, whichever is smaller.

A small update leaves the high bytes of most numbers alone. Split into planes (all first bytes, then all second bytes, …) the xor of old
and new is therefore mostly zeros, and packs to a few per cent; the difference `new - old` in the storage dtype would not even rebuild the
tensor. What is left is close to noise, in which a compressor finds no repetitions that are worth their place: zstandard's fastest level,
which codes bytes by how often they come, makes it smaller than the higher ones do, and smaller still where it looks for few repetitions
and long ones. Attention of the embedded model, bf16: 29.3 % at level 1, 31.3 % at level 3, 28.7 % at level 1 with the smallest table and
the longest match, which also packs half as many bytes again in a second (1.2 GB for 0.74). A
window of 128 KiB changes nothing there, and packs tensors of many megabytes a tenth faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from selectune.errors import DeltaError

__all__ = ["ENCODINGS", "PLANES", "RAW", "REPLACE", "REPLACE_PLANES", "pack", "replaces", "unpack"]

RAW = "xor"
PLANES = "xor-planes-zstd"
REPLACE = "replace"
REPLACE_PLANES = "replace-planes-zstd"
ENCODINGS = (RAW, PLANES, REPLACE, REPLACE_PLANES)
_LEVEL = 1
_TABLE = {"hash_log": 6, "min_match": 7, "window_log": 17}
"""As few repetitions as zstandard can be told to look for, and none farther back than 128 KiB, which stay in the processor's cache."""
_PIECE = 1 << 19
"""Raw bytes that are worked on at once; a multiple of every dtype's size."""

Bytes = npt.NDArray[np.uint8]


class Hasher(Protocol):
    """What hashes bytes, such as `hashlib.sha256()`."""

    def update(self, data: memoryview, /) -> None:
        """Takes the next bytes."""


def replaces(encoding: str) -> bool:
    """Whether a part holds the new bits themselves, and not what turns the old ones into them."""
    return encoding in (REPLACE, REPLACE_PLANES)


def pack(bits: Bytes, itemsize: int, *, old: Bytes | None = None, new: bool = False, hasher: Hasher | None = None) -> tuple[str, bytes]:
    """The encoding's name and the packed bytes of a flat array of raw bytes, `itemsize` of them (1, 2, 4 or 8) for each element.

    With `old` what is packed is their xor, of which no more than a piece is ever in memory. With `new` they are the new bits, else the xor
    of old and new. The hasher hears of all that is packed, unpacked and in order.
    """
    raw, split = (REPLACE, REPLACE_PLANES) if new else (RAW, PLANES)
    settings = zstandard.ZstdCompressionParameters.from_level(_LEVEL, source_size=bits.size, **_TABLE)
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj(size=bits.size)
    packed = []
    for plane in range(itemsize):
        for piece in _pieces(bits, old):
            if hasher is not None and plane == 0:
                hasher.update(piece.data)
            words = piece.view(f"<u{itemsize}")
            packed.append(frame.compress((words >> 8 * plane).astype(np.uint8).data))
    packed.append(frame.flush())
    if sum(map(len, packed)) < bits.size:
        return split, b"".join(packed)
    return raw, (bits if old is None else np.bitwise_xor(bits, old)).tobytes()


def _pieces(bits: Bytes, old: Bytes | None) -> Iterator[Bytes]:
    """The bytes, or their xor with the old ones, piece by piece: each stays in the processor's cache while it is worked on."""
    for start in range(0, bits.size, _PIECE):
        piece = bits[start : start + _PIECE]
        yield piece if old is None else np.bitwise_xor(piece, old[start : start + _PIECE])


def unpack(data: memoryview, encoding: str, size: int, itemsize: int) -> Bytes:
    """The raw bytes again, writable, exactly `size` of them. Never makes room for more than `size`, whatever the data claim.

    Raises DeltaError for data of another size, and for anything that is not one whole zstandard frame.
    """
    if encoding in (RAW, REPLACE):
        if len(data) != size:
            raise DeltaError(f"a part has {len(data)} bytes where its shape needs {size}")
        return np.frombuffer(data, dtype=np.uint8).copy()
    try:
        # The claimed size is read first: zstandard would otherwise reserve whatever the frame asks for.
        claimed = zstandard.get_frame_parameters(data).content_size
        if claimed != size:
            raise DeltaError(f"a part unpacks to {claimed} bytes where its shape needs {size}")
        planes = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DeltaError(f"a part does not unpack ({error})") from error
    if itemsize == 1:
        return np.frombuffer(bytearray(planes), dtype=np.uint8)
    words = np.empty(size // itemsize, dtype=f"<u{itemsize}")
    split = np.frombuffer(planes, dtype=np.uint8).reshape(itemsize, -1)
    step = _PIECE // itemsize
    for start in range(0, words.size, step):
        piece, (*lower, top) = words[start : start + step], split[:, start : start + step]
        piece[:] = top
        for plane in reversed(lower):
            piece <<= 8
            piece |= plane
    return words.view(np.uint8)
