"""The delta as a value and as a file. Needs no torch; the file is specified in docs/reference/formats.md."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from selectune.components.slices import Region
from selectune.delta.encoding import Bytes, pack, replaces, unpack
from selectune.delta.files import flushed_digest, replacing
from selectune.errors import DeltaError, StorageError
from selectune.hashing import DTYPES, canonical, digest

__all__ = ["FORMAT", "KEY", "REPLACING", "Delta", "Part", "Touched"]

FORMAT = 1
"""The number of the file format."""
REPLACING = 2
"""The number where a part holds new bits instead of an xor, as only snapshots may."""
KEY = "selectune"
"""The one key of the file's metadata: with more than one, safetensors writes them in any order and the bytes differ from run to run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Touched:
    """A tensor that has parts in the delta: what it is before and after."""

    dtype: str
    """As safetensors writes it."""
    shape: tuple[int, ...]
    old: str
    """sha256 of all its raw bytes in the parent."""
    new: str
    """The same in the child."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What changed in one parameter or one region of it: the xor of the old and the new bits, or, in a snapshot, the new bits."""

    parameter: str
    slice: Region | None
    shape: tuple[int, ...]
    """Of the region: the parameter's own shape where `slice` is None."""
    sha256: str
    """Of the raw bytes, xor or new bits, before they are packed."""
    encoding: str
    data: memoryview = field(repr=False)
    """The raw bytes, packed."""

    @classmethod
    def of(
        cls,
        parameter: str,
        region: Region | None,
        shape: tuple[int, ...],
        bits: Bytes,
        *,
        old: Bytes | None = None,
        new: bool = False,
    ) -> Part:
        """The part with these xor bytes (flat, element by element, little-endian), or `new` bits, packed the smaller way.

        With `old`, the bits are those of the child and the xor is made of both, piece by piece.
        """
        itemsize = bits.size // max(prod(shape), 1) or 1
        hasher = hashlib.sha256()
        encoding, data = pack(bits, itemsize, old=old, new=new, hasher=hasher)
        return cls(parameter=parameter, slice=region, shape=shape, sha256=hasher.hexdigest(), encoding=encoding, data=memoryview(data))

    @property
    def elements(self) -> int:
        """How many numbers the region has, moved or not."""
        return prod(self.shape)

    @property
    def replaces(self) -> bool:
        """Whether it holds the new bits, with which nothing can be taken back."""
        return replaces(self.encoding)

    def bits(self, itemsize: int) -> Bytes:
        """The xor's raw bytes, unpacked and checked. Raises DeltaError where they are damaged, and where there are only new bits."""
        if self.replaces:
            raise self._refused("it has new bits alone, and nothing says what changed", "Use the updates' own deltas, not a snapshot.")
        return self.raw(itemsize)

    def raw(self, itemsize: int, *, checked: bool = True) -> Bytes:
        """The raw bytes, xor or new bits. Raises DeltaError for damaged ones; not `checked`, whoever asks checks what they lead to."""
        try:
            bits = unpack(self.data, self.encoding, self.elements * itemsize, itemsize)
        except DeltaError as error:
            raise self._refused(error.what) from error
        if checked and hashlib.sha256(bits.data).hexdigest() != self.sha256:
            raise self._refused("the packed bits are damaged")
        return bits

    def _refused(self, what: str, then: str = "Fetch the file again.") -> DeltaError:
        return DeltaError(what, where=f"delta: {self.parameter[:200]!r}", then=then)


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Exactly what changed between a parent and its child, by bits: it applies to that parent alone, and takes that child back to it.

    Every part is the xor of old and new, so that one delta serves both directions; new values alone could not be taken back. A snapshot,
    which no one takes back, may hold new values where they are smaller: it only applies.
    """

    parent: str
    """The id of the model that it applies to."""
    child: str
    """The id of the model that results."""
    patterns: tuple[str, ...]
    """The patterns by which the selection was chosen."""
    tensors: Mapping[str, Touched] = field(repr=False)
    """Every tensor that has parts here, by its name in memory, sorted."""
    parts: tuple[Part, ...] = field(repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What the maker wished to say: JSON, part of the digest."""

    @property
    def elements(self) -> int:
        """How many numbers could have moved: those of the selection."""
        return sum(part.elements for part in self.parts)

    @property
    def nbytes(self) -> int:
        """The packed size of all parts."""
        return sum(len(part.data) for part in self.parts)

    def itemsize(self, part: Part) -> int:
        """Bytes of one element of `part`."""
        return DTYPES[self.tensors[part.parameter].dtype][1]

    def moved(self) -> int:
        """How many numbers did move; unpacks every part."""
        return sum(int(np.any(part.bits(size).reshape(-1, size), axis=1).sum()) for part in self.parts if (size := self.itemsize(part)))

    @cached_property
    def digest(self) -> str:
        """The delta's identity: ``digest("delta", …)`` of all but how the bits are packed, so that no compressor's version changes it."""
        return digest("delta", self._body())

    def _body(self) -> dict[str, Any]:
        return {
            "parent": self.parent,
            "child": self.child,
            "patterns": list(self.patterns),
            "tensors": {
                name: {"dtype": touched.dtype, "shape": list(touched.shape), "old": touched.old, "new": touched.new}
                for name, touched in sorted(self.tensors.items())
            },
            "parts": [
                {
                    "parameter": part.parameter,
                    "slice": None if part.slice is None else [list(one) for one in part.slice],
                    "shape": list(part.shape),
                    "sha256": part.sha256,
                }
                for part in self.parts
            ],
            "meta": dict(self.meta),
        }

    def header(self) -> bytes:
        """The canonical JSON that the file carries under its one metadata key."""
        number = REPLACING if any(part.replaces for part in self.parts) else FORMAT
        return canonical({"format": number, "delta": self._body(), "encodings": [part.encoding for part in self.parts]})

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes the file and returns the sha256 of its bytes; the same delta gives the same bytes.

        The file is whole or not there. Raises StorageError for a full disk or a folder that cannot be written.
        """
        path = Path(path)
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                file.write(self._outer())
                for part in self.parts:
                    file.write(part.data)
            return flushed_digest(temporary)

    def _outer(self) -> bytes:
        """The file's beginning, up to the payloads, as safetensors writes it: padded to a multiple of eight bytes."""
        rows: dict[str, Any] = {"__metadata__": {KEY: self.header().decode()}}
        at = 0
        for number, part in enumerate(self.parts):
            size = len(part.data)
            rows[f"{number:06d}"] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Delta:
        """The delta in a file. Raises DeltaError for a file that is no delta or damaged, StorageError for one that cannot be read."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise StorageError(f"cannot be read ({error.strerror})", where=str(path), then="Give the path of a delta file.") from error
        return cls.from_bytes(data, where=str(path))

    @classmethod
    def from_bytes(cls, data: bytes | mmap, *, where: str = "delta") -> Delta:
        """The delta in a file's bytes, or in the file as it is mapped, its header checked in every detail. Raises DeltaError."""
        from selectune.delta.reading import read

        return read(data, where)
