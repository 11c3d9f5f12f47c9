"""An adapter on a selection: PEFT's matrices beside exactly the selected weights, added to them when the training ends.

The update is the same kind of delta as a full one, and the same proof holds for it. Which matrices, and what they add, is a matter of the
kind (`training.lora`, `training.osf`); putting them in, training them alone, adding them and taking them out is the same for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from selectune.components import Selection, map_model, views
from selectune.components.slices import Region
from selectune.errors import InputError, MissingPackage
from selectune.network import hosts, parameters, walk

if TYPE_CHECKING:
    from selectune.components import Component
    from selectune.recipe import Adapter

_NAME = "default"


@dataclass(frozen=True, kw_only=True)
class Files:
    """A trained adapter as PEFT keeps it, for servers that load one beside the base."""

    config: Any
    """A `peft.PeftConfig`."""
    tensors: Mapping[str, Tensor]

    def save(self, folder: Path) -> Path:
        """Writes `adapter_config.json` and `adapter_model.safetensors` into `folder`; gives it back. Raises OSError as writing does."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.tensors), str(folder / "adapter_model.safetensors"))
        self.config.save_pretrained(str(folder))
        return folder


class Kind(Protocol):
    """What one kind of adapter does in its own way."""

    title: str
    """Its name, for people."""

    def config(self, owners: Mapping[str, nn.Module]) -> Any:
        """PEFT's configuration for these weights, each with the module that holds it. Raises InputError where there is no such form, and
        ImportError without PEFT."""

    def inject(self, net: nn.Module, config: Any, name: str) -> Any:
        """Puts the matrices in and gives back PEFT's tuner, which keeps them; they add nothing yet. Raises what PEFT raises."""

    def wraps(self, module: nn.Module) -> bool:
        """Whether a module is PEFT's wrapper of this kind."""

    def confine(self, name: str, wrapper: Any, weight: Tensor, ranges: tuple[Region, ...]) -> None:
        """Lets the matrices reach the regions of a weight alone. Raises InputError where they cannot be held to them."""

    def elements(self, shape: tuple[int, ...]) -> int:
        """How many numbers are trained for a weight of this shape."""

    @property
    def words(self) -> str:
        """Its settings, in words."""


def kind_of(adapter: Adapter) -> Kind:
    """The kind that a recipe names."""
    from selectune.training.lora import Lora
    from selectune.training.osf import Osf

    kinds: Mapping[str, type[Lora] | type[Osf]] = {"lora": Lora, "osf": Osf}
    return kinds[adapter.kind](adapter)


