"""A model that deltas lead to, as a full checkpoint: a copy of its base's files in which only the bytes of what moved are others.

A base in a folder keeps its tensors' names, dtypes, shapes and files, whatever layout it was saved in, and every tensor that nothing
selected is its own to the byte. What moved is converted by transformers to the layout of the files (`components.disk`), and checked on the
way: what the model was before the deltas, converted so, has to be what the base's files hold.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from selectune.components.disk import Layout, alone, in_files, layout, revert, tensors_of
from selectune.delta.bits import bit_view, flip, torch_dtype
from selectune.delta.files import building
from selectune.errors import DeltaError, InputError, ModelError
from selectune.governance.bundles import sign_folder
from selectune.hashing import DTYPES, parse_json, tensor_bytes
from selectune.models import providers
from selectune.network import bare, whole
from selectune.untrusted import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selectune.delta import Delta
    from selectune.governance import PrivateKey
    from selectune.models import Model

NOTE = "selectune.json"
"""The file of a full checkpoint that says which update it is."""
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*", "additional_chat_templates/*.jinja")
_HEADER_LIMIT = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where a tensor lies in a folder of safetensors."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """In bytes, from the beginning of the file."""
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """Tensors in memory, and what of the files is made of them."""

    memory: tuple[str, ...]
    disk: Mapping[str, str]
    """By the name that transformers gives: the name in the files."""


def save_checkpoint(
    model: Model, deltas: Sequence[Delta], out: Path, *, note: Mapping[str, Any] | None = None, sign: PrivateKey | None = None
) -> Path:
    """Writes `model`, its base after `deltas`, as a new folder: weights, configuration, processor and `selectune.json` with `note`.

    With `sign` there is ``model.sig`` too, over all of it: OpenSSF model signing's bundle.

    The folder is whole or not there. A base in a folder (or of the hub, on this disk) gives every file; another one is saved by
    transformers. Raises InputError for a folder that is not empty, DeltaError for deltas that do not lead to the model or that the files'
    dtypes cannot hold, ModelError where the files are not what was loaded, StorageError for a full disk.
    """
    check_new(out)
    if not deltas:
        raise InputError("no delta is given", where=str(out), then="Copy the base's folder: it is the model.")
    following = [*(delta.parent for delta in deltas[1:]), model.id]
    for delta, wanted in zip(deltas, following, strict=False):
        if delta.child != wanted:
            what = f"a delta leads to model {delta.child[:12]}, and {wanted[:12]} should follow"
            raise DeltaError(what, where=str(out), then="Give the deltas from the base to this model, in their order.")
    net = cast("PreTrainedModel", bare(model.net))
    plan = layout(net)
    touched = {name for delta in deltas for name in delta.tensors}
    if lost := sorted(touched - plan.holders.keys()):
        what = f"the update changed {lost[0]}, which transformers does not save"
        raise ModelError(what, where=f"checkpoint of {type(net).__name__}", then="Leave it out of the selection.")
    base = weight_folder(model.name)
    with building(out) as partial:
        if base is None:
            _save_afresh(model, plan, partial)
        else:
            _save_over(net, plan, deltas, base, partial)
        (partial / NOTE).write_text(json.dumps({**(note or {}), "model_id": model.id, "base": model.name}, indent=1) + "\n", "utf-8")
        if sign is not None:
            sign_folder(partial, sign, name=out.resolve().name)
    return out


def check_new(out: Path) -> None:
    """Raises InputError for a folder that is there and not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is there already and not empty", where=str(out), then="Give a new folder.")


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


