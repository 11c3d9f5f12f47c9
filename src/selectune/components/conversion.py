"""How tensors in memory and the tensors in a model's files become each other, group by group and both ways.

transformers' way back runs on tensors without values that know their strides. Chunks, slices and turned tensors stay views then, and what
is put together of several tensors is known box by box: numbers go to their place with no memory beside. Only what mixes the elements of a
tensor, such as rows that are sorted anew for another form of rotary positions, is no view of it. There the way back runs on numbers that
count the elements; where a number comes out is where its element lies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from selectune.components.disk import revert
from selectune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A box of a tensor in the files, and the elements in memory that lie there."""

    source: str
    """The tensor in memory, by its name in the state dict."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In elements of the source, which is contiguous."""
    offset: int
    span: tuple[int, int, int] | None = None
    """Axis, start and stop of the box in the tensor in the files; None for all of it."""

    def inside(self, source: torch.Tensor) -> torch.Tensor:
        """The elements in memory, as a view of their contiguous tensor."""
        return source.as_strided(self.shape, self.stride, self.offset)

    def box(self, disk: torch.Tensor) -> torch.Tensor:
        """The same elements in the tensor as the files have it, as a view."""
        return disk if self.span is None else disk.narrow(self.span[0], self.span[1], self.span[2] - self.span[1])


Read = Callable[[str, torch.Tensor], torch.Tensor]
"""Gives a tensor of the files by transformers' name for it, in the shape and dtype of the second one."""
_SMALL = 1 << 31
"""Elements that 32-bit numbers can count."""


