"""LoRA on a selection: PEFT's low-rank matrices beside exactly the selected weights, added to them when the training ends.

The update is the same kind of delta as a full one, and the same proof holds for it. Less memory is needed: gradients, masters and moments
are of the low-rank matrices alone. Of a tensor that is selected in part the matrices reach that part alone: rows of `lora_B`, or columns of
`lora_A`, that belong to the rest are zero and get no gradient, so their product is zero there.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); the update of a weight is ``alpha / rank * B @ A``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.components import Selection, map_model, views
from selectune.components.slices import Region
from selectune.errors import InputError, MissingPackage
from selectune.network import class_name, hosts, parameters, walk

if TYPE_CHECKING:
    from selectune.components import Component
    from selectune.recipe import Adapter

_NAME = "default"
_LAYERS = frozenset({"Linear", "Conv1D", "Embedding", "Conv2d", "Conv3d"})
"""Classes whose `weight` PEFT adapts by the module; every other matrix is targeted as a parameter."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """A trained adapter as PEFT keeps it, for servers that load one beside the base."""

    config: Any
    """A `peft.LoraConfig`."""
    tensors: Mapping[str, Tensor]

    def save(self, folder: Path) -> Path:
        """Writes `adapter_config.json` and `adapter_model.safetensors` into `folder`; gives it back. Raises OSError as writing does."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.tensors), str(folder / "adapter_model.safetensors"))
        self.config.save_pretrained(str(folder))
        return folder


