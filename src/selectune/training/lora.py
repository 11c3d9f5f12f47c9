"""LoRA: of each selected weight an update of low rank is trained.

Less memory is needed: gradients, masters and moments are of the low-rank matrices alone. Of a tensor that is selected in part the matrices
reach that part alone: rows of `lora_B`, or columns of `lora_A`, that belong to the rest are zero and get no gradient, so their product is
zero there.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); the update of a weight is ``alpha / rank * B @ A``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.components.slices import Region, mask
from selectune.network import class_name
from selectune.training.adapter import refused

if TYPE_CHECKING:
    from selectune.recipe import Adapter

_LAYERS = frozenset({"Linear", "Conv1D", "Embedding", "Conv2d", "Conv3d"})
"""Classes whose `weight` PEFT adapts by the module; every other matrix is targeted as a parameter."""


class Lora:
    """The kind `lora`: A from the seed, B zero."""

    title = "LoRA"

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    @property
    def words(self) -> str:
        """Its settings, in words."""
        return f"of rank {self._adapter.rank}, alpha {self._adapter.scale:g}"

    def config(self, owners: Mapping[str, nn.Module]) -> Any:
        """PEFT's configuration, with whole paths as targets."""
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is, and it has a remark on kernels
        from peft import LoraConfig

        layers = {name for name, owner in owners.items() if name.endswith(".weight") and class_name(owner) in _LAYERS}
        alpha: Any = self._adapter.scale  # PEFT says int and divides
        return LoraConfig(
            r=self._adapter.rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            # Whole paths, which PEFT reads as ends of paths; whether others end so is seen afterwards. Of an expression it keeps the last
            # words alone where a family's experts were packed since transformers 4, and then adapts every layer.
            target_modules=sorted(name.removesuffix(".weight") for name in layers),
            target_parameters=sorted(owners.keys() - layers) or None,
            fan_in_fan_out=any(class_name(owner) == "Conv1D" for owner in owners.values()),
            bias="none",
        )

    def inject(self, net: nn.Module, config: Any, name: str) -> Any:
        """Puts the matrices in."""
        from peft import LoraModel

        return LoraModel(net, {name: config}, name)

    def wraps(self, module: nn.Module) -> bool:
        """Whether it is PEFT's wrapper: that of an embedding has the matrices under another name, and an empty `lora_A` beside them."""
        return hasattr(module, "lora_A")

    def elements(self, shape: tuple[int, ...]) -> int:
        """Rank times (inputs + outputs), for each expert."""
        if len(shape) == 3:
            return self._adapter.rank * shape[0] * (shape[1] + shape[2])
        return self._adapter.rank * (shape[0] + prod(shape[1:]))

    def confine(self, name: str, wrapper: Any, weight: Tensor, ranges: tuple[Region, ...]) -> None:
        """Lets the matrices reach the regions of `weight` alone."""
        if not len(wrapper.lora_A):
            raise refused(self.title, f"a part of {name} is selected, and PEFT adapts an embedding as a whole")
        inside = mask(tuple(weight.shape), ranges)
        # As (experts, outputs, inputs), which is how PEFT sees it.
        inside = inside if inside.ndim == 3 else inside.flatten(1).unsqueeze(0)
        is_packed = hasattr(wrapper, "num_experts")
        if (is_packed and weight.ndim == 3 and not wrapper._did_swap_in_out_features) or (not is_packed and wrapper.fan_in_fan_out):
            inside = inside.transpose(1, 2)
        rows, columns = inside.any(dim=2), inside.any(dim=1)
        if not torch.equal(inside, rows.unsqueeze(2) & columns.unsqueeze(1)):
            raise refused(self.title, f"the selected part of {name} is no block of rows and columns")
        (a,), (b,) = ([part.weight for part in parts.values()] for parts in (wrapper.lora_A, wrapper.lora_B))
        experts = len(inside)
        # lora_A is (experts * rank, inputs); lora_B is (outputs, rank * experts), experts last.
        keep_a = columns.repeat_interleave(len(a) // experts, dim=0).to(a.device)
        keep_b = rows.t().repeat(1, b.shape[1] // experts).to(b.device)
        with torch.no_grad():
            a *= keep_a
        for matrix, keep in ((a, keep_a), (b, keep_b)):
            # Kept in a default argument: each hook needs its own.
            matrix.register_hook(lambda gradient, keep=keep: gradient * keep)
