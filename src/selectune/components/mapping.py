"""From a model to its map: each parameter's place, the regions of fused tensors, tied names; law 1 is checked before a map is given out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from selectune.components import fused
from selectune.components.component import Component, ComponentMap
from selectune.components.naming import Place, names
from selectune.components.slices import Region, elements_of, parted, region_shape
from selectune.components.structure import Structure, read_structure
from selectune.errors import ModelError
from selectune.hashing import dtype_name

if TYPE_CHECKING:
    from torch import nn


def map_model(net: nn.Module, name: str) -> ComponentMap:
    """The components of `net`, which is called `name` in messages.

    Works on the meta device too: nothing but names, shapes and the config is read. A tied tensor appears once, under its first name;
    `tied` lists the other component names that it has. Raises ModelError for a model without parameters.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> tiny = LlamaConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)
    >>> [component.name for component in map_model(LlamaForCausalLM(tiny), "tiny").components][:3]
    ['language.embed', 'language.layers.0.attn.q', 'language.layers.0.attn.k']
    """
    groups = _identities(net)
    if not groups:
        raise ModelError("the model has no parameters", where=name)
    structure = read_structure(net)
    places = names(structure, [alias for aliases in groups.values() for alias in aliases])
    parameters = dict(net.named_parameters())
    components: list[Component] = []
    for first, aliases in groups.items():
        parameter = parameters[first]
        components += _components(structure, first, aliases, places, (tuple(parameter.shape), dtype_name(parameter.dtype)))
    shapes = {first: tuple(parameters[first].shape) for first in groups}
    _law_one(components, shapes, name)
    return ComponentMap(model=name, components=tuple(components), shapes=shapes)


def _law_one(components: list[Component], shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Every parameter element has exactly one component; anything else is a mistake in a layout, and no selection could be trusted."""
    regions: dict[str, list[Region | None]] = {}
    for component in components:
        regions.setdefault(component.parameter, []).append(component.slice)
    for parameter, shape in shapes.items():
        if not parted(shape, regions.get(parameter, [])):
            raise ModelError(f"the components of {parameter} {shape} do not cover it exactly once", where=model)


def _identities(net: nn.Module) -> dict[str, list[str]]:
    """First name of every parameter: all its names."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    return {aliases[0]: aliases for aliases in by_identity.values()}


def _components(
    structure: Structure, first: str, aliases: list[str], places: Mapping[str, Place], tensor: tuple[tuple[int, ...], str]
) -> Iterator[Component]:
    shape, dtype = tensor
    own = list(_parts(structure, first, places[first], shape))
    others = [list(_parts(structure, alias, places[alias], shape)) for alias in aliases[1:]]
    for index, (name, region) in enumerate(own):
        tied = {other[index][0] for other in others if len(other) == len(own) and other[index][0] != name}
        yield Component(
            name=name,
            parameter=first,
            slice=region,
            shape=region_shape(shape, region),
            elements=elements_of(shape, region),
            tied=tuple(sorted(tied)),
            dtype=dtype,
        )


def _parts(structure: Structure, parameter: str, place: Place, shape: tuple[int, ...]) -> list[tuple[str, Region | None]]:
    owner, _, leaf = parameter.rpartition(".")
    module = structure.modules[owner]
    # A Linear is split by the module above it; a packed or bare parameter by the module that owns it.
    above = structure.modules[owner.rpartition(".")[0]] if leaf in {"weight", "bias"} else module
    tensor = fused.Tensor(shape=shape, leaf=leaf, owner=module, splitter=above, config=place.tower.config if place.tower else None)
    return list(fused.parts(place.name, tensor))
