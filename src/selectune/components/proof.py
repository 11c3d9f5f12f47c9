"""The proof that a selection moved and that nothing else did.

Before step 1, `forecast` sets what will move against what the config leads one to expect. `Proof.start` keeps a digest of every
component, parameter and buffer; `Proof.check` compares. Digests are of one tensor at a time, so no second copy of the model is held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from selectune.components.component import Component, Selection
from selectune.components.expected import expected_weights
from selectune.components.mapping import map_model
from selectune.components.patterns import family
from selectune.components.slices import Region, views
from selectune.errors import SelectionViolated
from selectune.hashing import tensor_digest
from selectune.network import buffers, hold_still, parameters, whole

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """One family of the selection before step 1: what will move, and what the config says there should be."""

    family: str
    components: int
    elements: int
    """Weights and biases together."""
    weights: int
    """Elements of matrices alone, which is what `expected` counts."""
    expected: int | None
    """From layers, heads and widths in the config; None where a family's config does not say."""

    @property
    def agrees(self) -> bool | None:
        """Whether the count is the expected one; None where there is nothing to compare with."""
        return None if self.expected is None else self.expected == self.weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What a proof found to have moved."""

    components: int
    elements: int
    """Elements of the components that moved; not every one of them need have."""
    still: tuple[str, ...]
    """Selected components in which not one bit changed."""


def forecast(net: nn.Module, selection: Selection) -> tuple[Forecast, ...]:
    """The table to show before step 1: one row a family of the selection, against the expected count."""
    expected = expected_weights(net)
    rows = []
    for row in selection.table():
        entries = [component for component in selection.components if family(component.name) == row.family]
        weights = sum(entry.elements for entry in entries if len(entry.shape) > 1)
        each = expected.get(row.family)
        rows.append(
            Forecast(
                family=row.family,
                components=row.count,
                elements=row.elements,
                weights=weights,
                expected=None if each is None else each * row.count,
            )
        )
    return tuple(rows)


class Proof:
    """Digests of a model's every component and buffer, taken before training.

    >>> # proof = Proof.start(net, selection); one step; proof.check(net)
    """

    def __init__(self, selection: Selection, components: tuple[Component, ...], state: _State) -> None:
        self.selection = selection
        self._components = components
        self._before = state

    @classmethod
    def start(cls, net: nn.Module, selection: Selection) -> Proof:
        """Takes the digests. Reads every byte of the model once; a 135 M model takes about a second."""
        hold_still(net)
        components = map_model(net, "the model").components
        return cls(selection, components, _state(net, components))

    def check(self, net: nn.Module, *, still: Literal["forbid", "report"] = "forbid") -> Moved:
        """Compares `net` with what it was.

        Raises SelectionViolated that names every component or buffer outside the selection that changed, every tie that was cut, and,
        unless `still` is "report", every selected component in which nothing moved. Report is for steps that can leave a part as it is
        for good reason: an expert that saw no token, or a step smaller than the last bit of a bfloat16 weight.
        """
        after = _state(net, self._components)
        selected = {(component.name, component.parameter, component.slice) for component in self.selection.components}
        faults = [*_ties(self._before.ties, after.ties), *_buffers(self._before.buffers, after.buffers)]
        moved: dict[str, int] = {}
        for component in self._components:
            key = (component.name, component.parameter, component.slice)
            changed = self._before.parts[key] != after.parts.get(key)
            if changed and key not in selected:
                faults.append(f"{component.name} ({component.parameter}) changed and is not selected")
            elif changed:
                moved[component.name] = moved.get(component.name, 0) + component.elements
        unmoved = tuple(name for name in self.selection.names if name not in moved)
        if still == "forbid":
            faults += [f"{name} is selected and did not move" for name in unmoved]
        if faults:
            raise SelectionViolated(
                _listed(faults), where="proof of selection", then="Nothing of this step can be trusted: start again from the base."
            )
        return Moved(components=len(moved), elements=sum(moved.values()), still=unmoved)


_Key = tuple[str, str, Region | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    parts: Mapping[_Key, str]
    buffers: Mapping[str, str]
    ties: Mapping[str, str]
    """Every name of a parameter: the first name of the tensor that it is."""


def _state(net: nn.Module, components: Iterable[Component]) -> _State:
    found = parameters(net, aliases=True)
    first: dict[int, str] = {}
    ties = {name: first.setdefault(id(value), name) for name, value in found.items()}
    parts = {(c.name, c.parameter, c.slice): _digest(found[c.parameter], c) for c in components if c.parameter in found}
    # Non-persistent buffers too: rotary frequencies are in no checkpoint, and a moved one is a changed model all the same.
    others = {name: tensor_digest(value) for name, value in buffers(net).items() if not value.is_meta}
    return _State(parts=parts, buffers=others, ties=ties)


def _digest(parameter: Tensor, component: Component) -> str:
    if component.slice is None:
        return f"{parameter.dtype} {tuple(parameter.shape)} {tensor_digest(parameter.detach())}"
    total = hashlib.sha256()
    for view in views(whole(parameter), component.slice):
        total.update(tensor_digest(view).encode())
    return f"{parameter.dtype} {total.hexdigest()}"


def _ties(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    cut = [f"{name} was {one} and is a tensor of its own now" for name, one in before.items() if name in after and after[name] != one]
    gone = [f"{name} is gone" for name in before if name not in after]
    return [*cut, *gone, *(f"{name} is new" for name in after if name not in before)]


def _buffers(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    names = list(dict.fromkeys((*before, *after)))
    return [f"the buffer {name} changed" for name in names if before.get(name) != after.get(name)]


def _listed(faults: list[str]) -> str:
    rest = len(faults) - _SHOWN
    return "; ".join(faults[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