def _save_afresh(model: Model, plan: Layout, partial: Path) -> None:
    model.net.save_pretrained(partial)
    model.processor.save_pretrained(partial)
    wanted = dict(plan.tensors)
    found = {name: (slot.dtype, slot.shape) for name, slot in read_slots(partial).items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        what = f"{len(odd)} tensors were not saved as they should be, {odd[0]} for one: {found.get(odd[0])}, expected {wanted.get(odd[0])}"
        raise ModelError(what, where=f"model {model.name}", then="Install the version of transformers that selectune was tested with.")


def _save_over(net: PreTrainedModel, plan: Layout, deltas: Sequence[Delta], base: Path, partial: Path) -> None:
    slots = read_slots(base)
    touched = {name for delta in deltas for name in delta.tensors}
    pieces = list(_pieces(net, plan, touched, slots))
    for path in _files(base, slots):
        copy = partial / path.relative_to(base)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    live = tensors_of(net)
    for piece in pieces:
        new = {name: whole(live[name]).cpu() for name in piece.memory}
        after = before = revert(net, new, piece.disk)
        if any(plan.first[name] in touched for name in piece.memory):
            before = revert(net, {name: _before(tensor, plan.first[name], deltas) for name, tensor in new.items()}, piece.disk)
        for name, spelled in piece.disk.items():
            _overwrite(partial, spelled, slots[spelled], before[name], after[name])


def _files(base: Path, slots: Mapping[str, Slot]) -> list[Path]:
    """The base's weights and what belongs to them; never code or pickles, and not the note of an earlier update."""
    beside = {path for pattern in _COMPANIONS for path in base.glob(pattern) if path.is_file()}
    beside = {path for path in beside if path.name != NOTE and not path.name.endswith(".bin.index.json")}
    return sorted(beside | {base / slot.file for slot in slots.values()})


def _pieces(net: PreTrainedModel, plan: Layout, touched: set[str], slots: Mapping[str, Slot]) -> Iterator[_Piece]:
    """Everything that the model and the files both hold. Raises ModelError for a tensor that moved and is not in the files."""
    for group in plan.groups:
        moved = {plan.first[name] for name in group.memory} & touched
        spelled = {name: in_files(name, slots, net.base_model_prefix) for name in group.disk}
        found = {name: one for name, one in spelled.items() if one is not None}
        # Older files hold tied tensors under each of their names; loading ties them again only while they are equal.
        aliased = [piece for name in group.memory for piece in _aliases(net, plan, plan.first[name], slots)]
        yield from aliased
        if len(found) == len(spelled):
            yield _Piece(memory=group.memory, disk=found)
        elif moved and (found or not aliased):
            gone = next(name for name, one in spelled.items() if one is None)
            raise ModelError(
                f"the update changed {', '.join(sorted(moved))[:200]}, and the base's files have no {gone}",
                where=f"checkpoint of {type(net).__name__}",
                then="Save the base again with save_pretrained, and record its updates on that.",
            )


def _aliases(net: PreTrainedModel, plan: Layout, parameter: str, slots: Mapping[str, Slot]) -> Iterator[_Piece]:
    """Copies of a tied tensor that the files have under its other names."""
    for alias in plan.aliases.get(parameter, ()):
        for name in alone(net, alias):
            spelled = in_files(name, slots, net.base_model_prefix)
            if spelled is not None:
                yield _Piece(memory=(alias,), disk={name: spelled})


def _before(tensor: torch.Tensor, parameter: str, deltas: Sequence[Delta]) -> torch.Tensor:
    """What the tensor was before the deltas."""
    before = tensor.clone()
    for delta in deltas:
        for part in delta.parts if parameter in delta.tensors else ():
            if part.parameter == parameter:
                flip(before, part.slice, part.bits(delta.itemsize(part)))
    return before


def _overwrite(folder: Path, name: str, slot: Slot, before: torch.Tensor, after: torch.Tensor) -> None:
    """Puts `after` where `before` lies; elements that did not move keep the bits that the file has."""
    with (folder / slot.file).open("r+b") as stream:
        stream.seek(slot.start)
        stored = torch.from_numpy(np.frombuffer(stream.read(slot.stop - slot.start), dtype=np.uint8).copy())
        stored = stored.view(torch_dtype(slot.dtype)).reshape(slot.shape)
        where = f"{slot.file}: {name}"
        if stored.shape != after.shape or not _same(stored.to(before.dtype), before):
            what = f"{slot.dtype} {list(slot.shape)} in the file is not what the model was loaded with, {before.dtype} {list(before.shape)}"
            raise ModelError(what, where=where, then="Begin again from the files that the first update was made on.")
        moved = bit_view(before.contiguous()) != bit_view(after.contiguous())
        if not bool(moved.any()):
            return
        converted = after.to(stored.dtype).contiguous()
        if not _same(converted.to(after.dtype), after):
            raise DeltaError(
                f"{slot.dtype}, as the file has it, cannot hold the new values, which are {after.dtype}",
                where=where,
                then="Save the base again in the dtype that it is loaded with, and record its updates on that.",
            )
        stream.seek(slot.start)
        stream.write(tensor_bytes(torch.where(moved, bit_view(converted), bit_view(stored))))


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool(bit_view(left.contiguous()).equal(bit_view(right.contiguous())))
