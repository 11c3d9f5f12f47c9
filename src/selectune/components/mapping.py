"""From a model to its map: each parameter's place, the regions of fused tensors, tied names; law 1 is checked before a map is given out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from selectune.components import fused
from selectune.components.component import Component, ComponentMap
from selectune.components.naming import Place, adapter_name, names, place
from selectune.components.slices import Region, elements_of, parted, region_shape
from selectune.components.structure import Structure, read_structure
from selectune.errors import ModelError
from selectune.hashing import dtype_name
from selectune.network import bare, hosts, parameters, quantised

if TYPE_CHECKING:
    from torch import Tensor, nn


def map_model(net: nn.Module, name: str) -> ComponentMap:
    """The components of `net`, which is called `name` in messages.

    Works on the meta device too: nothing but names, shapes and the config is read. A tied tensor appears once, under its first name;
    `tied` lists the other component names that it has. Raises ModelError for a model without parameters.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> tiny = LlamaConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)
    >>> [component.name for component in map_model(LlamaForCausalLM(tiny), "tiny").components][:3]
    ['language.embed', 'language.layers.0.attn.q', 'language.layers.0.attn.k']
    """
    net = bare(net)
    found = parameters(net, aliases=True)
    if not found:
        raise ModelError("the model has no parameters", where=name)
    structure = read_structure(net)
    beside = hosts(net)
    places = names(structure, [alias for alias in found if alias not in beside])
    components: list[Component] = []
    groups = _identities(found)
    for first, aliases in groups.items():
        if first in beside:
            components.append(_added(structure, first, beside[first], found[first]))
        else:
            components += _components(structure, aliases, places, found[first])
    shapes = {first: tuple(found[first].shape) for first in groups}
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


def _identities(found: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """First name of every parameter: all its names."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in found.items():
        by_identity.setdefault(id(parameter), []).append(name)
    return {aliases[0]: aliases for aliases in by_identity.values()}


def _components(structure: Structure, aliases: list[str], places: Mapping[str, Place], parameter: Tensor) -> Iterator[Component]:
    shape, dtype, held = tuple(parameter.shape), dtype_name(parameter.dtype), quantised(parameter)
    own, *others = [_parts(structure, alias, places[alias], parameter) for alias in aliases]
    for index, (name, region) in enumerate(own):
        tied = {other[index][0] for other in others if len(other) == len(own) and other[index][0] != name}
        yield Component(
            name=name,
            parameter=aliases[0],
            slice=region,
            shape=region_shape(shape, region),
            elements=elements_of(shape, region),
            tied=tuple(sorted(tied)),
            dtype=dtype,
            quantised=held,
        )


def _added(structure: Structure, name: str, host: str, parameter: Tensor) -> Component:
    """A parameter that a wrapper added: `language.layers.3.adapter.attn.q.lora_A.default`."""
    return Component(
        name=adapter_name(place(structure, host).name, name, host),
        parameter=name,
        slice=None,
        shape=tuple(parameter.shape),
        elements=parameter.numel(),
        tied=(),
        dtype=dtype_name(parameter.dtype),
        quantised=quantised(parameter),
    )


def _parts(structure: Structure, parameter: str, where: Place, values: Tensor) -> list[tuple[str, Region | None]]:
    if quantised(values) is not None and not values.is_floating_point():
        return [(where.name, None)]  # bits are packed: rows and columns are not what they were
    shape = tuple(values.shape)
    owner, _, leaf = parameter.rpartition(".")
    module = structure.modules[owner]
    # A Linear is split by the module above it; a packed or bare parameter by the module that owns it.
    above = structure.modules[owner.rpartition(".")[0]] if leaf in {"weight", "bias"} else module
    tensor = fused.Tensor(shape=shape, leaf=leaf, owner=module, splitter=above, config=where.tower.config if where.tower else None)
    return list(fused.parts(where.name, tensor))
