"""A model's tensors one at a time, by their names in memory, read from its files: comparing and merging need no whole model.

Files may hold a tensor under another name, cut, merged or turned; `components.conversion` says where its elements lie.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from selectune.components import map_model
from selectune.components.conversion import Conversion
from selectune.components.disk import Group, Layout, alone, follow, in_files, layout, tensors_of
from selectune.delta import after
from selectune.delta.bits import put, torch_dtype
from selectune.delta.values import parts_of
from selectune.errors import ModelError, WrongParent
from selectune.hashing import Manifest, tensor_digest, tensor_entry
from selectune.models import load, outline
from selectune.network import state, whole
from selectune.pipeline.slots import Slot, has_weights, read_slot, read_slots, weight_folder
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
    found = open_folder(name, folder)
    return LoadedTensors(load(name)) if found.lacking else found


def open_folder(name: str, folder: Path) -> FolderTensors:
    """The tensors in the files of the model called `name`, which lie in `folder`. Raises ModelError as `models.load` does."""
    slots, given = read_slots(folder), Path(name).expanduser()
    if given.is_dir():  # as `load` does: of a hub id, transformers' own cache is trusted
        check_folder(folder)
    found = FolderTensors(outline(str(given) if given.is_dir() else name, name), folder, slots, name)
    # Without values transformers cannot see whether two copies of a tied tensor are equal, and leaves them apart.
    return FolderTensors(found.net, folder, slots, name) if found.tie() else found


class LoadedTensors:
    """The tensors of a model in memory."""

    def __init__(self, model: Model, original: Manifest | None = None) -> None:
        """`original` is the model as it came, where it was widened or quantised since: what of it is as it was is given in its dtypes."""
        self.manifest = original or model.manifest
        self.map = model.map
        self.net = model.net
        self.names = tuple(model.manifest)
        self._tensors = state(model.net)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return whole(self._tensors[name].detach()).to("cpu", torch_dtype(self.manifest[name].dtype))


class FolderTensors:
    """The tensors of a folder, of which one group at a time is in memory: the tensors that the files hold as one, or as several of one."""

    def __init__(self, net: PreTrainedModel, folder: Path, slots: Mapping[str, Slot], name: str) -> None:
        """`net` says how the tensors are called in memory; it may be on the meta device, and belongs to these files alone from now on."""
        follow(net, slots)
        self.net, self.folder, self.slots, self._name = net, folder, slots, name
        self.plan: Layout = layout(net)
        self._live = tensors_of(net)
        self._groups = {self.plan.first[one]: self._held_as(group) for group in self.plan.groups for one in group.memory}
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
        return tuple(name for name in self.names if name not in self._groups or self.missing(name))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """What is read together, in the order in which it lies in the files; what is `lacking` is in none."""
        found = [group for group in dict.fromkeys(self._groups.values()) if self._whole(group)]
        return tuple(sorted(found, key=lambda group: min(self._place(name) for name in self.spelled(group).values())))

    @cached_property
    def manifest(self) -> Manifest:
        """The model's manifest."""
        return Manifest({name: tensor_entry(self.read(name)) for name in self.names})

    def places(self, name: str) -> dict[str, str]:
        """The tensors in the files that hold any of the group of one in memory: by transformers' name for each, the files' own."""
        return self.spelled(self._groups[name])

    def missing(self, name: str) -> tuple[str, ...]:
        """What the files lack of the group of one in memory, by transformers' names."""
        group = self._groups[name]
        found = self.spelled(group)
        return tuple(one for one in group.disk if one not in found)

    def expected(self, name: str) -> dict[str, Tensor]:
        """What the files should hold of the group of one in memory, by their names for it: tensors for their shapes and dtypes."""
        found = self.conversion(self._groups[name]).disk
        return {spelled: found[one] for one, spelled in self.places(name).items()}

    def like(self, name: str) -> Tensor:
        """A tensor in memory by its state-dict name, for its shape and dtype."""
        return torch.empty_like(self._live[name], device="meta")

    def spelled(self, group: Group) -> dict[str, str]:
        """The tensors in the files that hold any of a group: by transformers' name for each, the files' own."""
        spelled = {one: in_files(one, self.slots, self.net.base_model_prefix) for one in group.disk}
        return {one: found for one, found in spelled.items() if found is not None}

    def size(self, group: Group) -> int:
        """Bytes of a group in the files."""
        return sum(self.slots[name].stop - self.slots[name].start for name in self.spelled(group).values())

    def copies(self, name: str) -> tuple[Group, ...]:
        """Further names of a tied tensor under which the files hold it too, each as a group of its own."""
        held = self.places(name)
        return tuple(one for one in self._aliases(name) if self._whole(one) and set(self.spelled(one).values()) != set(held.values()))

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype that the model is loaded with. Raises ModelError where the files cannot be understood."""
        if name in self.lacking:
            raise ModelError(f"its files do not hold {name}", where=f"model {self._name}", then="Save it again with save_pretrained.")
        group = self._groups[name]
        if self._held is None or self._held[0] is not group:
            self._held = None  # before the next one: two groups are never in memory together
            found = self.conversion(group).to_memory(self.reader(group, self.folder))
            self._held = (group, {self.plan.first[one]: tensor for one, tensor in found.items()})
        return self._held[1][name]

    def raw(self, name: str) -> Tensor:
        """A tensor by its name in the files, as they hold it."""
        return read_slot(self.folder, self.slots[name], name)

    def conversion(self, group: Group) -> Conversion:
        """How a group lies in the files."""
        return Conversion(self.net, {one: self._live[one] for one in group.memory}, group.disk)

    def reader(self, group: Group, folder: Path) -> Callable[[str, Tensor], Tensor]:
        """What `Conversion.to_memory` reads a group's tensors by, in these files or in a copy of them."""
        spelled = self.spelled(group)

        def read(disk: str, like: Tensor) -> Tensor:
            name = spelled[disk]
            slot = self.slots[name]
            if slot.shape != tuple(like.shape):
                what = f"{name[:200]} is {list(slot.shape)} in the files, the model needs {list(like.shape)}"
                raise ModelError(what, where=f"model {self._name}", then="Give files of the same model, its vocabulary included.")
            return read_slot(folder, slot, name, like.dtype)

        return read

    def tie(self) -> bool:
        """Ties what the network declares tied and the files hold in equal copies; whether there was any, so that the layout is another."""
        tied = False
        for target, source in self.net.all_tied_weights_keys.items():
            both = [self.plan.first[name] for name in (target, source)]
            if both[0] != both[1] and not set(both) & set(self.lacking) and torch.equal(*map(self.read, both)):
                owner, _, leaf = target.rpartition(".")
                setattr(self.net.get_submodule(owner), leaf, self._live[source])
                tied = True
        return tied

    def _held_as(self, group: Group) -> Group:
        """The group; or, where the files have a tied tensor under another of its names alone, that."""
        others = [] if self._whole(group) or len(group.memory) > 1 else self._aliases(self.plan.first[group.memory[0]])
        return next((one for one in others if self._whole(one)), group)

    def _aliases(self, name: str) -> list[Group]:
        return [Group(memory=(one,), disk=alone(self.net, one)) for one in self.plan.aliases.get(name, ())]

    def _whole(self, group: Group) -> bool:
        return len(self.spelled(group)) == len(group.disk)

    def _place(self, name: str) -> tuple[str, int]:
        return self.slots[name].file, self.slots[name].start


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
