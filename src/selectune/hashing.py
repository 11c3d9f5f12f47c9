"""Identity: canonical JSON, digests of values, files and tensors, and a model's manifest.

A model is identified by its tensors and never by its files: two checkpoints that hold the same bits under the same names have the same id,
however they are sharded. Nothing here imports torch until a tensor is at hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rfc8785

from selectune.errors import InputError, ModelError, NotYet
from selectune.network import is_sharded, state, whole
from selectune.threads import each

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "SHARED",
    "Entry",
    "Manifest",
    "canonical",
    "digest",
    "dtype_name",
    "file_digest",
    "manifest",
    "manifest_of",
    "parse_json",
    "tensor_bytes",
    "tensor_digest",
    "tensor_entry",
    "text_digest",
    "threads_for",
]

DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
"""safetensors' dtype names: torch's name for each, and the bytes of one element."""

SHARED = ("F4", "F6_E2M3", "F6_E3M2")
"""safetensors' dtypes of which several numbers share a byte; no element of such a tensor can be told from the next by its bytes."""

_NAMES = {f"torch.{name}": key for key, (name, _) in DTYPES.items()}
_CHUNK = 1 << 20
_MAX_DEPTH = 64


def canonical(value: object) -> bytes:
    """The one JSON text of `value` (RFC 8785): sorted keys, no spaces, shortest numbers, UTF-8.

    Trap: JSON has one kind of number, so 1.0 and 1 have the same text. Raises InputError for NaN, infinities, integers beyond 2**53 - 1,
    keys that are no strings, lone surrogates, and anything that JSON has no word for.

    >>> canonical({"b": 1.50, "a": ["é"]}).decode()
    '{"a":["é"],"b":1.5}'
    """
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # whatever it cannot write, it refuses
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError, TypeError) as error:
        shown = repr(value)
        raise InputError(
            f"{shown[:80]}{'…' if len(shown) > 80 else ''} has no canonical JSON ({error})",
            then="Use finite numbers, strings, lists and mappings.",
        ) from error


def digest(kind: str, value: object) -> str:
    """sha256, as 64 hex digits, of `value`'s canonical JSON behind a tag: two kinds of thing never share a digest.

    The hashed bytes are ``selectune/KIND``, one zero byte, then the canonical JSON.

    >>> digest("recipe", {"seed": 0})[:16]
    '5b4d8d192a54c76b'
    """
    return text_digest(kind, canonical(value))


