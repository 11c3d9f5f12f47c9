"""FSDP2: each process holds a part of the language tower, and of the selection's masters and moments.

Towers that see pictures stay whole in every process: a batch of text alone would leave the others waiting for parts of theirs, and their
features are cached. Names, ids, proof and deltas are those of the whole model; a tensor is gathered when it is asked for, one at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.components.slices import Region, boxes
from selectune.errors import InputError
from selectune.network import is_sharded, local, parameters
from selectune.training.features import in_language
from selectune.training.processes import joined

if TYPE_CHECKING:
    from selectune.models import Model


def shard(model: Model) -> Model:
    """The model with its language tower sharded over the processes that `torchrun` or `accelerate launch` began, in place.

    Every process has to load the same model first. Raises InputError for a single process, or layers that transformers does not mark.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    count, _ = joined(model.device)
    if count == 1:
        raise InputError("there is one process, and nothing to shard over", where="shard", then="Start it with torchrun.")
    net: Any = model.net
    found = parameters(net)
    outside = {component.parameter for component in model.map.components if not in_language(component.name)}
    options: dict[str, Any] = {
        "mesh": init_device_mesh(model.device.type, (count,)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        "ignored_params": {found[name] for name in outside},
        # Of the outermost module too: between two passes every tensor has to be a shard, whether a backward pass came or not.
        "reshard_after_forward": True,
    }
    layers = [layer for layer in net.get_decoder().modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"{type(net).__name__} has no layers that transformers marks as such", where="shard", then="Train without shards.")
    for module in (*layers, net):
        fully_shard(module, **options)
        # A step divides by the labels of the whole batch, so that gradients are sums and no means.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return replace(model)


def rows(parameter: nn.Parameter) -> tuple[int, int]:
    """The first row that this process holds, and the one after the last: all of a tensor that is not sharded."""
    if not is_sharded(parameter):
        return 0, parameter.shape[0]
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    held: Any = parameter
    shape, offset = compute_local_shape_and_global_offset(held.shape, held.device_mesh, held.placements)
    if tuple(shape[1:]) != tuple(held.shape[1:]):
        raise InputError(
            f"a tensor is sharded along another axis than its first: {held.placements}", where="shard", then="Use selectune's shard."
        )
    return (offset[0], offset[0] + shape[0]) if shape[0] else (0, 0)


def local_views(parameter: nn.Parameter, values: Tensor, region: Region | None) -> list[tuple[Tensor, tuple[int, int]]]:
    """What this process holds of each box of a region: a view of `values` (the parameter or its gradient), and which rows of the box it is.

    `values` is sharded as `parameter` is; where neither is, a graph goes on through the views. A box of which this process holds nothing
    gives a view without rows.
    """
    first, stop = rows(parameter)
    held = local(values) if is_sharded(values) else values
    found = []
    for box in boxes(tuple(parameter.shape), region):
        lead, *rest = box
        every = range(*lead.indices(parameter.shape[0]))
        skipped = len(range(every.start, min(first, every.stop), every.step)) if first > every.start else 0
        kept = every[skipped:]
        kept = kept[: len(range(kept.start, min(stop, kept.stop), kept.step))] if len(kept) and kept.start < stop else kept[:0]
        inside = slice(kept.start - first, kept.stop - first, kept.step) if len(kept) else slice(0, 0)
        found.append((held[(inside, *rest)], (skipped, skipped + len(kept)) if len(kept) else (0, 0)))
    return found
