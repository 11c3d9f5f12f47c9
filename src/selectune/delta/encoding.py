"""How the changed bits of one tensor are packed: as they are, or as byte planes under zstandard, whichever is smaller.

A small update leaves the high bytes of most numbers alone. Split into planes (all first bytes, then all second bytes, …) the xor of old
and new is therefore mostly zeros, and packs to a few per cent; the difference `new - old` in the storage dtype would not even rebuild the
tensor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import zstandard

from selectune.errors import DeltaError

__all__ = ["PLANES", "RAW", "pack", "unpack"]

RAW = "xor"
PLANES = "xor-planes-zstd"
_LEVEL = 3

Bytes = npt.NDArray[np.uint8]


def pack(bits: Bytes, itemsize: int) -> tuple[str, bytes]:
    """The encoding's name and the packed bytes of a flat array of raw bytes, `itemsize` of them for each element."""
    planes = np.ascontiguousarray(bits.reshape(-1, itemsize).T)
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True).compress(planes.tobytes())
    return (PLANES, packed) if len(packed) < bits.size else (RAW, bits.tobytes())


def unpack(data: memoryview, encoding: str, size: int, itemsize: int) -> Bytes:
    """The raw bytes again, writable, exactly `size` of them. Never makes room for more than `size`, whatever the data claim.

    Raises DeltaError for data of another size, and for anything that is not one whole zstandard frame.
    """
    if encoding == RAW:
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
    return np.ascontiguousarray(np.frombuffer(planes, dtype=np.uint8).reshape(itemsize, -1).T).reshape(-1)
