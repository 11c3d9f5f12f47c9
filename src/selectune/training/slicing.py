"""Weight gradients of the selected rows alone, where a linear layer is selected in part.

Autograd would work out the gradient of all of a fused matrix, and most of it would be thrown away: for the queries of a `qkv_proj` with
as many keys and values, two thirds of the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.components.slices import Region, boxes
from selectune.network import class_name, is_sharded, walk

if TYPE_CHECKING:
    from selectune.components import Selection

_OUTPUTS = {"Linear": 0, "Conv1D": 1}
"""Classes of linear layers, and the axis of their weight that is the outputs'."""


class PartlyTrained:
    """The linear layers of which a selection takes some outputs, and not all."""

    def __init__(self, net: nn.Module, selection: Selection) -> None:
        modules = {place.path: place.module for place in walk(net) if place.host is None}
        self._parts: dict[nn.Module, tuple[int, tuple[slice, ...]]] = {}
        for name, regions in selection.parameters.items():
            path, _, leaf = name.rpartition(".")
            module = modules.get(path)
            axis = _OUTPUTS.get(class_name(module)) if leaf == "weight" else None
            if regions is None or module is None or axis is None or is_sharded(module.get_parameter("weight")):
                continue
            if all(part[0] == axis for region in regions for part in region):
                self._parts[module] = axis, _ranges(tuple(module.get_parameter("weight").shape), regions, axis)

    def __len__(self) -> int:
        return len(self._parts)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, a backward pass works out those outputs' gradients alone; the rest of a gradient is zeros."""
        for module, (axis, parts) in self._parts.items():
            module.forward = _forward(module, axis, parts)
        try:
            yield
        finally:
            for module in self._parts:
                del module.forward


def _ranges(shape: tuple[int, ...], regions: Sequence[Region], axis: int) -> tuple[slice, ...]:
    return tuple(box[axis] for region in regions for box in boxes(shape, region))


def _forward(module: nn.Module, axis: int, parts: tuple[slice, ...]) -> Any:
    def forward(x: Tensor) -> Tensor:
        y: Tensor = _Outputs.apply(x, module.weight, axis, parts)  # type: ignore[no-untyped-call]  # torch has no types here
        bias: Any = module.bias
        return y if bias is None else y + bias

    return forward


class _Outputs(torch.autograd.Function):
    """A product with a matrix whose gradient is asked of some outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, axis: int, parts: tuple[slice, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.axis, ctx.parts = axis, parts
        return x @ (weight.t() if axis == 0 else weight)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        (above,) = outward
        to_x = above @ (weight if ctx.axis == 0 else weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None, None, None
        to_weight = torch.zeros_like(weight)
        rows, seen = above.flatten(0, -2), x.flatten(0, -2)
        for part in ctx.parts:
            if ctx.axis == 0:
                to_weight[part] = rows[:, part].t() @ seen
            else:
                to_weight[:, part] = seen.t() @ rows[:, part]
        return to_x, to_weight, None, None
