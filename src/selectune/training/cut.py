"""Nothing below the first trained layer changes, so what enters that layer is computed once for each sample.

Later epochs begin at the cut: the layers below hand on what they get, the kept states take its place at the door of the first trained
layer, and the model does the rest itself (masks, rotary tables, later layers, head). Whether that gives the model's own logits is
settled before step 1, as for the other shortcuts.

A state is known by what made it: the sample's tokens and pictures, and the bytes of every tensor outside the layers from the cut on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.components import language_layer
from selectune.hashing import digest, tensor_digest
from selectune.network import state, walk
from selectune.training.content import neighbours, sample_digest
from selectune.training.features import settings_digest
from selectune.training.store import Store

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model
    from selectune.records import Encoded

_LATE = ("head", "language.norm")


class _Reached(Exception):
    """The forward pass has come to the cut."""


def first_layer(selection: Selection) -> int:
    """The first layer of the language tower that anything selected needs: 0 where something before the layers is selected."""
    found = [(language_layer(component.name), component.name) for component in selection.components]
    if any(layer is None and name not in _LATE and not name.startswith("head.") for layer, name in found):
        return 0
    return min((layer for layer, _ in found if layer is not None), default=0)


class Cut:
    """The states that enter one layer, kept by sample."""

    def __init__(
        self, model: Model, layers: nn.ModuleList, index: int, store: Store, samples: Sequence[Encoded], *, below: str | None = None
    ) -> None:
        """`below`: the `digest_below` of this very moment, where it is known."""
        self._layers = layers
        self._index = index
        self._store = store
        self._groups = neighbours(samples)
        self.index = index
        """The first layer that is computed."""
        self._below = below or digest_below(model, index)
        self._keys = {sample.record_id: (self._below, sample_digest(sample)) for sample in samples}

    def states(self, samples: Sequence[Encoded], run: Callable[[Sequence[Encoded]], None]) -> list[Tensor]:
        """What enters the layer for each sample, (its length, hidden size); `run` sends samples through the model, right-padded."""
        found: dict[str, Tensor] = {}
        for sample in samples:
            if sample.record_id in found:
                continue
            kept = self._store.find(self._keys[sample.record_id])
            if kept is not None:
                found[sample.record_id] = kept["states"]
                continue
            group = self._groups[sample.record_id]
            for one, states in zip(group, self._compute(group, run), strict=True):
                found[one.record_id] = states
                if self._keys[one.record_id] not in self._store:
                    self._store.keep(self._keys[one.record_id], {"states": states})
        return [found[sample.record_id] for sample in samples]

    @torch.no_grad()
    def _compute(self, group: Sequence[Encoded], run: Callable[[Sequence[Encoded]], None]) -> list[Tensor]:
        with entering(self._layers, self._index, stop=True) as seen:
            run(group)
        return [states[: len(sample.input_ids)].clone() for states, sample in zip(seen[0], group, strict=True)]

    @contextmanager
    def entered(self, states: Sequence[Tensor], width: int) -> Iterator[None]:
        """Inside, a forward pass over these samples, right-padded to `width`, begins at the cut."""
        whole = states[0].new_zeros((len(states), width, states[0].shape[-1]))
        for row, one in enumerate(states):
            whole[row, : min(width, len(one))] = one[:width]
        with begun(self._layers, self._index, whole):
            yield


@contextmanager
def begun(layers: nn.ModuleList, index: int, states: Tensor) -> Iterator[None]:
    """Inside, a forward pass begins at layer `index`, which gets `states` (rows, length, hidden); those below hand on what they get."""

    def enter(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((states, *inputs[1:]), options) if inputs else (inputs, {**options, "hidden_states": states})

    handle = layers[index].register_forward_pre_hook(enter, with_kwargs=True)
    below = list(layers[:index])
    before = [layer.__dict__.get("forward") for layer in below]
    for layer in below:
        layer.forward = _hand_on
    try:
        yield
    finally:
        handle.remove()
        for layer, forward in zip(below, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


@contextmanager
def entering(layers: nn.ModuleList, index: int, *, stop: bool = False) -> Iterator[list[Tensor]]:
    """Inside, what enters layer `index` in each forward pass is put into the list; with `stop` the first pass, and the block, end there."""
    seen: list[Tensor] = []

    def look(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append(inputs[0] if inputs else options["hidden_states"])
        if stop:
            raise _Reached

    handle = layers[index].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    except _Reached:
        pass
    finally:
        handle.remove()


def _hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def find_layers(model: Model, index: int) -> nn.ModuleList | None:
    """The module list whose item `index` is that layer of the language tower; None where the layers are no plain list."""
    inside = [component.parameter for component in model.map.components if component.name.startswith(f"language.layers.{index}.")]
    for place in walk(model.net):
        if isinstance(place.module, nn.ModuleList) and inside and all(name.startswith(f"{place.path}.{index}.") for name in inside):
            return place.module
    return None


def digest_below(model: Model, index: int) -> str:
    """64 hex digits for everything that decides what enters the layer: tensors as they are now, and the image processor's settings."""
    late = {
        component.parameter
        for component in model.map.components
        if component.name in _LATE
        or component.name.startswith("head.")
        or ((layer := language_layer(component.name)) is not None and layer >= index)
    }
    # A tied head is the word embedding too, and that comes first.
    late -= {component.parameter for component in model.map.components if component.tied}
    tensors = {name: tensor_digest(tensor) for name, tensor in state(model.net).items() if name not in late}
    return digest("cut", [index, sorted(tensors.items()), settings_digest(model)])