class Beside:
    """An adapter's matrices in a network, from their making until `merge` or `remove`."""

    def __init__(self, net: nn.Module, selection: Selection, adapter: Adapter, *, seed: int) -> None:
        """Puts the matrices in, in fp32 and from `seed`; nothing changes yet.

        Raises InputError for a selection that has no such form, with the reason, and MissingPackage without PEFT.
        """
        self._net = net
        self._chosen = selection
        self._kind = kind_of(adapter)
        self._regions = _matrices(net, selection, self._kind.title)
        self._flags = {name: parameter.requires_grad for name, parameter in parameters(net).items()}
        modules = {place.path: place.module for place in walk(net)}
        owners = {name: name.rpartition(".")[0] for name in self._regions}
        self._original = {path: modules[path] for path in owners.values()}
        self._order = {path: tuple(module._parameters) for path, module in self._original.items()}
        try:
            self._config = self._kind.config({name: modules[path] for name, path in owners.items()})
        except ImportError as error:
            then = "Install it: pip install 'selectune[peft]'."
            raise MissingPackage(f"{self._kind.title} needs PEFT", where="optim.adapter", then=then) from error
        try:
            self._put_in(seed)
            self._settle()
        except BaseException:
            self.remove()
            raise

    def _put_in(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on tied weights and transposed layers, which are settled here
            torch.manual_seed(seed)
            try:
                self._tuner = self._kind.inject(self._net, self._config, _NAME)
            except (ValueError, TypeError, NotImplementedError) as error:
                raise refused(self._kind.title, f"PEFT says: {str(error)[:300]}") from error
        self._wrappers: dict[str, Any] = {
            f"{place.path}.{getattr(place.module, 'parameter_name', 'weight')}": place.module
            for place in walk(self._net)
            if place.host is None and self._kind.wraps(place.module)
        }

    def _settle(self) -> None:
        """Exactly the selected weights have matrices; these are in fp32, and reach the selected part alone."""
        odd = sorted(self._wrappers.keys() ^ self._regions.keys())
        if odd:
            raise InputError(
                f"PEFT puts {self._kind.title} on other weights than those selected: {', '.join(odd[:5])}",
                where="optim.adapter",
                then="Train this selection without an adapter.",
            )
        for name, ranges in self._regions.items():
            wrapper = self._wrappers[name]
            for part in wrapper.children():
                if part is not wrapper.base_layer:
                    part.float()
            if ranges is not None:
                self._kind.confine(name, wrapper, parameters(self._net)[name], ranges)
        names = hosts(self._net)
        trained = tuple(c for c in map_model(self._net, "the model").components if c.parameter in names)
        shapes = {component.parameter: component.shape for component in trained}
        self.selection = Selection(patterns=self._chosen.patterns, components=trained, full_shapes=shapes)
        """The adapter's matrices, as what may move while they are trained."""

    @property
    def about(self) -> str:
        """What is trained, in a sentence."""
        return (
            f"{self._kind.title} {self._kind.words}, on {len(self._regions)} weights: "
            f"{self.selection.elements:,} numbers are trained in place of {self._chosen.elements:,}; biases stay"
        )

    def files(self) -> Files:
        """The matrices in PEFT's own form."""
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(self._net, adapter_name=_NAME, state_dict=self._net.state_dict(), save_embedding_layers=False)
        return Files(
            config=self._config, tensors={f"base_model.model.{name}": tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        )

    def updates(self) -> Iterator[tuple[str, Tensor]]:
        """What is added to each weight as things stand, whole and in fp32, one after the other; gradients flow into the matrices."""
        for name, wrapper in self._wrappers.items():
            update: Tensor = wrapper.get_delta_weight(_NAME)
            yield name, update

    @torch.no_grad()
    def merge(self) -> None:
        """Adds each update to the selected part of its weight, in fp32 and rounded once, and takes the matrices out."""
        found = parameters(self._net)
        for name, update in self.updates():
            ranges = self._regions[name]
            for region in (None,) if ranges is None else ranges:
                for live, change in zip(views(found[name].detach(), region), views(update, region), strict=True):
                    live.copy_(live.float() + change.float())
        self.remove()

    def remove(self) -> None:
        """Takes the matrices out; the network is then what it was, module by module."""
        for path, module in self._original.items():
            parent, _, child = path.rpartition(".")
            setattr(self._net.get_submodule(parent), child, module)
            # PEFT takes an experts' tensor out of its module for each forward pass, and puts it back behind the others.
            found = {leaf: module._parameters.pop(leaf) for leaf in self._order[path]}
            module._parameters.update(found)
        if hasattr(self._net, "peft_config"):
            del self._net.peft_config
        for name, parameter in parameters(self._net).items():
            parameter.requires_grad_(self._flags[name])


def matrix_elements(selection: Selection, adapter: Adapter) -> int:
    """How many numbers an adapter on a selection trains."""
    kind = kind_of(adapter)
    shapes = (selection.full_shapes[name] for name in selection.parameters)
    return sum(kind.elements(shape) for shape in shapes if len(shape) > 1)


def _matrices(net: nn.Module, selection: Selection, title: str) -> dict[str, tuple[Region, ...] | None]:
    """The selected weights that get matrices, with the part of each; biases and norms beside them stay as they are."""
    found = parameters(net)
    chosen = {name: ranges for name, ranges in selection.parameters.items() if found[name].ndim > 1}
    by_name: dict[str, list[Component]] = {}
    for component in selection.components:
        by_name.setdefault(component.name, []).append(component)
    vectors = [name for name, parts in by_name.items() if all(len(part.shape) < 2 for part in parts)]
    if vectors:
        raise refused(title, f"{vectors[0]} has no matrix, and a vector has no low-rank form", len(vectors))
    tied = [component.name for component in selection.components if component.tied]
    if tied:
        raise refused(title, f"{tied[0]} is tied, and an adapter on one of two tied weights cuts the tie", len(tied))
    return chosen


def refused(title: str, reason: str, count: int = 1) -> InputError:
    """The error for a selection that a kind cannot be put on."""
    more = f" (and {count - 1} more like it)" if count > 1 else ""
    return InputError(
        f"{title} cannot be put on this selection: {reason}{more}", where="optim.adapter", then="Leave it out, or train without."
    )
