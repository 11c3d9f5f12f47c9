"""A part put on a tensor while it is unpacked does what putting it on at once does, and refuses what that refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from selectune.components.slices import Region, region_shape
from selectune.delta import Part
from selectune.delta.bits import put, read
from selectune.delta.encoding import ENCODINGS, PLANES, RAW
from selectune.delta.pouring import pour
from selectune.errors import DeltaError

DTYPES = (torch.float8_e4m3fn, torch.bool, torch.bfloat16, torch.float32, torch.float64)
REGIONS: tuple[Region | None, ...] = (
    None,
    ((0, 1, 4, 1),),
    ((0, 0, 5, 2), (1, 1, 3, 1)),
    ((1, 0, 1, 1), (1, 2, 4, 1), (2, 0, 6, 3)),
)


def bits(count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 2, count, dtype=np.uint8)


@given(
    dtype=st.sampled_from(DTYPES),
    region=st.sampled_from(REGIONS),
    new=st.booleans(),
    sparse=st.booleans(),
    piece=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_poured_parts_are_put_parts(dtype: torch.dtype, region: Region | None, new: bool, sparse: bool, piece: int, seed: int) -> None:
    tensor = torch.from_numpy(bits(5 * 4 * 6 * dtype.itemsize, seed)).view(dtype).reshape(5, 4, 6)
    shape = region_shape((5, 4, 6), region)
    size = int(np.prod(shape)) * dtype.itemsize
    moved = bits(size, seed + 1) * (np.arange(size) % (7 if sparse else 1) == 0).astype(np.uint8)
    part = Part.of("w", region, shape, moved, new=new)
    wanted, found = tensor.clone(), tensor.clone()
    put(wanted, part, dtype.itemsize)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selectune.delta.pouring._PIECE", piece)
        pour(found, part, dtype.itemsize)
    assert np.array_equal(read(found, None), read(wanted, None))


def test_every_encoding_was_met() -> None:
    loud, quiet = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8), np.zeros(4096, dtype=np.uint8)
    met = {Part.of("w", None, (2048,), one, new=new).encoding for one in (loud, quiet) for new in (False, True)}
    assert met == set(ENCODINGS)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_tensors_of_no_axis_or_no_element_are_poured_too(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=torch.int16)
    pour(tensor, Part.of("w", None, shape, np.ones(2 * tensor.numel(), dtype=np.uint8)), 2)
    assert bool((tensor == 257).all())


def packed(count: int) -> Part:
    return replace(Part.of("w", None, (count,), np.zeros(2 * count, dtype=np.uint8)), encoding=PLANES)


def frame(size: int) -> bytes:
    return zstandard.ZstdCompressor().compress(b"\x01" * size)


DAMAGED = {
    "raw and too short": (RAW, b"\x01" * 199, "ends too soon"),
    "raw and too long": (RAW, b"\x01" * 201, "unpacks to more than the 200 bytes"),
    "cut": (PLANES, frame(200)[:-2], "does not unpack"),
    "too short": (PLANES, frame(199), "ends too soon"),
    "too long": (PLANES, frame(201), "unpacks to more than the 200 bytes"),
    "two frames": (PLANES, frame(200) + frame(1), "unpacks to more than the 200 bytes"),
    "something behind it": (PLANES, frame(200) + b"behind", "does not unpack"),
    "no frame": (PLANES, b"nothing at all", "does not unpack"),
    "a bomb": (PLANES, frame(1 << 26), "unpacks to more than the 200 bytes"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_part_that_does_not_unpack_to_its_region_is_refused(kind: str) -> None:
    encoding, data, match = DAMAGED[kind]
    part = replace(packed(100), encoding=encoding, data=memoryview(data))
    with pytest.raises(DeltaError, match=match):
        pour(torch.zeros(100, dtype=torch.int16), part, 2)
