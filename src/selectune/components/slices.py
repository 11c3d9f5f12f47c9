"""A part of a tensor: ranges on one axis add up, ranges on different axes cross.

A region is a tuple of `(axis, start, stop, step)`. `((0, 0, 4, 1), (0, 8, 12, 1))` is rows 0-3 and 8-11;
`((0, 7, 8, 1), (1, 0, 64, 1))` is rows 0-63 of expert 7. A region always has at least one element.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from math import prod
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Range: TypeAlias = tuple[int, int, int, int]
"""`(axis, start, stop, step)`, as in `tensor[..., start:stop:step, ...]` on that axis."""
Region: TypeAlias = tuple[Range, ...]


def _by_axis(region: Region) -> Mapping[int, list[range]]:
    axes: dict[int, list[range]] = {}
    for axis, start, stop, step in region:
        axes.setdefault(axis, []).append(range(start, stop, step))
    return axes


def region_shape(shape: tuple[int, ...], region: Region | None) -> tuple[int, ...]:
    """The shape of the selected part of a tensor of `shape`; `None` is the whole tensor."""
    if region is None:
        return shape
    lengths = {axis: sum(len(part) for part in parts) for axis, parts in _by_axis(region).items()}
    return tuple(lengths.get(axis, size) for axis, size in enumerate(shape))


def elements_of(shape: tuple[int, ...], region: Region | None) -> int:
    """How many elements the region has."""
    return prod(region_shape(shape, region))


def boxes(shape: tuple[int, ...], region: Region | None) -> Iterator[tuple[slice, ...]]:
    """Disjoint index tuples that cover the region, in the order of its ranges; each is a basic index, so it gives a view."""
    axes = {} if region is None else _by_axis(region)
    choices = [axes.get(axis, [range(size)]) for axis, size in enumerate(shape)]
    for parts in product(*choices):
        yield tuple(slice(part.start, part.stop, part.step) for part in parts)


def views(tensor: Tensor, region: Region | None) -> list[Tensor]:
    """Views of the region that share memory with `tensor`; writing to them writes to it. `None` gives the tensor itself."""
    if region is None:
        return [tensor]
    return [tensor[box] for box in boxes(tuple(tensor.shape), region)]


def covers(shape: tuple[int, ...], regions: Iterable[Region | None]) -> bool:
    """Whether disjoint regions together are the whole tensor."""
    return sum(elements_of(shape, region) for region in regions) == prod(shape)


def parted(shape: tuple[int, ...], regions: Iterable[Region | None]) -> bool:
    """Whether the regions are disjoint and together are the whole tensor: law 1 for one parameter, checked element by element by axis.

    Uses a small boolean grid of the cells that the ranges' borders cut, so that a 7B model's tensors cost nothing.
    """
    regions = list(regions)
    if not covers(shape, regions):
        return False
    return all(not overlap(a, b) for i, a in enumerate(regions) for b in regions[i + 1 :])


def overlap(a: Region | None, b: Region | None) -> bool:
    """Whether two regions of one tensor share an element."""
    if a is None or b is None:
        return True
    left, right = _by_axis(a), _by_axis(b)
    for axis in left.keys() & right.keys():
        if not any(_ranges_meet(one, other) for one in left[axis] for other in right[axis]):
            return False
    return True


def _ranges_meet(a: range, b: range) -> bool:
    if a.start >= b.stop or b.start >= a.stop:
        return False
    small, large = sorted((a, b), key=len)
    return any(index in large for index in small)
