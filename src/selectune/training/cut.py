"""Nothing below the first trained layer changes, so what enters that layer is computed once for each sample.

Later epochs begin at the cut: the layers below hand on what they get, the kept states take its place at the door of the first trained
layer, and the model does the rest itself (masks, rotary tables, later layers, head). Whether that gives the model's own logits is
settled before step 1, as for the other shortcuts.

A state is known by what made it: the sample's tokens and pictures, and the bytes of every tensor outside the layers from the cut on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.hashing import digest, tensor_digest
from selectune.network import state, walk
from selectune.training.store import Store

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model
    from selectune.records import Encoded

GROUP = 16
"""Samples that go through the lower layers at once. Groups are of neighbours by length, whatever order they are trained in: the last bits
of a product depend on its neighbours, and a resumed run must find the same ones."""

_LAYER = re.compile(r"language\.layers\.(\d+)\.")
_LATE = ("head", "language.norm")


class _Reached(Exception):
    """The forward pass has come to the cut."""


def first_layer(selection: Selection) -> int:
    """The first layer of the language tower that anything selected needs: 0 where something before the layers is selected."""
    found = [(_LAYER.match(component.name), component.name) for component in selection.components]
    if any(match is None and name not in _LATE and not name.startswith("head.") for match, name in found):
        return 0
    return min((int(match[1]) for match, _ in found if match), default=0)


class Cut:
    """The states that enter one layer, kept by sample."""

    def __init__(self, model: Model, layers: nn.ModuleList, index: int, store: Store, samples: Sequence[Encoded]) -> None:
        self._net: Any = model.net
        self._layers = layers
        self._index = index
        self._store = store
        self._samples = samples
        order = sorted(range(len(samples)), key=lambda number: (len(samples[number].input_ids), number))
        self._group = {samples[number].record_id: order[at - at % GROUP : at - at % GROUP + GROUP] for at, number in enumerate(order)}
        self.index = index
        """The first layer that is computed."""
        self._below = _digest_below(model, index)
        self._keys = {sample.record_id: _key(self._below, sample) for sample in samples}

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
            group = [self._samples[number] for number in self._group[sample.record_id]]
            for one, states in zip(group, self._compute(group, run), strict=True):
                found[one.record_id] = states
                if self._keys[one.record_id] not in self._store:
                    self._store.keep(self._keys[one.record_id], {"states": states})
        return [found[sample.record_id] for sample in samples]

    @torch.no_grad()
    def _compute(self, group: Sequence[Encoded], run: Callable[[Sequence[Encoded]], None]) -> list[Tensor]:
        seen: list[Tensor] = []

        def stop(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            seen.append(inputs[0] if inputs else options["hidden_states"])
            raise _Reached

        handle = self._layers[self._index].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            run(group)
        except _Reached:
            pass
        finally:
            handle.remove()
        return [states[: len(sample.input_ids)].clone() for states, sample in zip(seen[0], group, strict=True)]

    @contextmanager
    def entered(self, states: Sequence[Tensor], width: int) -> Iterator[None]:
        """Inside, a forward pass over these samples, right-padded to `width`, begins at the cut."""
        whole = states[0].new_zeros((len(states), width, states[0].shape[-1]))
        for row, one in enumerate(states):
            whole[row, : min(width, len(one))] = one[:width]

        def enter(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((whole, *inputs[1:]), options) if inputs else (inputs, {**options, "hidden_states": whole})

        handle = self._layers[self._index].register_forward_pre_hook(enter, with_kwargs=True)
        below = list(self._layers[: self._index])
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


def _hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def find_layers(model: Model, index: int) -> nn.ModuleList | None:
    """The module list whose item `index` is that layer of the language tower; None where the layers are no plain list."""
    inside = [component.parameter for component in model.map.components if component.name.startswith(f"language.layers.{index}.")]
    for place in walk(model.net):
        if isinstance(place.module, nn.ModuleList) and inside and all(name.startswith(f"{place.path}.{index}.") for name in inside):
            return place.module
    return None


def _digest_below(model: Model, index: int) -> str:
    """64 hex digits for everything that decides what enters the layer: tensors as they are now, and the image processor's settings."""
    late = {
        component.parameter
        for component in model.map.components
        if component.name in _LATE
        or component.name.startswith("head.")
        or ((match := _LAYER.match(component.name)) is not None and int(match[1]) >= index)
    }
    # A tied head is the word embedding too, and that comes first.
    late -= {component.parameter for component in model.map.components if component.tied}
    tensors = {name: tensor_digest(tensor) for name, tensor in state(model.net).items() if name not in late}
    processor = getattr(model.processor, "image_processor", None)
    settings = "" if processor is None else hashlib.sha256(processor.to_json_string().encode()).hexdigest()
    return digest("cut", [index, sorted(tensors.items()), settings])


def _key(below: str, sample: Encoded) -> tuple[str, str]:
    extra = sorted((name, list(values)) for name, values in sample.extra.items())
    return below, digest("sample", [sample.input_ids, [picture.digest for picture in sample.pictures], extra])
