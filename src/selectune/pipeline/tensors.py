"""A model's tensors one at a time, by their names in memory, read from its files: comparing and merging need no whole model.

Files may hold a tensor under another name, cut, merged or turned. transformers' own way back (`components.disk.revert`) is run on numbers
that count the elements in memory; where a number comes out is where its element lies in the files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from selectune.components import map_model
from selectune.components.disk import Group, Layout, follow, in_files, layout, revert, tensors_of
from selectune.delta import after
from selectune.delta.bits import put, torch_dtype
from selectune.delta.values import parts_of
from selectune.errors import ModelError, WrongParent
from selectune.hashing import DTYPES, Manifest, tensor_digest, tensor_entry
from selectune.models import load, outline
from selectune.network import state, whole
from selectune.pipeline.checkpoint import Slot, has_weights, read_slots, weight_folder
from selectune.untrusted import check_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from selectune.components import ComponentMap
    from selectune.delta import Delta
    from selectune.models import Model

_SMALL = 1 << 31
"""Elements that 32-bit numbers can count."""


class Tensors(Protocol):
    """The tensors of one model."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter and persistent buffer, in an order in which reading is cheap."""

    @property
    def net(self) -> PreTrainedModel:
        """The network, for its names, shapes and classes; its tensors may be on the meta device."""

    @property
    def map(self) -> ComponentMap:
        """The model's components."""

    @property
    def manifest(self) -> Manifest:
        """The model's manifest; the first time, every tensor is read once."""

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU; not to be written to."""


def open_tensors(name: str) -> Tensors:
    """The tensors of a folder, or of a hub id on this disk, from its files; a model that no files hold whole is loaded.

    Raises ModelError as `models.load` does.
    """
    folder = weight_folder(name)
    if folder is None or not has_weights(folder):
        return LoadedTensors(load(name))
    given = Path(name).expanduser()
    if given.is_dir():  # as `load` does: of a hub id, transformers' own cache is trusted
        check_folder(folder)
    found = FolderTensors(outline(str(given) if given.is_dir() else name, name), folder, read_slots(folder), name)
    return LoadedTensors(load(name)) if found.lacking else found


class LoadedTensors:
    """The tensors of a model in memory."""

    def __init__(self, model: Model) -> None:
        self.manifest = model.manifest
        self.map = model.map
        self.net = model.net
        self.names = tuple(model.manifest)
        self._tensors = state(model.net)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return whole(self._tensors[name].detach()).cpu()


class FolderTensors:
    """The tensors of a folder, of which one group at a time is in memory: the tensors that the files hold as one, or as several of one."""

    def __init__(self, net: PreTrainedModel, folder: Path, slots: Mapping[str, Slot], name: str) -> None:
        """`net` says how the tensors are called in memory; it may be on the meta device, and belongs to these files alone from now on."""
        follow(net, slots)
        self.net, self._folder, self._name = net, folder, name
        self.slots = slots
        self.plan: Layout = layout(net)
        self._live = tensors_of(net)
        self._groups = {self.plan.first[one]: group for group in self.plan.groups for one in group.memory}
        self._held: tuple[Group, dict[str, Tensor]] | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor of the model, those of a group side by side."""
        return tuple(dict.fromkeys([*self._groups, *state(self.net)]))

    @cached_property
    def map(self) -> ComponentMap:
        """The model's components."""
        return map_model(self.net, self._name)

    @cached_property
    def lacking(self) -> tuple[str, ...]:
        """Tensors of the model that the files do not hold, or hold in a way that is not known."""
        return tuple(name for name in self.names if name not in self._groups or len(self.places(name)) < len(self._groups[name].disk))

    @cached_property
    def manifest(self) -> Manifest:
        """The model's manifest."""
        return Manifest({name: tensor_entry(self.read(name)) for name in self.names})

    def places(self, name: str) -> dict[str, str]:
        """The tensors in the files that hold any of the group of one in memory: by transformers' name for each, the files' own."""
        spelled = {one: in_files(one, self.slots, self.net.base_model_prefix) for one in self._groups[name].disk}
        return {one: found for one, found in spelled.items() if found is not None}

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype that the model is loaded with. Raises ModelError where the files cannot be understood."""
        group = self._groups[name]
        if self._held is None or self._held[0] is not group:
            self._held = None  # before the next one: two groups are never in memory together
            self._held = (group, self._converted(group, self.places(name)))
        return self._held[1][name]

    def raw(self, name: str) -> Tensor:
        """A tensor by its name in the files, as they hold it."""
        return read_slot(self._folder, self.slots[name], name)

    def _converted(self, group: Group, places: Mapping[str, str]) -> dict[str, Tensor]:
        """The group's tensors by their first names in memory."""
        live = {one: self._live[one] for one in group.memory}
        if len(group.memory) == len(group.disk) == 1:
            (one,), (disk,) = group.memory, group.disk
            probe = torch.empty_like(live[one], device="meta")
            if revert(self.net, {one: probe}, group.disk)[disk] is probe:  # renamed alone
                return {self.plan.first[one]: self._fitting(self.raw(places[disk]), probe, places[disk])}
        numbers, starts = _numbered(live)
        made = revert(self.net, numbers, group.disk)
        found = {}
        for one, tensor in live.items():
            start, count = starts[one], tensor.numel()
            flat, known = torch.empty(count, dtype=tensor.dtype), torch.zeros(count, dtype=torch.bool)
            for disk, spelled in places.items():
                raw = self._fitting(self.raw(spelled), torch.empty_like(made[disk], dtype=tensor.dtype, device="meta"), spelled).reshape(-1)
                at = made[disk].reshape(-1)
                inside = (at >= start) & (at < start + count)
                where = (at[inside] - start).long()
                flat[where], known[where] = raw[inside], True
            if not bool(known.all()):
                what = f"{int((~known).sum())} numbers of {one} lie nowhere in {', '.join(places.values())[:200]}"
                raise ModelError(what, where=f"model {self._name}", then="Save the model again with save_pretrained.")
            found[self.plan.first[one]] = flat.reshape(tensor.shape)
        return found

    def _fitting(self, raw: Tensor, wanted: Tensor, name: str) -> Tensor:
        if raw.shape != wanted.shape:
            what = f"{name[:200]} is {list(raw.shape)} in the files, the model needs {list(wanted.shape)}"
            raise ModelError(what, where=f"model {self._name}", then="Give files of the same model, its vocabulary included.")
        return raw.to(wanted.dtype)


