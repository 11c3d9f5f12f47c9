"""A selection by numbers: weight matrices taken by their singular values, up to a share of the elements.

* `kappa`, the condition number: largest singular value over smallest. A matrix near 1 treats all directions alike and is thought to hold
  little that training could spoil, so the lowest come first. Source: Ludwig (2025), "The condition number as a scale-invariant proxy for
  information encoding in neural units", arXiv 2506.16289 (KappaTune).
* `snr`, signal over noise: the singular values above the Marchenko-Pastur edge of noise over those below it, and that over the largest
  one. The highest come first. Source: Hartford et al. (2024), "Spectrum: targeted training on signal to noise ratio", arXiv 2406.06623.

A part of a fused tensor is a matrix of its own, and so is one expert of many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from selectune.components.patterns import family
from selectune.components.slices import Region
from selectune.errors import NoMatch
from selectune.network import parameters, whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from selectune.components.component import Selection

IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""

By = Literal["kappa", "snr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """One component, by the number of its matrix."""

    name: str
    number: float
    """Infinite for a matrix without full rank (kappa), or without any noise (snr); the mean where a name holds several matrices."""
    elements: int
    """With what stands beside the matrix under the same name."""
    taken: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which components were taken, and why."""

    by: By
    share: float
    """Of the elements that were to choose from, at most."""
    ranked: tuple[Ranked, ...]
    """Everything that there was to choose from, the best first; by family where the share is of each."""

    @property
    def names(self) -> tuple[str, ...]:
        """The components that were taken."""
        return tuple(one.name for one in self.ranked if one.taken)

    @property
    def about(self) -> str:
        """What was chosen, in a sentence."""
        taken = [one for one in self.ranked if one.taken]
        elements, of = sum(one.elements for one in taken), sum(one.elements for one in self.ranked)
        what = {"kappa": "the lowest condition number", "snr": "the highest signal-to-noise ratio"}[self.by]
        shown = ", ".join(f"{one.name} ({one.number:.4g})" for one in taken[:3])
        return f"{len(taken)} of {len(self.ranked)} matrices, {elements / of:.1%} of their elements, by {what}: {shown}" + (
            ", …" if len(taken) > 3 else ""
        )


def choose_by(
    net: nn.Module, pool: Selection, by: By, share: float, *, each: Literal["all", "family"] | None = None, where: str = "choose"
) -> Choice:
    """Takes components of `pool` in the order of their numbers, as long as they are at most `share` of the elements.

    Only what has a matrix is there to choose from; its elements are what `share` is of. `each` says whether of all together or of each
    family; None: all for kappa, family for snr. Values are computed in fp32 where the weights are: for one machine and thread count the
    choice is always the same. Raises NoMatch where not even the first one fits.
    """
    groups: dict[str, list[tuple[str, float, int]]] = {}
    per_family = (each or ("all" if by == "kappa" else "family")) == "family"
    for name, number, elements in _numbers(net, pool, by):
        groups.setdefault(family(name) if per_family else "", []).append((name, number, elements))
    if not groups:
        raise NoMatch("there is no weight matrix to choose from", where=where, then="Name components that have one.")
    ranked: list[Ranked] = []
    for rows in groups.values():
        ranked += _taken(rows, share, lowest=by == "kappa")
    if not any(one.taken for one in ranked):
        least = min(rows[0][2] / sum(row[2] for row in rows) for rows in groups.values())
        raise NoMatch(
            f"a share of {share:.2%} is less than one matrix{' of any family' if per_family else ''}",
            where=where,
            then=f"Raise it, to about {least:.2%} at least, or name more to choose from.",
        )
    return Choice(by=by, share=share, ranked=tuple(ranked))


def _taken(rows: Sequence[tuple[str, float, int]], share: float, *, lowest: bool) -> list[Ranked]:
    """The rows in order, taken until the next one would be too much. Equal numbers keep the model's order."""
    ordered = sorted(rows, key=lambda row: row[1] if lowest else -row[1])
    limit = share * sum(elements for _, _, elements in rows)
    found, used, full = [], 0, False
    for name, number, elements in ordered:
        # Half an element of slack: 0.1 * 30 is 3.0000000000000004, and 0.7 * 10 is 7 - 1e-15.
        full = full or used + elements > limit + 0.5
        used += 0 if full else elements
        found.append(Ranked(name=name, number=number, elements=elements, taken=not full))
    return found


def _numbers(net: nn.Module, pool: Selection, by: By) -> list[tuple[str, float, int]]:
    """(name, number, elements) of every name that has a matrix, in the model's order."""
    measure: Callable[[Tensor], float] = {"kappa": condition_number, "snr": signal_to_noise}[by]
    found = parameters(net)
    numbers: dict[str, list[float]] = {}
    elements: dict[str, int] = {}
    for component in pool.components:
        elements[component.name] = elements.get(component.name, 0) + component.elements
        matrix = matrix_of(whole(found[component.parameter]), component.slice)
        if matrix is not None:
            numbers.setdefault(component.name, []).append(measure(matrix))
    return [(name, sum(values) / len(values), elements[name]) for name, values in numbers.items()]


def matrix_of(tensor: Tensor, region: Region | None) -> Tensor | None:
    """The region as a matrix in fp32: leading axes of length 1 are dropped, those behind the second are one; None for a vector."""
    import torch

    ranges: dict[int, list[range]] = {}
    for axis, start, stop, step in region or ():
        ranges.setdefault(axis, []).append(range(start, stop, step))
    for axis, parts in ranges.items():
        tensor = tensor.index_select(axis, torch.tensor([index for part in parts for index in part], device=tensor.device))
    while tensor.ndim > 2 and tensor.shape[0] == 1:
        tensor = tensor.squeeze(0)
    return tensor.float().flatten(1) if tensor.ndim > 1 else None


def condition_number(matrix: Tensor) -> float:
    """Largest over smallest singular value; infinite where the smallest is zero, or cannot be told from it in fp32."""
    import torch

    values = torch.linalg.svdvals(matrix)
    largest, smallest = values[0].item(), values[-1].item()
    return largest / smallest if smallest > torch.finfo(torch.float32).eps * largest * max(matrix.shape) else math.inf


def signal_to_noise(matrix: Tensor) -> float:
    """The sum of the singular values above the edge over the sum of those below, divided by the largest; infinite without any below, 0 for
    zeros alone.

    The edge is ``sigma * (1 + sqrt(beta))``: beta is the shorter side over the longer one, sigma the interquartile range of the singular
    values over 1.349.
    """
    import torch

    values = torch.linalg.svdvals(matrix)
    if not values[0]:
        return 0.0
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device))
    sigma = (quartiles[1] - quartiles[0]).item() / IQR_OF_NORMAL
    edge = sigma * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    noise = values[values <= edge].sum().item()
    return values[values > edge].sum().item() / noise / values[0].item() if noise > 0 else math.inf