class LowRank:
    """LoRA matrices in a network, from their making until `merge` or `remove`."""

    def __init__(self, net: nn.Module, selection: Selection, adapter: Adapter, *, seed: int) -> None:
        """Puts the matrices in, in fp32: A from `seed`, B zero, so that nothing changes yet.

        Raises InputError for a selection that has no low-rank form, with the reason, and MissingPackage without PEFT.
        """
        self._net = net
        self._chosen = selection
        self._regions = _matrices(net, selection)
        self._flags = {name: parameter.requires_grad for name, parameter in parameters(net).items()}
        modules = {place.path: place.module for place in walk(net)}
        owners = {name: name.rpartition(".")[0] for name in self._regions}
        self._original = {path: modules[path] for path in owners.values()}
        self._order = {path: tuple(module._parameters) for path, module in self._original.items()}
        self._config = _config(adapter, {name: modules[path] for name, path in owners.items()})
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on tied weights and transposed layers, which are settled here
            torch.manual_seed(seed)
            self._tuner = _inject(net, self._config)
        self._wrappers = _wrappers(net)
        try:
            self._settle()
        except BaseException:
            self.remove()
            raise

    def _settle(self) -> None:
        """Exactly the selected weights have matrices; these are in fp32, and reach the selected part alone."""
        odd = sorted(self._wrappers.keys() ^ self._regions.keys())
        if odd:
            raise InputError(
                f"PEFT puts LoRA on other weights than those selected: {', '.join(odd[:5])}",
                where="optim.adapter",
                then="Train this selection without an adapter.",
            )
        for name, ranges in self._regions.items():
            wrapper = self._wrappers[name]
            for part in wrapper.children():
                if part is not wrapper.base_layer:
                    part.float()
            if ranges is not None:
                _confine(name, wrapper, parameters(self._net)[name], ranges)
        names = hosts(self._net)
        trained = tuple(c for c in map_model(self._net, "the model").components if c.parameter in names)
        shapes = {component.parameter: component.shape for component in trained}
        self.selection = Selection(patterns=self._chosen.patterns, components=trained, full_shapes=shapes)
        """The low-rank matrices, as what may move while they are trained."""

    @property
    def about(self) -> str:
        """What is trained, in a sentence."""
        return (
            f"LoRA of rank {self._config.r}, alpha {self._config.lora_alpha:g}, on {len(self._regions)} weights: "
            f"{self.selection.elements:,} numbers are trained in place of {self._chosen.elements:,}; biases stay"
        )

    def files(self) -> Files:
        """The matrices in PEFT's own form."""
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(self._net, adapter_name=_NAME, state_dict=self._net.state_dict(), save_embedding_layers=False)
        return Files(
            config=self._config, tensors={f"base_model.model.{name}": tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Adds each update to the selected part of its weight, in fp32 and rounded once, and takes the matrices out."""
        found = parameters(self._net)
        for name, ranges in self._regions.items():
            update = self._wrappers[name].get_delta_weight(_NAME)
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
    """How many numbers the matrices have: rank times (inputs + outputs) of each weight, and of each expert in it."""
    total = 0
    for name in selection.parameters:
        shape = selection.full_shapes[name]
        if len(shape) == 3:
            total += adapter.rank * shape[0] * (shape[1] + shape[2])
        elif len(shape) > 1:
            total += adapter.rank * (shape[0] + prod(shape[1:]))
    return total


def _matrices(net: nn.Module, selection: Selection) -> dict[str, tuple[Region, ...] | None]:
    """The selected weights that get matrices, with the part of each; biases and norms beside them stay as they are."""
    found = parameters(net)
    chosen = {name: ranges for name, ranges in selection.parameters.items() if found[name].ndim > 1}
    by_name: dict[str, list[Component]] = {}
    for component in selection.components:
        by_name.setdefault(component.name, []).append(component)
    vectors = [name for name, parts in by_name.items() if all(len(part.shape) < 2 for part in parts)]
    if vectors:
        raise _refused(f"{vectors[0]} has no matrix, and a vector has no low-rank form", len(vectors))
    tied = [component.name for component in selection.components if component.tied]
    if tied:
        raise _refused(f"{tied[0]} is tied, and an adapter on one of two tied weights cuts the tie", len(tied))
    return chosen


def _refused(reason: str, count: int = 1) -> InputError:
    more = f" (and {count - 1} more like it)" if count > 1 else ""
    return InputError(
        f"LoRA cannot be put on this selection: {reason}{more}", where="optim.adapter", then="Leave it out, or train without."
    )


def _config(adapter: Adapter, owners: Mapping[str, nn.Module]) -> Any:
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is, and it has a remark on kernels
        from peft import LoraConfig
    except ImportError as error:
        raise MissingPackage("LoRA needs PEFT", where="optim.adapter", then="Install it: pip install 'selectune[peft]'.") from error
    layers = {name for name, owner in owners.items() if name.endswith(".weight") and class_name(owner) in _LAYERS}
    alpha: Any = adapter.scale  # PEFT says int and divides
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        # Whole paths, which PEFT reads as ends of paths; whether others end so is seen afterwards. Of an expression it keeps the last
        # words alone where a family's experts were packed since transformers 4, and then adapts every layer.
        target_modules=sorted(name.removesuffix(".weight") for name in layers),
        target_parameters=sorted(owners.keys() - layers) or None,
        fan_in_fan_out=any(class_name(owner) == "Conv1D" for owner in owners.values()),
        bias="none",
    )


def _inject(net: nn.Module, config: Any) -> Any:
    from peft import LoraModel

    try:
        return LoraModel(net, {_NAME: config}, _NAME)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _refused(f"PEFT says: {str(error)[:300]}") from error


def _wrappers(net: nn.Module) -> dict[str, Any]:
    """PEFT's wrapper of each weight, by the weight's name."""
    return {
        f"{place.path}.{getattr(place.module, 'parameter_name', 'weight')}": place.module
        for place in walk(net)
        if place.host is None and hasattr(place.module, "lora_A")
    }


def _confine(name: str, wrapper: Any, weight: Tensor, ranges: tuple[Region, ...]) -> None:
    """Lets the matrices reach the regions of `weight` alone."""
    if not len(wrapper.lora_A):
        raise _refused(f"a part of {name} is selected, and PEFT adapts an embedding as a whole")
    inside = torch.zeros(weight.shape, dtype=torch.bool)
    for region in ranges:
        for view in views(inside, region):
            view.fill_(True)
    # As (experts, outputs, inputs), which is how PEFT sees it.
    inside = inside if inside.ndim == 3 else inside.flatten(1).unsqueeze(0)
    is_packed = hasattr(wrapper, "num_experts")
    if (is_packed and weight.ndim == 3 and not wrapper._did_swap_in_out_features) or (not is_packed and wrapper.fan_in_fan_out):
        inside = inside.transpose(1, 2)
    rows, columns = inside.any(dim=2), inside.any(dim=1)
    if not torch.equal(inside, rows.unsqueeze(2) & columns.unsqueeze(1)):
        raise _refused(f"the selected part of {name} is no block of rows and columns")
    a, b = wrapper.lora_A[_NAME].weight, wrapper.lora_B[_NAME].weight
    experts = len(inside)
    # lora_A is (experts * rank, inputs); lora_B is (outputs, rank * experts), experts last.
    keep_a = columns.repeat_interleave(len(a) // experts, dim=0).to(a.device)
    keep_b = rows.t().repeat(1, b.shape[1] // experts).to(b.device)
    with torch.no_grad():
        a *= keep_a
    for matrix, keep in ((a, keep_a), (b, keep_b)):
        # Kept in a default argument: each hook needs its own.
        matrix.register_hook(lambda gradient, keep=keep: gradient * keep)