class Conversion:
    """A group of tensors in memory, and the tensors on disk that it becomes."""

    def __init__(self, net: PreTrainedModel, memory: Mapping[str, torch.Tensor], names: Collection[str]) -> None:
        """`memory` is by state-dict name, for shapes and dtypes alone; `names` are all that it becomes. Raises ModelError as `revert`."""
        self._net = net
        self.memory = {name: torch.empty_like(tensor, device="meta") for name, tensor in memory.items()}
        self.disk = revert(net, self.memory, names)
        """By name on disk: shape and dtype."""
        self.places = _places(net, self.memory, names)
        """By name on disk: the boxes that it is made of. None where elements are mixed."""

    @property
    def renamed(self) -> bool:
        """Whether it is one tensor that becomes one, element for element."""
        if self.places is None or len(self.memory) > 1 or len(self.disk) > 1:
            return False
        ((name, (place, *_)),) = self.places.items()
        return place == _place(torch.empty(self.disk[name].shape, device="meta"), place.source)

    @property
    def beside(self) -> int:
        """Bytes that are in memory at most beside the tensors of the group while these are made or put back."""
        if self.renamed:
            return 0
        largest = max(self.disk.values(), key=lambda one: one.nbytes)
        if self.places is not None:
            return largest.nbytes
        number, count = _counting(self.memory).itemsize, sum(one.numel() for one in self.memory.values())
        # The numbers, what becomes of them, and what is known; of one on disk its values, its numbers, which are inside, and 64 bits where.
        return count * (2 * number + 1) + largest.numel() * (largest.itemsize + number + 1 + 8)

    def to_memory(self, read: Read) -> dict[str, torch.Tensor]:
        """The tensors in memory, by state-dict name, of those on disk; in the order of `disk`, one of them is read at a time.

        Raises ModelError where numbers in memory lie nowhere on disk.
        """
        if self.renamed:
            ((name, tensor),), ((disk, like),) = self.memory.items(), self.disk.items()
            return {name: read(disk, like).reshape(tensor.shape)}
        found = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in self.memory.items()}
        if self.places is None:
            self._count_out(found, read)
            return found
        for name, like in self.disk.items():
            raw = read(name, like)
            for place in self.places[name]:
                place.inside(found[place.source]).copy_(place.box(raw))
        return found

    def to_disk(self, values: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors on disk of those in memory, contiguous ones by state-dict name, one after the other."""
        if self.places is None:
            yield from revert(self._net, values, tuple(self.disk)).items()
        elif self.renamed:
            ((disk, like),), (tensor,) = self.disk.items(), values.values()
            yield disk, tensor.reshape(like.shape)
        else:
            for name, like in self.disk.items():
                made = torch.empty(like.shape, dtype=like.dtype)
                for place in self.places[name]:
                    place.box(made).copy_(place.inside(values[place.source]))
                yield name, made

    def _count_out(self, found: Mapping[str, torch.Tensor], read: Read) -> None:
        starts = dict(zip(found, accumulate((tensor.numel() for tensor in found.values()), initial=0), strict=False))
        numbers = {
            name: torch.arange(starts[name], starts[name] + tensor.numel(), dtype=_counting(found)).reshape(tensor.shape)
            for name, tensor in found.items()
        }
        made = revert(self._net, numbers, tuple(self.disk))
        known = {name: torch.zeros(tensor.numel(), dtype=torch.bool) for name, tensor in found.items()}
        for disk, like in self.disk.items():
            raw, at = read(disk, like).reshape(-1), made[disk].reshape(-1)
            for name, tensor in found.items():
                inside = (at >= starts[name]) & (at < starts[name] + tensor.numel())
                where = (at[inside] - starts[name]).long()
                tensor.reshape(-1)[where] = raw[inside]
                known[name][where] = True
        for name, seen in known.items():
            if not bool(seen.all()):
                what = f"{int((~seen).sum())} numbers of {name} lie nowhere in {', '.join(self.disk)[:200]}"
                raise ModelError(what, where=type(self._net).__name__, then="Save the model again with save_pretrained.")


def _counting(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    return torch.int32 if sum(tensor.numel() for tensor in tensors.values()) < _SMALL else torch.int64


def _places(net: PreTrainedModel, memory: Mapping[str, torch.Tensor], names: Collection[str]) -> Mapping[str, tuple[Place, ...]] | None:
    """The boxes; None where one of the tensors on disk is no view of tensors in memory, or where they do not hold all of it."""
    try:
        made = revert(net, {name: _viewed(tensor, name) for name, tensor in memory.items()}, names)
    except RuntimeError:  # what was not made contiguous cannot be seen in that shape: the elements are mixed
        return None
    found = {name: tensor.places if isinstance(tensor, _Viewed) else () for name, tensor in made.items()}
    held = sum(prod(place.shape) for several in found.values() for place in several)
    return found if all(found.values()) and held == sum(tensor.numel() for tensor in memory.values()) else None


class _Viewed(torch.Tensor):
    """A tensor without values that knows which elements of which tensors it is made of, or that it does not know."""

    places: tuple[Place, ...]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.contiguous:
            return args[0]
        result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]  # torch has no types here
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, cls)]
        for one in tree_leaves(result):
            if isinstance(one, cls):
                with torch._C.DisableTorchFunctionSubclass():
                    one.places = _joined(inputs, args, kwargs) if func is torch.cat else _seen(inputs, one)
        return result


def _viewed(tensor: torch.Tensor, name: str) -> _Viewed:
    viewed = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta").as_subclass(_Viewed)
    with torch._C.DisableTorchFunctionSubclass():
        viewed.places = (_place(viewed, name),)
    return viewed


def _place(tensor: torch.Tensor, source: str) -> Place:
    return Place(source=source, shape=tuple(tensor.shape), stride=tensor.stride(), offset=int(tensor.storage_offset()))


def _seen(inputs: list[_Viewed], result: _Viewed) -> tuple[Place, ...]:
    """The result's place where it is a view of an input that has one itself."""
    for one in inputs:
        same = one.untyped_storage()._cdata == result.untyped_storage()._cdata and one.dtype == result.dtype
        if same and len(one.places) == 1 and one.places[0].span is None:
            return (_place(result, one.places[0].source),)
    return ()


def _joined(inputs: list[_Viewed], args: Any, kwargs: Any) -> tuple[Place, ...]:
    """The places of tensors that are laid one after the other."""
    axis = int((kwargs or {}).get("dim", args[1] if len(args) > 1 else 0)) % inputs[0].ndim
    found, start = [], 0
    for one in inputs:
        if len(one.places) != 1 or one.places[0].span is not None:
            return ()
        stop = start + one.shape[axis]
        found.append(replace(one.places[0], span=(axis, start, stop)))
        start = stop
    return tuple(found)
