"""Two updates of one parent made into one: composed bit by bit where nothing moved in both, else by a strategy that is named.

Strategies work on the differences ``new - old`` of each update, in fp32 (fp64 for tensors of 32 bits and more), and round once into the
parent's dtype; where the combined difference is zero the parent keeps its bits. What comes out is a candidate: that two updates each did no
harm says nothing about both together.

* `Linear`: the weighted sum of the differences. With weights of 0.5 it is the mean of the two models.
* `Ties`: of each update's tensor only the `density` largest differences stay; for each element the sign with the larger sum is elected, and
  the weighted mean of those that agree with it is taken. Trimmed tensor by tensor, not over the whole update at once. Source: Yadav et al.
  (2023), "TIES-Merging: Resolving Interference When Merging Models", arXiv 2306.01708.
* `Dare`: each difference is dropped with probability `drop`, those left are divided by ``1 - drop``, and the weighted sum is taken. Source:
  Yu et al. (2023), "Language Models are Super Mario", arXiv 2311.03099.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from selectune.components.slices import Region, mask
from selectune.delta.bits import bit_view
from selectune.delta.format import Delta
from selectune.delta.values import Read, build, checked, child_of, parts_of, real, regions_of, rounded, shift, wide
from selectune.errors import DeltaError, InputError, WrongParent
from selectune.hashing import Manifest, tensor_digest

__all__ = ["Dare", "Linear", "Strategy", "Ties", "merge", "overlaps"]

_WHERE = "merge"


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """The weighted sum of the differences."""

    weights: tuple[float, float] = (0.5, 0.5)
    """For the first update and for the second."""
    name = "linear"

    def __post_init__(self) -> None:
        _check_weights(self.weights)

    def combine(self, differences: Sequence[Tensor], seeds: Sequence[int], inside: Sequence[Tensor]) -> Tensor:
        """The sum."""
        del seeds, inside
        return _weighted(differences, self.weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ties:
    """Trim, elect a sign, and take the mean of those that agree."""

    weights: tuple[float, float] = (1.0, 1.0)
    density: float = 0.2
    """The share of each update's part of a tensor that stays, the largest differences first."""
    name = "ties"

    def __post_init__(self) -> None:
        _check_weights(self.weights)
        if not 0 < self.density <= 1:
            raise InputError(f"density {self.density} is no share above 0", where=_WHERE, then="Use a share such as 0.2.")

    def combine(self, differences: Sequence[Tensor], seeds: Sequence[int], inside: Sequence[Tensor]) -> Tensor:
        """The weighted mean, element by element, of the trimmed differences that have the elected sign; zero where none is left."""
        del seeds
        trimmed = [self._trimmed(one, int(part.sum())) for one, part in zip(differences, inside, strict=True)]
        scaled = torch.stack([one * weight for one, weight in zip(trimmed, self.weights, strict=True)])
        elected = torch.where(scaled.sum(0) >= 0, 1.0, -1.0).to(scaled.dtype)
        agree = (scaled.sign() == elected) & (scaled != 0)
        share = torch.tensor(self.weights, dtype=scaled.dtype).reshape(-1, *[1] * (scaled.ndim - 1)).expand_as(scaled)
        total = torch.where(agree, share, 0).sum(0)
        return torch.where(total != 0, torch.where(agree, scaled, 0).sum(0) / torch.where(total != 0, total, 1), 0)

    def _trimmed(self, difference: Tensor, elements: int) -> Tensor:
        """The largest of `elements` differences, at least one; of equal ones the first."""
        keep = max(1, int(self.density * elements))
        flat = difference.reshape(-1)
        kept = torch.argsort(flat.abs(), descending=True, stable=True)[:keep]
        result = torch.zeros_like(flat)
        result[kept] = flat[kept]
        return result.reshape(difference.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dare:
    """Drop at random, rescale, and take the weighted sum."""

    weights: tuple[float, float] = (0.5, 0.5)
    drop: float = 0.9
    """The probability with which a difference is dropped."""
    seed: int = 0
    """Of the random numbers; each tensor of each update has numbers of its own, whichever update is named first."""
    name = "dare"

    def __post_init__(self) -> None:
        _check_weights(self.weights)
        if not 0 <= self.drop < 1:
            raise InputError(f"drop {self.drop} is no probability below 1", where=_WHERE, then="Use one such as 0.9.")

    def combine(self, differences: Sequence[Tensor], seeds: Sequence[int], inside: Sequence[Tensor]) -> Tensor:
        """The sum of what was not dropped."""
        del inside
        return _weighted([self.thinned(one, seed) for one, seed in zip(differences, seeds, strict=True)], self.weights)

    def thinned(self, difference: Tensor, seed: int) -> Tensor:
        """The difference without what is dropped, rescaled."""
        kept = torch.rand(difference.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) >= self.drop
        return torch.where(kept, difference / (1 - self.drop), 0)


Strategy = Linear | Ties | Dare


def _check_weights(weights: tuple[float, float]) -> None:
    if len(weights) != 2 or not all(math.isfinite(weight) for weight in weights):
        raise InputError(f"weights {list(weights)} are not two finite numbers", where=_WHERE, then="Use two such as 0.5 and 0.5.")


def _weighted(differences: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([one * weight for one, weight in zip(differences, weights, strict=True)]).sum(0)


def overlaps(first: Delta, second: Delta) -> Mapping[str, int]:
    """By tensor, how many elements moved in both deltas. Reads the deltas alone. Raises WrongParent where their parents differ."""
    _check_parents(first, second)
    found = {}
    for name in sorted(first.tensors.keys() & second.tensors.keys()):
        one = first.tensors[name]
        both = int(((shift([first], name, one) != 0) & (shift([second], name, one) != 0)).sum())
        if both:
            found[name] = both
    return found


def merge(
    first: Delta,
    second: Delta,
    parent: Manifest,
    read: Read,
    strategy: Strategy | None = None,
    *,
    meta: Mapping[str, Any] | None = None,
) -> Delta:
    """The delta from the common parent that does both; either order gives the same one, the strategy's weights put in the same order.

    `read` gives the parent's tensors, of which only some that both touch are asked for (all that either touches, with a strategy). Without
    a strategy the bits are composed, which needs elements of their own. Raises WrongParent where the deltas have not one parent, DeltaError
    where elements moved in both and no strategy is named, where integers would have to be combined, and where a number overflows.
    """
    _check_parents(first, second)
    if parent.id != first.parent:
        raise WrongParent(
            f"the updates are of model {first.parent[:12]}, this is {parent.id[:12]}", where=_WHERE, then="Give their parent."
        )
    if strategy is None and (shared := overlaps(first, second)):
        total, shown = sum(shared.values()), ", ".join(list(shared)[:3])
        raise DeltaError(
            f"{total:,} elements of {len(shared)} tensors moved in both updates ({shown}{', …' if len(shared) > 3 else ''})",
            where=_WHERE,
            then="Name a strategy: linear, ties or dare. What comes out is another model than either, for a gate to judge.",
        )
    swapped = (first.child, first.digest) > (second.child, second.digest)
    deltas = (second, first) if swapped else (first, second)
    if strategy is not None and swapped:
        strategy = _with_weights(strategy, strategy.weights[::-1])
    names = {name: regions_of(deltas, name) for name in {**first.tensors, **second.tensors}}

    def change(name: str) -> tuple[Tensor, str]:
        return _composed(deltas, name, read) if strategy is None else _combined(deltas, name, names[name], read, strategy)

    patterns = tuple(dict.fromkeys(pattern for delta in deltas for pattern in delta.patterns))
    if any(pattern.startswith("!") for pattern in patterns):
        patterns = ()  # an exclusion of one would take from the other; each one's own are in `meta`
    return build(parent, names, change, patterns=patterns, meta={**(meta or {}), "merged": _note(deltas, strategy)})


def _note(deltas: Sequence[Delta], strategy: Strategy | None) -> dict[str, Any]:
    """What the merged delta says of how it was made."""
    settings = {} if strategy is None else {key: list(one) if isinstance(one, tuple) else one for key, one in asdict(strategy).items()}
    return {
        "strategy": "disjoint" if strategy is None else strategy.name,
        "settings": settings,
        "of": [{"delta": delta.digest, "child": delta.child, "patterns": list(delta.patterns)} for delta in deltas],
    }


def _with_weights(strategy: Strategy, weights: tuple[float, ...]) -> Strategy:
    fields = asdict(strategy) | {"weights": weights}
    return type(strategy)(**fields)


def _check_parents(first: Delta, second: Delta) -> None:
    if first.parent != second.parent:
        raise WrongParent(
            f"one update is of model {first.parent[:12]}, the other of {second.parent[:12]}",
            where=_WHERE,
            then="Rebase one onto the parent of the other first: selectune rebase.",
        )


def _composed(deltas: Sequence[Delta], name: str, read: Read) -> tuple[Tensor, str]:
    mine = [delta for delta in deltas if name in delta.tensors]
    one = mine[0].tensors[name]
    bits = shift(mine, name, one)
    if len(mine) == 1:
        return bits, one.new
    return bits, tensor_digest(child_of(checked(read, name, one.old, _WHERE), bits))


def _combined(deltas: Sequence[Delta], name: str, regions: Sequence[Region | None], read: Read, strategy: Strategy) -> tuple[Tensor, str]:
    """A tensor's xor and digest after the strategy, worked out over all of it; outside the regions every difference is zero."""
    one = next(delta.tensors[name] for delta in deltas if name in delta.tensors)
    start = checked(read, name, one.old, _WHERE)
    shifts = [shift([delta] if name in delta.tensors else [], name, one) for delta in deltas]
    if not any(bool(bits.any()) for bits in shifts):
        return shifts[0], one.old
    kind = wide(real(name, one.dtype, _WHERE))
    old = start.to(kind)
    # Only what moved differs: where bits agree the difference is zero, also of infinities.
    differences = [torch.where(bits != 0, child_of(start, bits).to(kind) - old, 0) for bits in shifts]
    seeds = [_seed(strategy, delta, name) for delta in deltas]
    # Which elements each delta could have moved.
    inside = [mask(one.shape, (part.slice for part in parts_of(delta, name))) for delta in deltas]
    total = strategy.combine(differences, seeds, inside)
    new = rounded(start, old + total, total != 0, name=name, where=_WHERE)
    return bit_view(start.contiguous()) ^ bit_view(new), tensor_digest(new)


def _seed(strategy: Strategy, delta: Delta, name: str) -> int:
    """A seed of its own for each tensor of each update."""
    number = strategy.seed if isinstance(strategy, Dare) else 0
    return int.from_bytes(hashlib.sha256(f"{number}\n{delta.digest}\n{name}".encode()).digest()[:8], "little") >> 1
