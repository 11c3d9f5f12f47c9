"""A network's tensors under the names of the model itself, whatever is wrapped around it or its parts.

torch.compile, distributed data parallel, FSDP, activation checkpointing and PEFT put modules of their own between a model and its parts,
and their names into the names of parameters. Here `model.layers.0.self_attn.q_proj.weight` is called so under all of them. What a wrapper
adds, such as the matrices of a LoRA, has the name of its host in front: `model.layers.0.self_attn.q_proj.lora_A.default.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = [
    "Place",
    "bare",
    "buffers",
    "class_name",
    "hold_still",
    "holds_shards",
    "hosts",
    "image_token",
    "is_sharded",
    "local",
    "parameters",
    "quantised",
    "same_sharding",
    "state",
    "walk",
    "whole",
]

_ANYWHERE = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""Children with these names are the wrapped module: torch's own private names, which no model uses."""
_INSIDE = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "BaseTunerLayer": "base_layer",
    "AuxiliaryTrainingWrapper": "original_module",
    "ModulesToSaveWrapper": "original_module",
}
"""Class of a wrapper, its bases included: the child that is the wrapped module."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A module, and where it stands in the model itself."""

    path: str
    """Names of modules with points between; empty for the model."""
    module: nn.Module
    host: str | None
    """For what a wrapper added: the parameter that it stands beside. None for the model's own."""


def bare(net: nn.Module) -> nn.Module:
    """The model itself, inside everything that is wrapped around it as a whole. Adapters put into its parts stay."""
    while True:
        kinds = _kinds(net)
        inner: Any
        if "PeftModel" in kinds:
            inner = net.get_base_model()  # type: ignore[operator]  # nn.Module's attributes have no types
        elif "BaseTuner" in kinds:
            inner = net.model
        else:
            name = _wrapped(net)
            if name is None:
                return net
            inner = net.get_submodule(name)
        net = inner


def walk(net: nn.Module) -> Iterator[Place]:
    """Every module of the model, outermost first; a shared one once for each of its places, a wrapper before what it wraps."""
    yield from _walk("", bare(net), None)


def _walk(path: str, module: nn.Module, host: str | None) -> Iterator[Place]:
    yield Place(path=path, module=module, host=host)
    wrapped = _wrapped(module)
    for name, child in module.named_children():
        if name == wrapped:
            yield from _walk(path, child, host)
        elif wrapped is not None and host is None:
            # PEFT's wrapper of a bare parameter may stand around another one: the parameter's name keeps their matrices apart.
            beside = getattr(module, "parameter_name", None)
            prefix = path if beside is None else _join(path, beside)
            yield from _walk(_join(prefix, name), child, _join(path, beside or "weight"))
        else:
            yield from _walk(_join(path, name), child, host)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _kinds(module: nn.Module) -> frozenset[str]:
    return frozenset(kind.__name__ for kind in type(module).__mro__)


def _wrapped(module: nn.Module) -> str | None:
    """The name of the child that `module` is a wrapper of."""
    own = module._modules
    if not own:
        return None
    found = next((name for name in own if name in _ANYWHERE), None)
    if found is not None:
        return found
    if not any(name in own for name in ("module", "base_layer", "original_module")):
        return None
    return next((child for kind, child in _INSIDE.items() if child in own and kind in _kinds(module)), None)


def parameters(net: nn.Module, *, aliases: bool = False) -> dict[str, nn.Parameter]:
    """Every parameter, the live one, in the model's order; a tied one under its first name alone, or with `aliases` under every one."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for place in walk(net):
        for leaf, parameter in place.module._parameters.items():
            if parameter is None or (id(parameter) in seen and not aliases):
                continue
            seen.add(id(parameter))
            found[_join(place.path, leaf)] = parameter
    return found


def buffers(net: nn.Module, *, persistent: bool = False) -> dict[str, Tensor]:
    """Every buffer by each of its names; with `persistent` those alone that a checkpoint holds, each once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for place in walk(net):
        for leaf, buffer in place.module._buffers.items():
            if buffer is None or (persistent and (id(buffer) in seen or leaf in place.module._non_persistent_buffers_set)):
                continue
            seen.add(id(buffer))
            found[_join(place.path, leaf)] = buffer
    return found


def state(net: nn.Module) -> dict[str, Tensor]:
    """The tensors that make a model what it is: every parameter and persistent buffer, the live ones, a tied tensor once under its first
    name.

    Buffers that are recomputed when the model is built (rotary tables, say) are no part of its state.
    """
    return {**parameters(net), **buffers(net, persistent=True)}


def hold_still(net: nn.Module) -> None:
    """Keeps 4-bit weights of bitsandbytes as they are: on a CPU it would bring them into another order when they are first used without a
    gradient, and round their scales to bf16 on the way, for good."""
    module: Any
    for module in net.modules():
        if "Linear4bit" in _kinds(module):
            module.support_avx512bf16_for_cpu = False


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a shard of the tensor alone (FSDP2's DTensor)."""
    return type(tensor).__name__ == "DTensor" or type(getattr(tensor, "data", None)).__name__ == "DTensor"


def holds_shards(net: nn.Module) -> bool:
    """Whether any parameter is sharded, so that every pass is made by all processes together."""
    return any(is_sharded(parameter) for parameter in net.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its elements, without a graph; gathers a sharded one, so every process has to ask for it."""
    held: Any = tensor.detach()
    gathered: Tensor = held.full_tensor() if is_sharded(tensor) else held
    return gathered


def same_sharding(values: Tensor, like: Tensor) -> Tensor:
    """`values`, which every process holds whole, as this process's shard of them where `like` is sharded; else as they are."""
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()


def quantised(parameter: Tensor) -> str | None:
    """What holds the parameter's values in fewer bits than it trains in, such as `Params4bit` or `Int8Tensor`; None for plain numbers."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    held: Any
    for held in (parameter, getattr(parameter, "data", parameter)):
        if not is_sharded(held) and is_traceable_wrapper_subclass(held):
            return type(held).__name__
    if parameter.dtype.is_floating_point or parameter.dtype.is_complex:
        return None
    return type(parameter).__name__ if type(parameter).__name__ != "Parameter" else str(parameter.dtype).removeprefix("torch.")


def hosts(net: nn.Module) -> dict[str, str]:
    """What wrappers added, such as the matrices of a LoRA: the parameter's name, and the name of the one that it stands beside."""
    return {
        _join(place.path, leaf): place.host
        for place in walk(net)
        if place.host is not None
        for leaf, parameter in place.module._parameters.items()
        if parameter is not None
    }


def image_token(net: PreTrainedModel) -> int | None:
    """The id of the tokens that a picture's features take the place of; None for a model that names none."""
    found = getattr(net.config, "image_token_id", None)
    return None if found is None else int(found)


def class_name(module: nn.Module | None) -> str:
    """The name of a module's own class; FSDP2 gives every module that it shards a class of its own over it."""
    kind = type(module)
    if "FSDPModule" in (base.__name__ for base in kind.__bases__):
        kind = next(base for base in kind.__bases__ if base.__name__ != "FSDPModule")
    return kind.__name__


def local(tensor: Tensor) -> Tensor:
    """The elements that this process holds, in the same memory, without a graph."""
    held: Any = tensor.detach()
    own: Tensor = held.to_local() if is_sharded(tensor) else held
    return own
