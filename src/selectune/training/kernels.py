"""What computes the language tower during a step: its attention, and its layers as compiled code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from selectune.errors import ModelError

SHORT: Mapping[torch.dtype, int] = {torch.bfloat16: 96}
"""Batches of at most so many columns get plain products for attention on a CPU, of other dtypes than these at most 64. The blocked kernel
takes longer on short ones, in bf16 1.65 times at 48 columns, 1.3 at 96, and 0.7 at 192; plain products' memory grows with the square.

Plain products are torch's own, in fp32. transformers' `eager` attention is 5 % of a step faster still, but rounds its scores to bf16: the
embedded model's logits were then 3.6e-2 from those of an fp32 model, in place of 2.7e-2."""


def has_plain_attention(device: str, dtype: torch.dtype, length: int) -> bool:
    """Whether a batch of `length` columns has its attention computed by plain products, not by a fused kernel."""
    return device == "cpu" and length <= SHORT.get(dtype, 64)


class CompiledLayers:
    """The language tower's layers as torch.compile makes them: one layer's code, used by all of its kind, for any length of batch."""

    def __init__(self, net: Any, *, plain: Sequence[nn.Module] = ()) -> None:
        """Compiles nothing yet; torch does, when the layers are first used. A layer with a module of `plain` in it stays as it is.

        Raises ModelError for a model without such layers.
        """
        # The decoder's own layers: a vision tower's have other lengths and masks.
        layers: list[nn.Module] = [layer for layer in net.get_decoder().modules() if isinstance(layer, GradientCheckpointingLayer)]
        if not layers:
            raise ModelError(f"{type(net).__name__} has no layers that transformers marks as such", then="Set optim.compile to false.")
        # torch makes code for the first shape it meets and general code at the second; asked for general code at once it was 15 % slower.
        self._forwards = {layer: torch.compile(layer.forward) for layer in layers if not _holds(layer, plain)}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the compiled code computes the layers."""
        for layer, forward in self._forwards.items():
            layer.forward = forward
        try:
            yield
        finally:
            for layer in self._forwards:
                del layer.forward


def _holds(layer: nn.Module, modules: Sequence[nn.Module]) -> bool:
    return any(module is one for module in layer.modules() for one in modules)
