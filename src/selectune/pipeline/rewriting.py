"""Deltas put on a copy of a model's files, a few tensors at a time; each is hashed, so that they are the parent and become the child."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Lock
from typing import TYPE_CHECKING

from selectune.delta.pouring import pour
from selectune.delta.values import touched
from selectune.errors import DeltaError, ModelError, WrongParent
from selectune.hashing import Entry, Manifest, dtype_name, tensor_digest, tensor_entry
from selectune.pipeline.slots import overwrite_slot, slot_digest
from selectune.threads import each

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from selectune.components.conversion import Conversion
    from selectune.components.disk import Group, Layout
    from selectune.delta import Delta, Part
    from selectune.pipeline.tensors import FolderTensors

_AGAIN = "Begin again from the files that the first update was made on."


def check_saved(plan: Layout, names: Collection[str], net: PreTrainedModel) -> None:
    """Raises ModelError for a tensor that moved and that transformers does not save."""
    if lost := sorted(set(names) - plan.holders.keys()):
        what = f"the update changed {lost[0]}, which transformers does not save"
        raise ModelError(what, where=f"checkpoint of {type(net).__name__}", then="Leave it out of the selection.")


def check_fit(tensors: FolderTensors, deltas: Sequence[Delta]) -> None:
    """Raises ModelError for a tensor that a delta moves and the files do not hold, WrongParent for one of another dtype or shape there."""
    check_saved(tensors.plan, {name for delta in deltas for name in delta.tensors}, tensors.net)
    where = f"checkpoint of {type(tensors.net).__name__}"
    for name, one in {name: one for delta in deltas for name, one in delta.tensors.items()}.items():
        if gone := tensors.missing(name):
            what = f"the update changed {name}, and the base's files have no {gone[0]}"
            raise ModelError(what, where=where, then="Save the base again with save_pretrained, and record its updates on that.")
        like = tensors.like(name)
        form = dtype_name(like.dtype), tuple(like.shape)
        if form != (one.dtype, one.shape):
            what = f"{name} is {form[0]} {list(form[1])}, and {one.dtype} {list(one.shape)} in the delta"
            raise WrongParent(what, where=where, then=_AGAIN)


def rewrite(
    tensors: FolderTensors, folder: Path, deltas: Sequence[Delta], known: Mapping[str, Entry], done: Callable[[int], None]
) -> Manifest:
    """Turns a copy of the files of `tensors` from the first delta's parent into the last one's child, whose manifest it gives.

    On as many threads as there are cores; all of them together hold no more than two of the largest tensors, or one group that is larger.
    `known` has what is known of the parent's tensors: all that the files lack, at least. `done` hears of bytes that are ready, from several
    threads. Raises WrongParent for files that do not hold the parent, DeltaError for a damaged delta and for one that leads elsewhere; the
    copy is then worth nothing.
    """
    work = _Work(tensors, folder, deltas, known)
    alone = Lock()

    def job(group: Group) -> dict[str, Entry]:
        found = work.move(group)
        with alone:
            done(tensors.size(group))
        return found

    found = {name: entry for entries in each(job, tensors.groups) for name, entry in entries.items()}
    return _follow(Manifest({**{name: known[name] for name in tensors.lacking}, **found}), deltas)


def _follow(manifest: Manifest, deltas: Sequence[Delta]) -> Manifest:
    """The last child's manifest of the first parent's, each of the deltas held against it."""
    if manifest.id != deltas[0].parent:
        what = f"the base's files hold model {manifest.id[:12]}, and the first update is of {deltas[0].parent[:12]}"
        raise WrongParent(what, where="checkpoint", then=_AGAIN)
    for delta in deltas:
        odd = [name for name, one in delta.tensors.items() if manifest[name].sha256 != one.old]
        manifest = touched(manifest, delta.tensors)
        if odd or manifest.id != delta.child:
            what = f"the tensors that a delta lists do not lead from {delta.parent[:12]} to {delta.child[:12]}"
            raise DeltaError(what, where="checkpoint", then="Fetch the file again.")
    return manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """What the deltas make of one tensor."""

    old: str
    new: str
    parts: tuple[tuple[Part, int], ...]
    """In their order, with the bytes of an element."""


class _Work:
    def __init__(self, tensors: FolderTensors, folder: Path, deltas: Sequence[Delta], known: Mapping[str, Entry]) -> None:
        self._tensors, self._folder, self._known = tensors, folder, known
        self._changes = _changes(deltas)
        self._room = _Room(2 * max((tensors.like(name).nbytes for group in tensors.groups for name in group.memory), default=0))

    def move(self, group: Group) -> dict[str, Entry]:
        """Checks a group and puts what moved in place; what its tensors were before, by first name."""
        conversion = self._tensors.conversion(group)
        names = {one: self._tensors.plan.first[one] for one in group.memory}
        changes = {one: self._changes[name] for one, name in names.items() if name in self._changes}
        with self._room.taken(self._size(group, conversion, changes)):
            found = self._changed(group, conversion, changes) if changes else self._entries(group, conversion)
            for one, entry in found.items():
                if self._known.get(names[one], entry) != entry:
                    raise self._other(group)
                for copy in self._tensors.copies(names[one]) if one not in changes else ():
                    self._compare(copy, entry)
        return {names[one]: entry for one, entry in found.items()}

    def _size(self, group: Group, conversion: Conversion, changes: Mapping[str, _Change]) -> int:
        """Bytes that moving a group takes, pieces aside."""
        plain = self._plain(group, conversion)
        size = 0 if plain and not changes else sum(one.nbytes for one in conversion.memory.values())
        packed = max((len(part.data) for change in changes.values() for part, _ in change.parts), default=0)
        copies = any(self._tensors.copies(self._tensors.plan.first[one]) for one in group.memory)
        return size + max(packed, 0 if plain else conversion.beside, size if copies and not plain else 0)

    def _changed(self, group: Group, conversion: Conversion, changes: Mapping[str, _Change]) -> dict[str, Entry]:
        values = conversion.to_memory(self._tensors.reader(group, self._folder))
        found = {one: tensor_entry(tensor) for one, tensor in values.items() if one not in changes}
        copies = {one: self._tensors.copies(self._tensors.plan.first[one]) for one in changes}
        for one, change in changes.items():
            found[one] = Entry(dtype=dtype_name(values[one].dtype), shape=tuple(values[one].shape), sha256=change.old)
            for copy in copies[one]:
                self._compare(copy, found[one])
            for part, itemsize in change.parts:
                pour(values[one], part, itemsize)
            # Not hashed before: bits that become the child's under the delta were the parent's.
            if tensor_digest(values[one]) != change.new:
                raise self._wrong(group, one, change)
        self._put(group, conversion, values)
        for one, several in copies.items():
            for copy in several:
                self._put(copy, self._tensors.conversion(copy), {copy.memory[0]: values[one]})
        return found

    def _put(self, group: Group, conversion: Conversion, values: Mapping[str, Tensor]) -> None:
        spelled = self._tensors.spelled(group)
        for disk, tensor in conversion.to_disk(values):
            overwrite_slot(self._folder, self._tensors.slots[spelled[disk]], spelled[disk], tensor)

    def _plain(self, group: Group, conversion: Conversion) -> bool:
        """Whether the one tensor of a group has the same bytes in the files."""
        (name, *_), (like, *_) = self._tensors.spelled(group).values(), conversion.memory.values()
        slot = self._tensors.slots[name]
        return conversion.renamed and (slot.dtype, slot.shape) == (dtype_name(like.dtype), tuple(like.shape))

    def _entries(self, group: Group, conversion: Conversion) -> dict[str, Entry]:
        if self._plain(group, conversion):
            ((name, like),), (place,) = conversion.memory.items(), self._tensors.spelled(group).values()
            sha256 = slot_digest(self._folder, self._tensors.slots[place])
            return {name: Entry(dtype=dtype_name(like.dtype), shape=tuple(like.shape), sha256=sha256)}
        values = conversion.to_memory(self._tensors.reader(group, self._folder))
        return {name: tensor_entry(tensor) for name, tensor in values.items()}

    def _compare(self, copy: Group, entry: Entry) -> None:
        """Raises WrongParent where a copy of a tied tensor is another one than the tensor itself."""
        if list(self._entries(copy, self._tensors.conversion(copy)).values()) != [entry]:
            raise self._other(copy)

    def _other(self, group: Group) -> WrongParent:
        name = next(iter(self._tensors.spelled(group).values()))
        slot = self._tensors.slots[name]
        what = f"{slot.dtype} {list(slot.shape)} in the file is not what the model was loaded with"
        return WrongParent(what, where=f"{slot.file}: {name}", then=_AGAIN)

    def _wrong(self, group: Group, one: str, change: _Change) -> DeltaError:
        """Why a tensor became another than it should: the base is another one, or else the delta is damaged."""
        values = self._tensors.conversion(group).to_memory(self._tensors.reader(group, self._tensors.folder))
        if tensor_digest(values[one]) != change.old:
            return self._other(group)
        return DeltaError(f'"{one}" does not become {change.new[:12]}', where="checkpoint", then="The delta is damaged: fetch it again.")


def _changes(deltas: Sequence[Delta]) -> dict[str, _Change]:
    """By the first names of tensors: what moves them."""
    found: dict[str, _Change] = {}
    for delta in deltas:
        parts: dict[str, list[tuple[Part, int]]] = {}
        for part in delta.parts:
            parts.setdefault(part.parameter, []).append((part, delta.itemsize(part)))
        for name, one in delta.tensors.items():
            before = found.get(name)
            so_far = before.parts if before else ()
            found[name] = _Change(old=before.old if before else one.old, new=one.new, parts=(*so_far, *parts[name]))
    return found


class _Room:
    """Bytes that several threads may use together; who asks for more than there are gets them alone."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._changed = Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Waits until there are so many, and has them inside the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._total)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
