"""The names that a model's tensors have in its files, which are not always those in memory.

transformers renames, merges, cuts and turns weights when it loads a checkpoint, and takes all of that back when it saves one. Its tables
are not repeated here: its own reverse conversion runs on tensors that carry marks instead of values, and where a mark comes out is where
the component lies. A model that was loaded from files keeps to the names of those files, older ones too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from selectune.components.patterns import family
from selectune.components.slices import views
from selectune.errors import ModelError, NotYet
from selectune.hashing import dtype_name
from selectune.network import buffers, parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selectune.components.component import Component, ComponentMap


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A tensor in the files that holds a component, or some of it."""

    name: str
    whole: bool
    """Whether nothing but the component lies in that tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Tensors in memory that become tensors on disk together: mostly one that becomes one."""

    memory: tuple[str, ...]
    """By the names of the state dict."""
    disk: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What `save_pretrained` writes for a model."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """By name on disk: dtype, as safetensors writes it, and shape."""
    sources: Mapping[str, tuple[str, ...]]
    """By name on disk: the state-dict names of the tensors that it is made of."""
    first: Mapping[str, str]
    """By state-dict name, aliases of tied tensors too: the first name of that tensor in memory."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The tensors by what has to be converted together."""
        owner: dict[str, int] = {}
        members: dict[int, dict[str, None]] = {}
        for number, sources in enumerate(self.sources.values()):
            joined = dict.fromkeys(sources)
            for other in {owner[name] for name in sources if name in owner}:
                joined |= members.pop(other)
            owner |= dict.fromkeys(joined, number)
            members[number] = joined
        disk: dict[int, list[str]] = {}
        for name, sources in self.sources.items():
            disk.setdefault(owner[sources[0]], []).append(name)
        return tuple(Group(memory=tuple(members[number]), disk=tuple(names)) for number, names in disk.items())

    @cached_property
    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """By first name in memory: the tensors on disk that hold any of it."""
        found: dict[str, list[str]] = {}
        for name, sources in self.sources.items():
            for source in sources:
                found.setdefault(self.first[source], []).append(name)
        return {name: tuple(names) for name, names in found.items()}

    @cached_property
    def aliases(self) -> Mapping[str, tuple[str, ...]]:
        """By first name in memory: the other state-dict names of a tied tensor, which `save_pretrained` leaves out."""
        kept = {source for sources in self.sources.values() for source in sources}
        found: dict[str, list[str]] = {}
        for name, first in self.first.items():
            if name not in kept:
                found.setdefault(first, []).append(name)
        return {name: tuple(names) for name, names in found.items()}


def disk_names(net: PreTrainedModel, found: ComponentMap) -> tuple[tuple[Stored, ...], ...]:
    """Where each component of the map lies on disk, in the map's order; an empty row for what transformers does not save.

    `found` is the map of `net`, which may be on the meta device. Raises what `layout` raises.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from selectune.components import map_model
    >>> net = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=32))
    >>> disk_names(net, map_model(net, "tiny"))[0]
    (Stored(name='transformer.wte.weight', whole=True),)
    """
    plan = layout(net)
    parts: dict[str, list[Component]] = {}
    for component in found.components:
        parts.setdefault(component.parameter, []).append(component)
    cuts: dict[tuple[object, ...], list[tuple[tuple[int, bool], ...]]] = {}
    rows: list[tuple[Stored, ...]] = []
    for parameter, components in parts.items():
        names = plan.holders.get(parameter, ())
        if components[0].slice is None or len(names) < 2:
            alone = components[0].slice is None
            row = tuple(Stored(name=name, whole=alone and len(plan.sources[name]) == 1) for name in names)
            rows += [row] * len(components)
            continue
        # Layers are alike: one of them is cut, and the others take over where its parts came out.
        key = (found.shapes[parameter], tuple(component.slice for component in components), tuple(map(family, names)))
        if key not in cuts:
            cuts[key] = _cut(net, plan, parameter, components)
        rows += [tuple(Stored(name=names[at], whole=whole) for at, whole in cut) for cut in cuts[key]]
    return tuple(rows)


def layout(net: PreTrainedModel) -> Layout:
    """What `net.save_pretrained` would write. Reads no values.

    Raises ModelError for a model that transformers cannot save, NotYet for one whose files it cannot write back, such as a quantised one.
    """
    tensors, kept = _saved(net)
    try:
        made = _reverted(net, {name: _marked(tensors[name], name) for name in kept})
    except (ValueError, NotImplementedError) as error:
        raise NotYet(
            f"transformers cannot take back how it was loaded ({error})",
            where=type(net).__name__,
            then="Load it from files that are not quantised.",
        ) from error
    first: dict[int, str] = {}
    return Layout(
        tensors={name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in made.items()},
        sources={name: tuple(tensor.sources) for name, tensor in made.items()},  # type: ignore[attr-defined]  # all are marked
        first={name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()},
    )