def read_slot(folder: Path, slot: Slot, name: str) -> Tensor:
    """A tensor as a file holds it. Raises ModelError where the file is too short or has a dtype of its own."""
    where = f"{slot.file}: {name[:200]}"
    if slot.dtype not in DTYPES:
        raise ModelError(f"it is {slot.dtype[:20]!r}", where=where, then="Save the model again in one of: " + ", ".join(DTYPES) + ".")
    with (folder / slot.file).open("rb") as stream:
        stream.seek(slot.start)
        data = bytearray(stream.read(slot.stop - slot.start))
    kind = torch_dtype(slot.dtype)
    if len(data) != prod(slot.shape) * kind.itemsize:
        then = "Copy or download the file again."
        raise ModelError(f"{slot.dtype} {list(slot.shape)} has {len(data)} bytes", where=where, then=then)
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8)).view(kind).reshape(slot.shape)


def _numbered(live: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors with the numbers of their elements for values, counted through all of them, and where each one's begin."""
    total = sum(tensor.numel() for tensor in live.values())
    kind = torch.int32 if total < _SMALL else torch.int64
    numbers, starts, start = {}, {}, 0
    for name, tensor in live.items():
        numbers[name] = torch.arange(start, start + tensor.numel(), dtype=kind).reshape(tensor.shape)
        starts[name] = start
        start += tensor.numel()
    return numbers, starts


def outlined(net: PreTrainedModel) -> PreTrainedModel:
    """A copy of a network whose tensors are on the meta device; ties stay."""
    memory: dict[int, object] = {}
    for one in (*net.parameters(), *net.buffers()):
        empty = torch.empty_like(one, device="meta")
        memory[id(one)] = torch.nn.Parameter(empty, requires_grad=one.requires_grad) if isinstance(one, torch.nn.Parameter) else empty
    return copy.deepcopy(net, memory)


class VersionTensors:
    """The tensors of what deltas make of a model."""

    def __init__(self, base: Tensors, deltas: Sequence[Delta]) -> None:
        self._base, self._deltas = base, tuple(deltas)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the base: a delta brings none."""
        return self._base.names

    @property
    def net(self) -> PreTrainedModel:
        """That of the base."""
        return self._base.net

    @property
    def map(self) -> ComponentMap:
        """Those of the base."""
        return self._base.map

    @cached_property
    def manifest(self) -> Manifest:
        """The base's after each delta. Raises WrongParent where they do not follow each other from there."""
        found = self._base.manifest
        for delta in self._deltas:
            if found.id != delta.parent:
                what = f"the next delta is for model {delta.parent[:12]}, this is {found.id[:12]}"
                raise WrongParent(what, where="versions", then="Give the base that the first update was made on.")
            found = after(delta, found)
        return found

    def read(self, name: str) -> Tensor:
        """One tensor. Raises WrongParent where the base does not hold what the deltas were made on."""
        mine = [delta for delta in self._deltas if name in delta.tensors]
        if not mine:
            return self._base.read(name)
        tensor = self._base.read(name).clone()
        for delta in mine:
            for part in parts_of(delta, name):
                put(tensor, part, delta.itemsize(part))
        if tensor_digest(tensor) != mine[-1].tensors[name].new:
            raise WrongParent(f'"{name}" of the base is not what the deltas were made on', where="versions", then="Give that base.")
        return tensor
