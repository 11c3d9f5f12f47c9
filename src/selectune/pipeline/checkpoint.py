"""A model that deltas lead to, as a full checkpoint: a copy of its base's files in which only the bytes of what moved are others.

A base in a folder keeps its tensors' names, dtypes, shapes and files, whatever layout it was saved in, and every tensor that nothing
selected is its own to the byte. The base is never a network in memory: its files are copied, and then read a tensor at a time
(`pipeline.rewriting`), which also proves that they are the base and become the model.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from selectune.components.disk import Layout, layout
from selectune.delta import apply
from selectune.delta.files import building
from selectune.errors import DeltaError, InputError, ModelError, StorageError
from selectune.governance.bundles import sign_folder
from selectune.hashing import DTYPES
from selectune.models import Model, load
from selectune.network import bare
from selectune.pipeline.progress import Progress, Silent, bar
from selectune.pipeline.rewriting import check_fit, check_saved, rewrite
from selectune.pipeline.slots import Slot, read_slots, weight_folder
from selectune.pipeline.tensors import FolderTensors, open_folder, outlined

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selectune.delta import Delta
    from selectune.governance import PrivateKey
    from selectune.hashing import Entry

NOTE = "selectune.json"
"""The file of a full checkpoint that says which update it is."""
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*", "additional_chat_templates/*.jinja")
_STEP = 64 << 20
"""Bytes that are copied before the bar moves."""
_PIECE = 1 << 20
_MB = 1_000_000
_UNABLE = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}
"""What a system says that cannot copy between these two files by itself."""


def save_checkpoint(
    model: Model | str,
    deltas: Sequence[Delta],
    out: Path,
    *,
    note: Mapping[str, Any] | None = None,
    sign: PrivateKey | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes what `deltas` make of a base as a new folder: weights, configuration, processor and `selectune.json` with `note`.

    `model` is the base's name, or the model after the deltas in memory. With `sign` there is ``model.sig`` too, over all of it: OpenSSF
    model signing's bundle.

    The folder is whole or not there. A base in a folder (or of the hub, on this disk) gives every file, and no more of it is in memory than
    two of its largest tensors, or one group of tensors that the files hold as one; only where the network computes tensors that no file
    has is it built. Another base is loaded, and saved by transformers. Raises InputError for a folder that is not empty, DeltaError for
    deltas that do not lead to the model or that the files' dtypes cannot hold, WrongParent where the files are not what the first one was
    made on, ModelError for files that cannot be understood, StorageError for a disk with too little room.
    """
    check_new(out)
    if not deltas:
        raise InputError("no delta is given", where=str(out), then="Copy the base's folder: it is the model.")
    name, child = (model, deltas[-1].child) if isinstance(model, str) else (model.name, model.id)
    for delta, wanted in zip(deltas, [*(delta.parent for delta in deltas[1:]), child], strict=True):
        if delta.child != wanted:
            what = f"a delta leads to model {delta.child[:12]}, and {wanted[:12]} should follow"
            raise DeltaError(what, where=str(out), then="Give the deltas from the base to this model, in their order.")
    base = weight_folder(name)
    write = _afresh(model, deltas, out) if base is None else _over(model, deltas, base, out, progress or Silent())
    with building(out) as partial:
        write(partial)
        (partial / NOTE).write_text(json.dumps({**(note or {}), "model_id": child, "base": name}, indent=1) + "\n", "utf-8")
        if sign is not None:
            sign_folder(partial, sign, name=out.resolve().name)
    return out


def check_new(out: Path) -> None:
    """Raises InputError for a folder that is there and not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is there already and not empty", where=str(out), then="Give a new folder.")


def check_room(out: Path, size: int) -> None:
    """Raises StorageError where the disk that `out` would lie on has less than `size` bytes left."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        what = f"the checkpoint has {size:,} bytes, and {free:,} are free"
        raise StorageError(what, where=str(out), then="Free space on that disk, or choose another folder.")


Write = Callable[[Path], None]
"""Fills an empty folder."""


def _afresh(model: Model | str, deltas: Sequence[Delta], out: Path) -> Write:
    """A model that lies in no folder, saved by transformers."""
    made = reduce(apply, deltas, load(model)) if isinstance(model, str) else model
    net = cast("PreTrainedModel", bare(made.net))
    plan = layout(net)
    check_saved(plan, {name for delta in deltas for name in delta.tensors}, net)
    check_room(out, sum(DTYPES[dtype][1] * prod(shape) for dtype, shape in plan.tensors.values()))
    return lambda partial: _save_afresh(made, plan, partial)


def _save_afresh(model: Model, plan: Layout, partial: Path) -> None:
    model.net.save_pretrained(partial)
    model.processor.save_pretrained(partial)
    wanted = dict(plan.tensors)
    found = {name: (slot.dtype, slot.shape) for name, slot in read_slots(partial).items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        what = f"{len(odd)} tensors were not saved as they should be, {odd[0]} for one: {found.get(odd[0])}, expected {wanted.get(odd[0])}"
        raise ModelError(what, where=f"model {model.name}", then="Install the version of transformers that selectune was tested with.")


def _over(model: Model | str, deltas: Sequence[Delta], base: Path, out: Path, progress: Progress) -> Write:
    """A copy of the base's files, and in it what moved."""
    tensors, known = _opened(model, base)
    check_fit(tensors, deltas)
    files = {path: path.stat().st_size for path in _files(base, tensors.slots.values())}
    check_room(out, sum(files.values()))
    moved = {name for delta in deltas for name in delta.tensors}

    def write(partial: Path) -> None:
        with _counted(progress, "Copying the base (MB)", sum(files.values())) as done:
            for path in files:
                copy = partial / path.relative_to(base)
                copy.parent.mkdir(exist_ok=True)
                _copy(path, copy, done)
        total = sum(map(tensors.size, tensors.groups))
        with _counted(progress, "Hashing it and putting the update on (MB)", total) as done:
            rewrite(tensors, partial, deltas, {name: entry for name, entry in known.items() if name not in moved}, done)

    return write


def _opened(model: Model | str, base: Path) -> tuple[FolderTensors, Mapping[str, Entry]]:
    """The base's tensors, and what is known of them and of the model's."""
    if not isinstance(model, str):
        net = outlined(cast("PreTrainedModel", bare(model.net)))
        return FolderTensors(net, base, read_slots(base), model.name), model.manifest
    found = open_folder(model, base)
    return found, load(model).manifest if found.lacking else {}


@contextmanager
def _counted(progress: Progress, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar in megabytes that hears of bytes."""
    with bar(progress, what, total // _MB) as advance:
        ready = 0

        def done(size: int) -> None:
            nonlocal ready
            ready += size
            advance(ready // _MB, None)

        yield done


def _files(base: Path, slots: Iterable[Slot]) -> list[Path]:
    """The base's weights and what belongs to them; never code or pickles, and not the note of an earlier update."""
    beside = {path for pattern in _COMPANIONS for path in base.glob(pattern) if path.is_file()}
    beside = {path for path in beside if path.name != NOTE and not path.name.endswith(".bin.index.json")}
    return sorted(beside | {base / slot.file for slot in slots})


def _copy(source: Path, target: Path, done: Callable[[int], None]) -> None:
    """Copies a file; where the file system can, both share their blocks until one of them changes."""
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        try:
            while sys.platform == "linux" and (count := os.copy_file_range(reader.fileno(), writer.fileno(), _STEP)):
                done(count)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
        while count := writer.write(reader.read(_PIECE)):
            done(count)