def tensors_of(net: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a state dict holds: parameters by each of their names, and persistent buffers, the live ones."""
    return {**parameters(net, aliases=True), **buffers(net, persistent=True)}


def revert(net: PreTrainedModel, values: Mapping[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors on disk called `names` that come of `values`, which are by state-dict name and hold whole groups.

    Values may be anything of the tensors' shapes. Raises ModelError where transformers makes other tensors of them.
    """
    try:
        made = _reverted(net, values)
    except (ValueError, KeyError):
        made = {}
    if made.keys() != set(names):
        # A few conversions look at what else is there: then the rest goes along, without memory.
        tensors, kept = _saved(net)
        rest = {name: torch.empty_like(tensors[name], device="meta") for name in kept if name not in values}
        made = _reverted(net, rest | dict(values))
    missing = sorted(set(names) - made.keys())
    if missing:
        what = f"transformers does not make {missing[0]} of {', '.join(sorted(values)[:3])}"
        raise ModelError(what, where=type(net).__name__, then="Save the model again with save_pretrained, and begin from that.")
    return {name: made[name] for name in names}


def alone(net: PreTrainedModel, name: str) -> tuple[str, ...]:
    """The names on disk of one tensor of the state dict, an alias of a tied one too, were it saved alone."""
    return tuple(_reverted(net, {name: torch.empty_like(tensors_of(net)[name], device="meta")}))


def follow(net: PreTrainedModel, keys: Collection[str]) -> None:
    """Makes a `net` that was built from a config save as if it had been loaded from files that hold `keys`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    conversions = get_model_conversion_mapping(net)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    state: dict[str, Any] = dict(tensors_of(net))
    for key in sorted(keys, key=dot_natural_key):
        rename_source_key(key, renamings, converters, net.base_model_prefix, state)
    net._weight_conversions = [one for one in conversions if one.was_used()]  # type: ignore[assignment]  # as loading leaves it


def in_files(name: str, keys: Collection[str], prefix: str) -> str | None:
    """`name` as files that hold `keys` spell it; None where they do not have it.

    Files may have been written for the model without its head, so that names lack its `prefix` (GPT-2's do): loading adds it, saving does
    not take it away.
    """
    return next((one for one in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}") if one in keys), None)


class _Marked(torch.Tensor):
    """A tensor without values that knows which tensors it was made of, whatever was done to them."""

    sources: dict[str, None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]  # torch has no types here
        sources: dict[str, None] = {}
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, cls):
                sources |= one.sources
        for one in tree_leaves(result):
            if isinstance(one, cls):
                one.sources = sources
        return result


def _marked(tensor: torch.Tensor, name: str) -> _Marked:
    marked = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta").as_subclass(_Marked)
    marked.sources = {name: None}
    return marked


def _saved(net: PreTrainedModel) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The live tensors by each of their names, and the names of those that `save_pretrained` keeps."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    tensors = tensors_of(net)
    # Ties are found by memory, of which the meta device has none: stand-ins with the same ties have some.
    stand_ins = {identity: torch.empty(1, device="cpu") for identity in {id(value) for value in tensors.values()}}
    left = {name: stand_ins[id(value)] for name, value in tensors.items()}
    for name in net._keys_to_ignore_on_save or ():
        left.pop(name, None)
    try:
        return tensors, list(remove_tied_weights_from_state_dict(left, net))
    except RuntimeError as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ModelError(
            f"transformers does not save it ({reason[:300]})", where=type(net).__name__, then="Cut ties that its class does not declare."
        ) from error


def _reverted(net: PreTrainedModel, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(net, dict(values)))


def _cut(net: PreTrainedModel, plan: Layout, parameter: str, components: Sequence[Component]) -> list[tuple[tuple[int, bool], ...]]:
    """For each part of one parameter: which of the parameter's tensors on disk hold any of it, and whether nothing else is in them."""
    names = plan.holders[parameter]
    (group,) = [group for group in plan.groups if names[0] in group.disk]
    axes = {axis for component in components for axis, *_ in component.slice or ()}
    try:
        # Where no part ends along an axis, one index stands for all of them: packed experts are hundreds of millions of numbers.
        made = revert(net, _tags(net, plan, group, (parameter, components), axes), group.disk)
    except (RuntimeError, ValueError, IndexError):
        made = revert(net, _tags(net, plan, group, (parameter, components), None), group.disk)
    inside = [frozenset(torch.unique(made[name]).tolist()) for name in names]
    return [tuple((at, tags == {number}) for at, tags in enumerate(inside) if number in tags) for number, _ in enumerate(components)]


def _tags(
    net: PreTrainedModel, plan: Layout, group: Group, part: tuple[str, Iterable[Component]], axes: Collection[int] | None
) -> dict[str, torch.Tensor]:
    """The group's tensors with numbers of components for values, and -1 elsewhere; axes other than `axes` have length 1."""
    tensors = tensors_of(net)
    parameter, components = part
    tags: dict[str, torch.Tensor] = {}
    for name in group.memory:
        shape = [size if axes is None or axis in axes else 1 for axis, size in enumerate(tensors[name].shape)]
        tags[name] = torch.full(shape, -1, dtype=torch.int32)
        if plan.first[name] == parameter:
            for number, component in enumerate(components):
                for view in views(tags[name], component.slice):
                    view.fill_(number)
    return tags