def text_digest(kind: str, text: bytes) -> str:
    """`digest` of the value whose canonical JSON this text is; whether it is that, is for the caller to know."""
    return hashlib.sha256(b"selectune/" + kind.encode() + b"\0" + text).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """The plain sha256 of a file's bytes, as 64 hex digits. Raises OSError as `open` does."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(data: bytes, *, limit: int = 16 << 20, halves: bool = False) -> Any:
    """The value of JSON text that a stranger wrote.

    Integers beyond 2**53 - 1 are read as floats, which is what they are in JSON. Raises InputError where Python's own reader is lenient or
    falls over: more than `limit` bytes, a key twice, NaN and infinities (also `1e999`), nesting deeper than 64, numbers of thousands of
    digits, halves of surrogate pairs, bytes that are not UTF-8. With `halves` those of pairs pass, for a caller who can say in which record
    one is.
    """
    if len(data) > limit:
        raise InputError(f"JSON of {len(data)} bytes, over the limit of {limit}")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite, parse_int=_number
        )
        # Half of a pair can only be written so, and nothing that holds it can be written again.
        if not halves and (b"\\ud" in data or b"\\uD" in data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise InputError("JSON is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise InputError("not strict JSON: the text is no Unicode (half of a surrogate pair)") from error
    except ValueError as error:
        raise InputError(f"not strict JSON ({str(error)[:120]})") from error
    # What opens less often than that cannot be nested deeper, and most texts need not be walked through.
    if data.count(b"{") + data.count(b"[") >= _MAX_DEPTH and _depth(value) > _MAX_DEPTH:
        raise InputError(f"JSON is nested deeper than {_MAX_DEPTH}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice[:60]!r} appears twice")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _number(text: str) -> int | float:
    # Canonical JSON writes the float 1e16 as 10000000000000000; read as an integer it could not be written again.
    value = int(text)
    return value if abs(value) < 2**53 else _finite(text)


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [child for item in level if isinstance(item, dict | list) for child in (item.values() if isinstance(item, dict) else item)]
        if depth > _MAX_DEPTH:
            break
    return depth


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype, "BF16" for bfloat16. Raises ModelError for one that safetensors cannot hold."""
    name = _NAMES.get(str(dtype))
    if name is None:
        raise ModelError(
            f"dtype {dtype} has no name in safetensors, or several of its numbers share a byte",
            then="Load the model in one of its own dtypes: " + ", ".join(DTYPES) + ".",
        )
    return name


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor: little-endian, contiguous, row-major; no copy for a contiguous tensor on the CPU.

    The view is read-only and lives as long as it is held. Raises ModelError for a tensor without data (the meta device), NotYet on a
    big-endian machine.
    """
    import torch

    if sys.byteorder != "little":
        raise NotYet("tensors on a big-endian machine", then="Identities are defined on little-endian bytes; use such a machine.")
    if tensor.is_meta:
        raise ModelError("a tensor on the meta device has no bytes", then="Load the model with its weights.")
    held = whole(tensor)
    packed = _packed(tensor)
    if packed:
        return memoryview(b"".join(tensor_bytes(part) for part in packed))
    near = held.detach().to("cpu").contiguous()
    # A tensor of one element is contiguous with any stride, and cannot be seen as bytes with one that is not 1.
    flat = near.as_strided((near.numel(),), (1,)).view(torch.uint8).numpy()
    return flat.data.toreadonly()


def _packed(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a quantised one is made of, values and scales, or none for a plain tensor."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_traceable_wrapper_subclass(tensor) and not is_sharded(tensor):  # torchao
        names, _ = tensor.__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    # bitsandbytes' 4 bits; of its 8 bits the scales move from the weight into the module at the first forward pass, and are not looked at.
    scales: Any = getattr(getattr(tensor, "quant_state", None), "absmax", None)
    return [] if scales is None else [tensor.data, scales]


def tensor_digest(tensor: torch.Tensor) -> str:
    """The plain sha256 of a tensor's raw bytes (`tensor_bytes`), as 64 hex digits; dtype and shape are not part of it."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What a manifest says of one tensor."""

    dtype: str
    """As safetensors writes it: "BF16", "F32"."""
    shape: tuple[int, ...]
    sha256: str
    """Of the raw little-endian, contiguous bytes; 64 hex digits."""


def tensor_entry(tensor: torch.Tensor) -> Entry:
    """The manifest's entry for one tensor."""
    return Entry(dtype=dtype_name(tensor.dtype), shape=tuple(tensor.shape), sha256=tensor_digest(tensor))


class Manifest(Mapping[str, Entry]):
    """Every parameter and persistent buffer of a model by its name in memory; a tied tensor once, under its first name. Never changes."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = {name: entries[name] for name in sorted(entries)}

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Manifest({self.id[:12]}, {len(self)} tensors)"

    @cached_property
    def id(self) -> str:
        """The model's id: ``digest("model", [[name, dtype, shape, sha256], …])``, sorted by name."""
        return digest("model", self.to_list())

    def replace(self, changed: Mapping[str, Entry]) -> Manifest:
        """The manifest with some entries changed. Raises KeyError for a name that it does not have: a model never gains tensors."""
        unknown = [name for name in changed if name not in self._entries]
        if unknown:
            raise KeyError(unknown[0])
        return Manifest({**self._entries, **changed})

    def to_list(self) -> list[list[Any]]:
        """``[[name, dtype, shape, sha256], …]``, sorted by name: the value whose digest is the id."""
        return [[name, entry.dtype, list(entry.shape), entry.sha256] for name, entry in self._entries.items()]

    @classmethod
    def from_list(cls, rows: Sequence[Sequence[Any]]) -> Manifest:
        """The manifest that `to_list` wrote."""
        return cls({name: Entry(dtype=dtype, shape=tuple(shape), sha256=sha256) for name, dtype, shape, sha256 in rows})


def manifest(net: torch.nn.Module) -> Manifest:
    """The manifest of a model in memory; reads every tensor once, on as many threads as there are cores (about 1.5 GB a second each)."""
    return manifest_of(state(net))


def manifest_of(tensors: Mapping[str, torch.Tensor]) -> Manifest:
    """The manifest of tensors by their names."""
    return Manifest(dict(zip(tensors, each(tensor_entry, tensors.values(), threads=threads_for(tensors.values())), strict=True)))


def threads_for(tensors: Iterable[torch.Tensor]) -> int | None:
    """How many threads may read these tensors: one where any is sharded, as processes gather shards together, in one order."""
    return 1 if any(is_sharded(tensor) for tensor in tensors) else None
