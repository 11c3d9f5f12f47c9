"""A part of a tensor: ranges on one axis add up, ranges on different axes cross.

A region is a tuple of `(axis, start, stop, step)`. `((0, 0, 4, 1), (0, 8, 12, 1))` is rows 0-3 and 8-11;
`((0, 7, 8, 1), (1, 0, 64, 1))` is rows 0-63 of expert 7. A region always has at least one element.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

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


@lru_cache(maxsize=4096)  # layers are alike: thousands of regions of packed experts come again in each
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


def mask(shape: tuple[int, ...], regions: Iterable[Region | None]) -> Tensor:
    """A bool tensor of `shape`, on the CPU: true inside the regions."""
    import torch

    inside = torch.zeros(shape, dtype=torch.bool)
    for region in regions:
        for view in views(inside, region):
            view.fill_(True)
    return inside


def covers(shape: tuple[int, ...], regions: Iterable[Region | None]) -> bool:
    """Whether disjoint regions together are the whole tensor."""
    return sum(elements_of(shape, region) for region in regions) == prod(shape)


def parted(shape: tuple[int, ...], regions: Iterable[Region | None]) -> bool:
    """Whether the regions are disjoint and together are the whole tensor: law 1 for one parameter.

    Indices of an axis that lie in the same ranges are one cell, so that 768 regions of a packed expert tensor are counted on a grid of
    768 cells.
    """
    return _parted(shape, tuple(regions))


@lru_cache(maxsize=256)
def _parted(shape: tuple[int, ...], regions: tuple[Region | None, ...]) -> bool:
    if len(regions) == 1 and regions[0] is None:
        return True
    if not covers(shape, regions) or None in regions:
        return False
    axes = [_by_axis(region) for region in regions if region is not None]
    cells = [_cells(size, {part for axis_parts in axes for part in axis_parts.get(axis, [])}) for axis, size in enumerate(shape)]
    grid = np.zeros([int(cell.max()) + 1 for cell in cells], dtype=np.int32)
    for axis_parts in axes:
        inside = [
            np.unique(np.concatenate([cell[part.start : part.stop : part.step] for part in axis_parts[axis]]))
            if axis in axis_parts
            else np.arange(int(cell.max()) + 1)
            for axis, cell in enumerate(cells)
        ]
        grid[np.ix_(*inside)] += 1
    return bool((grid == 1).all())


def _cells(size: int, ranges: set[range]) -> NDArray[np.intp]:
    """The cell of every index of an axis: indices that lie in exactly the same ranges share one."""
    marks = np.zeros(size, dtype=np.uint64)
    # A sum of random words tells sets of ranges apart; equal sums of different sets have odds of one in 2**64.
    words = np.random.default_rng(0).integers(1, 2**63, size=len(ranges), dtype=np.uint64)
    for part, word in zip(sorted(ranges, key=lambda part: (part.start, part.stop, part.step)), words, strict=True):
        marks[part.start : part.stop : part.step] += word
    return np.unique(marks, return_inverse=True)[1].reshape(-1)


def overlap(a: Region | None, b: Region | None) -> bool:
    """Whether two regions of one tensor share an element."""
    if a is None or b is None:
        return True
    left, right = _by_axis(a), _by_axis(b)
    return all(any(_ranges_meet(one, other) for one in left[axis] for other in right[axis]) for axis in left.keys() & right.keys())


def _ranges_meet(a: range, b: range) -> bool:
    """Whether two ranges of positive steps share a number. Nothing is counted: a range that a stranger wrote may be of 2**48."""
    if not a or not b or a.start >= b.stop or b.start >= a.stop:
        return False
    common = gcd(a.step, b.step)
    apart, odd = divmod(b.start - a.start, common)
    if odd:
        return False
    # The least number ≥ a.start that is in both when they go on without end, then the least that is not before either begins.
    period = b.step // common
    first = a.start + a.step * (apart * pow(a.step // common, -1, period) % period)
    behind = max(0, max(a.start, b.start) - first)
    first += -(-behind // (a.step * period)) * a.step * period
    return first < min(a.stop, b.stop)
