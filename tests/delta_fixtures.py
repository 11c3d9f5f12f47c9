"""Small models and selections for the tests of deltas and of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import nn

from selectune.components import Component, Region, Selection, elements_of, region_shape
from selectune.delta import Delta, extract, snapshot
from selectune.hashing import dtype_name, manifest
from selectune.models import Model
from selectune.network import state


def quick_disk(patch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: what a power cut would leave is not what most tests ask."""
    patch.setattr("os.fsync", lambda _: None)
    patch.setattr("selectune.registry.database.SYNCHRONOUS", "OFF")


class Tied(nn.Module):
    """A tiny language model with every kind of state: a tied head, a norm, a persistent buffer, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.q = nn.Linear(6, 8)
        self.o = nn.Linear(8, 6, bias=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("rotary", torch.arange(4.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        return cast(torch.Tensor, self.head(hidden + self.o(torch.tanh(self.q(hidden)))))


def tied(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tied:
    """The tiny model with weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tied().to(dtype)


def model_of(net: nn.Module) -> Model:
    """A `Model` around any module: no processor and no map, which deltas do not need."""
    return Model(name="tiny", net=cast(Any, net), processor=None, map=cast(Any, None), manifest=manifest(net))


def selecting(net: nn.Module, parts: Mapping[str, Region | tuple[Region, ...] | None]) -> Selection:
    """A selection of whole parameters (None) or of regions of them."""
    tensors = state(net)
    found = []
    for name, value in parts.items():
        several = value is not None and isinstance(value[0][0], tuple)
        for number, region in enumerate(cast(tuple[Region | None, ...], value if several else (value,))):
            shape = tuple(tensors[name].shape)
            found.append(
                Component(
                    name=f"{name}.{number}",
                    parameter=name,
                    slice=region,
                    shape=region_shape(shape, region),
                    elements=elements_of(shape, region),
                    tied=(),
                    dtype=dtype_name(tensors[name].dtype),
                )
            )
    return Selection(patterns=tuple(parts), components=tuple(found), full_shapes={name: tuple(tensors[name].shape) for name in parts})


def scramble(tensor: torch.Tensor, seed: int = 1) -> None:
    """Sets every bit of a tensor at random: NaN, infinities and denormals included."""
    raw = torch.randint(0, 256, (tensor.numel() * tensor.element_size(),), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        tensor.detach().copy_(raw.view(tensor.dtype).reshape(tensor.shape))


def step_of(model: Model, parts: Mapping[str, Region | tuple[Region, ...] | None], amount: float) -> tuple[Model, Delta]:
    """Adds `amount` to the parts: the child, and the delta that leads to it."""
    selection = selecting(model.net, parts)
    before = snapshot(model, selection)
    from selectune.components import views

    with torch.no_grad():
        for component in selection.components:
            for view in views(state(model.net)[component.parameter], component.slice):
                view.add_(amount)
    delta = extract(model, before, selection)
    return model.updated(manifest(model.net)), delta
