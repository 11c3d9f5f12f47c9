"""The folders that models' weights lie in: which tensors their files hold, and where; headers are read, and values one tensor at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from selectune.delta.bits import bit_view, torch_dtype
from selectune.errors import DeltaError, InputError, ModelError
from selectune.hashing import DTYPES, parse_json, tensor_bytes
from selectune.models import providers
from selectune.untrusted import read_header

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEADER_LIMIT = 256 << 20
_PIECE = 1 << 20
"""Elements, or bytes, of a tensor that are in memory at a time where not all of it has to be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where a tensor lies in a folder of safetensors."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """In bytes, from the beginning of the file."""
    stop: int


def weight_folder(name: str) -> Path | None:
    """The folder with the weights of the model called `name`, a hub id's on this disk too; None where there is none."""
    if name in providers():
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
    return Path(found).parent if isinstance(found, str) else None


def has_weights(folder: Path) -> bool:
    """Whether transformers would find safetensors in a folder."""
    return (folder / _WEIGHTS).is_file() or (folder / _INDEX).is_file()


def read_slots(folder: Path) -> dict[str, Slot]:
    """Every tensor in the files that transformers would load from a folder; reads their headers alone.

    Raises ModelError for a folder without them, and for an index that leads out of it.
    """
    if not has_weights(folder):
        raise ModelError(f"there is neither {_WEIGHTS} nor {_INDEX}", where=f"model {folder}", then="Save it again with save_pretrained.")
    files = [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file():
        files = _indexed(folder)
    if strange := [file for file in files if Path(file).name != file]:
        raise ModelError(f'its index names the file "{strange[0][:200]}"', where=f"model {folder}", then="Files lie in the folder itself.")
    return {name: slot for file in files for name, slot in slots_of(folder, file).items()}


def _indexed(folder: Path) -> list[str]:
    """The files that a folder's index names. Raises ModelError for an index that is none."""
    try:
        match parse_json((folder / _INDEX).read_bytes(), limit=_HEADER_LIMIT):
            case {"weight_map": {**places}} if places and all(isinstance(file, str) for file in places.values()):
                return sorted({str(file) for file in places.values()})
            case _:
                raise InputError("has no weight_map")
    except (InputError, OSError) as error:
        reason = error.what if isinstance(error, InputError) else error.strerror
        raise ModelError(f"{_INDEX}: {reason}", where=f"model {folder}", then="Save it again with save_pretrained.") from error


def slots_of(folder: Path, file: str) -> dict[str, Slot]:
    """Every tensor in one file of a folder; reads its header alone. Raises ModelError for a header that is none."""
    try:
        begin, rows = read_header(folder / file)
        size = (folder / file).stat().st_size
    except (InputError, OSError) as error:
        reason = error.what if isinstance(error, InputError) else error.strerror
        raise ModelError(f"{file}: {reason}", where=f"model {folder}", then="Copy or download the file again.") from error
    found = {}
    for name, row in rows.items():
        start, stop = (begin + offset for offset in row["data_offsets"])
        if not (begin <= start <= stop <= size and stop - start == prod(row["shape"]) * DTYPES[row["dtype"]][1]):
            what = f"{file}: {name} lies at {start}-{stop} of {size} bytes, which its shape and dtype do not fit"
            raise ModelError(what, where=f"model {folder}", then="Copy or download the file again.")
        found[name] = Slot(file=file, dtype=row["dtype"], shape=tuple(row["shape"]), start=start, stop=stop)
    return found


def read_slot(folder: Path, slot: Slot, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor as a file holds it, or in another dtype, for which no second copy of it is in memory.

    Raises ModelError where the file has become too short.
    """
    kind = torch_dtype(slot.dtype)
    found = torch.empty(slot.shape, dtype=dtype or kind)
    with (folder / slot.file).open("rb") as stream:
        stream.seek(slot.start)
        for part in found.reshape(-1).split(_PIECE):
            held = part if part.dtype == kind else torch.empty(part.shape, dtype=kind)
            if stream.readinto(held.view(torch.uint8).numpy().data) != held.nbytes:
                what = f"{slot.dtype} {list(slot.shape)} does not lie in it whole"
                raise ModelError(what, where=f"{slot.file}: {name[:200]}", then="Copy or download the file again.")
            if held is not part:
                part.copy_(held)
    return found


def slot_digest(folder: Path, slot: Slot) -> str:
    """The sha256 of a tensor's bytes in its file, a piece of which is in memory at a time."""
    hasher, left = hashlib.sha256(), slot.stop - slot.start
    with (folder / slot.file).open("rb") as stream:
        stream.seek(slot.start)
        while piece := stream.read(min(left, _PIECE)):
            hasher.update(piece)
            left -= len(piece)
    return hasher.hexdigest()


def overwrite_slot(folder: Path, slot: Slot, name: str, after: Tensor) -> None:
    """Puts `after`, in whichever dtype, where a file has the same tensor as it was; what did not move keeps the bits that the file has.

    Raises DeltaError where the file's dtype cannot hold a number that moved.
    """
    with (folder / slot.file).open("r+b") as stream:
        at = slot.start
        for new in after.reshape(-1).split(_PIECE):
            stored = torch.empty(new.shape, dtype=torch_dtype(slot.dtype))
            stream.seek(at)
            stream.readinto(stored.view(torch.uint8).numpy().data)
            moved = bit_view(stored.to(new.dtype)) != bit_view(new)
            if bool(moved.any()):
                converted = new.to(stored.dtype)
                if not bit_view(converted.to(new.dtype)).equal(bit_view(new)):
                    raise DeltaError(
                        f"{slot.dtype}, as the file has it, cannot hold the new values, which are {new.dtype}",
                        where=f"{slot.file}: {name}",
                        then="Save the base again in the dtype that it is loaded with, and record its updates on that.",
                    )
                stream.seek(at)
                stream.write(tensor_bytes(torch.where(moved, bit_view(converted), bit_view(stored))))
            at += stored.nbytes
