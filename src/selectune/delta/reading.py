"""A delta file that a stranger may have written, read strictly.

safetensors' own reader accepts a key twice and any tensor name; here the header is checked first and the library is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from mmap import mmap
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from selectune.components.slices import Range, Region, overlap, region_shape
from selectune.delta.encoding import ENCODINGS, replaces
from selectune.delta.format import FORMAT, KEY, REPLACING, Delta, Part, Touched
from selectune.errors import DeltaError, InputError
from selectune.hashing import DTYPES, canonical, parse_json

__all__ = ["read"]

_HEADER_LIMIT = 32 << 20
_ELEMENTS_LIMIT = 1 << 48
_PARTS_LIMIT = 8192
_PAIRS_LIMIT = 1 << 19
"""Pairs of ranges that are held against each other in one file, a second's work; 128 packed experts in 94 layers take 10,000."""

Hash = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
# Names as Python modules have them: they are shown to people and never become paths.
TensorName = Annotated[str, StringConstraints(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,511}\z")]
Size = Annotated[int, Field(strict=True, ge=0, le=1 << 48)]
Shape = Annotated[list[Size], Field(max_length=16)]
Pattern = Annotated[str, StringConstraints(max_length=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Tensor(_Strict):
    dtype: str
    shape: Shape
    old: Hash
    new: Hash


class _Part(_Strict):
    parameter: TensorName
    slice: Annotated[list[tuple[Size, Size, Size, Size]], Field(min_length=1, max_length=4096)] | None
    shape: Shape
    sha256: Hash


class _Body(_Strict):
    parent: Hash
    child: Hash
    patterns: list[Pattern]
    tensors: dict[TensorName, _Tensor]
    parts: list[_Part]
    meta: dict[str, Any]


class _Header(_Strict):
    format: Literal[1, 2]
    delta: _Body
    encodings: list[Literal["xor", "xor-planes-zstd", "replace", "replace-planes-zstd"]]


assert (FORMAT, REPLACING, ENCODINGS) == (1, 2, ("xor", "xor-planes-zstd", "replace", "replace-planes-zstd"))


def read(data: bytes | mmap, where: str) -> Delta:
    """The delta in a file's bytes. Raises DeltaError, naming `where`, for anything that `Delta.save` would not have written."""
    try:
        outer, payload = _outer(data)
        header = _header(outer)
        spans = _spans(outer, len(header.encodings), len(payload))
        return _build(header, [payload[start:stop] for start, stop in spans])
    except DeltaError as error:
        raise DeltaError(error.what, where=where, then="The file is damaged or was not written by selectune: fetch it again.") from error
    except InputError as error:
        raise DeltaError(error.what, where=where, then="The file is damaged or was not written by selectune: fetch it again.") from error


def _outer(data: bytes | mmap) -> tuple[dict[str, Any], memoryview]:
    """The safetensors header and the bytes behind it."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise DeltaError(f"no delta file: {len(data)} bytes, the header claims {size}")
    outer = parse_json(data[8 : 8 + size], limit=_HEADER_LIMIT)
    if not isinstance(outer, dict):
        raise DeltaError("no delta file: the header is no JSON object")
    return outer, memoryview(data)[8 + size :]


def _header(outer: dict[str, Any]) -> _Header:
    metadata = outer.pop("__metadata__", None)
    if not isinstance(metadata, dict) or list(metadata) != [KEY] or not isinstance(metadata[KEY], str):
        raise DeltaError(f"no delta file: its metadata must have exactly one key, {KEY!r}")
    text = metadata[KEY].encode("utf-8", "surrogatepass")
    value = parse_json(text, limit=_HEADER_LIMIT)
    if isinstance(value, dict) and value.get("format") not in (FORMAT, REPLACING):
        raise DeltaError(f"delta format {str(value.get('format'))[:20]!r}, this version reads {FORMAT} and {REPLACING}")
    try:
        header = _Header.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise DeltaError(
            f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg']} ({error.error_count()} faults in the header)"
        ) from error
    if any(map(replaces, header.encodings)) != (header.format == REPLACING):
        raise DeltaError(f"format {header.format} and its encodings do not belong together")
    if canonical(value) != text:
        raise DeltaError("its header is not canonical JSON")
    return header


def _spans(outer: dict[str, Any], count: int, size: int) -> list[tuple[int, int]]:
    """Where each part's bytes lie: one behind the other, in order, from the first to the last byte."""
    expected = [f"{number:06d}" for number in range(count)]
    if sorted(outer) != expected:
        raise DeltaError(f"{len(outer)} packed parts where the header lists {count}, or parts with names of their own")
    spans, at = [], 0
    for name in expected:
        match outer[name]:
            case {"dtype": "U8", "shape": [int(length)], "data_offsets": [int(start), int(stop)], **rest} if not rest:
                if start != at or stop != start + length or length < 0:
                    raise DeltaError(f"part {name} lies at {start}-{stop}, expected {at}-{at + length}")
            case _:
                raise DeltaError(f"part {name} is not a row of bytes: {str(outer[name])[:80]}")
        spans.append((start, stop))
        at = stop
    if at != size:
        raise DeltaError(f"{size} bytes of parts where the header lists {at}")
    return spans


def _build(header: _Header, payloads: list[memoryview]) -> Delta:
    body = header.delta
    tensors = {name: Touched(dtype=one.dtype, shape=tuple(one.shape), old=one.old, new=one.new) for name, one in body.tensors.items()}
    for name, touched in tensors.items():
        if touched.dtype not in DTYPES:
            raise DeltaError(f"{name}: unknown dtype {touched.dtype[:20]!r}")
        if prod(touched.shape) > _ELEMENTS_LIMIT:
            raise DeltaError(f"{name}: shape {list(touched.shape)} is larger than any tensor")
    if len(body.parts) != len(header.encodings) or {part.parameter for part in body.parts} != set(tensors):
        raise DeltaError("the lists of tensors, parts and encodings do not belong together")
    pairs = _Pairs()
    parts = []
    for one, encoding, data in zip(body.parts, header.encodings, payloads, strict=True):
        region = None if one.slice is None else tuple(one.slice)
        shape = _region_shape(one.parameter, tensors[one.parameter].shape, region, pairs)
        if shape != tuple(one.shape):
            raise DeltaError(f"{one.parameter}: the part's shape {one.shape} is not its slice's, {list(shape)}")
        if replaces(encoding) and (region is not None or one.sha256 != tensors[one.parameter].new):
            raise DeltaError(f"{one.parameter}: new bits are not those of the whole tensor")
        parts.append(Part(parameter=one.parameter, slice=region, shape=shape, sha256=one.sha256, encoding=encoding, data=data))
    _disjoint(parts, tensors, pairs)
    return Delta(parent=body.parent, child=body.child, patterns=tuple(body.patterns), tensors=tensors, parts=tuple(parts), meta=body.meta)


class _Pairs:
    """Spans that meet, found by sweeping over them; how many pairs there may be in one file is bounded."""

    def __init__(self) -> None:
        self._left = _PAIRS_LIMIT

    def meeting(self, spans: Sequence[tuple[int, int]], cost: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The numbers of each two spans ``[start, stop)`` that share something. Raises DeltaError where there are too many of them."""
        open_: list[int] = []
        for number in sorted(range(len(spans)), key=spans.__getitem__):
            open_ = [one for one in open_ if spans[one][1] > spans[number][0]]
            for one in open_:
                self._left -= cost[one] * cost[number]
                if self._left < 0:
                    raise DeltaError("its slices are more entangled than those of any model")
                yield one, number
            open_.append(number)


def _region_shape(name: str, shape: tuple[int, ...], region: Region | None, pairs: _Pairs) -> tuple[int, ...]:
    axes: dict[int, list[Range]] = {}
    for one in region or ():
        axis, start, stop, step = one
        if not (axis < len(shape) and start < stop <= shape[axis] and step >= 1):
            raise DeltaError(f"{name}: slice {[axis, start, stop, step]} does not lie in the shape {list(shape)}")
        axes.setdefault(axis, []).append(one)
    for ranges in axes.values():
        spans = [(start, stop) for _, start, stop, _ in ranges]
        if any(overlap((ranges[one],), (ranges[other],)) for one, other in pairs.meeting(spans, [1] * len(spans))):
            raise DeltaError(f"{name}: two ranges of a slice overlap")
    return region_shape(shape, region)


def _disjoint(parts: list[Part], tensors: Mapping[str, Touched], pairs: _Pairs) -> None:
    regions: dict[str, list[Region | None]] = {}
    for part in parts:
        regions.setdefault(part.parameter, []).append(part.slice)
    for name, several in regions.items():
        if len(several) > _PARTS_LIMIT:
            raise DeltaError(f"{name}: more than {_PARTS_LIMIT} parts of one tensor")
        axis = next((region[0][0] for region in several if region), 0)
        spans = [_span(region, axis, tensors[name].shape) for region in several]
        cost = [len(region or ()) or 1 for region in several]
        if any(overlap(several[one], several[other]) for one, other in pairs.meeting(spans, cost)):
            raise DeltaError(f"{name}: two parts overlap")


def _span(region: Region | None, axis: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """From where to where a region reaches along an axis."""
    ranges = [(start, stop) for on, start, stop, _ in region or () if on == axis]
    if not ranges:
        return 0, max(shape[axis] if axis < len(shape) else 1, 1)
    return min(start for start, _ in ranges), max(stop for _, stop in ranges)
