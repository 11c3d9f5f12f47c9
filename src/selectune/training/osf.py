"""OSF, orthogonal subspace fine-tuning: of each selected weight the largest singular directions are frozen, the others trained.

A weight is decomposed once, in fp32, into ``U S V``. The first `preserve` of its directions stay; the factors of the rest are what trains,
and before each step the gradients of their U and V lose whatever lies in the directions that stay. The update of the weight is
``U' S' V' - U S V`` over the rest. An optimizer that scales its gradient element by element, as Adam does, leaves the orthogonal space a
little with each step all the same; PEFT does not put it back, and neither is it put back here.

Source: Nayak et al. (2025), "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning", arXiv 2504.07097.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from selectune.components.slices import Region
from selectune.network import class_name, parameters
from selectune.training.adapter import refused

if TYPE_CHECKING:
    from selectune.recipe import Adapter


class Osf:
    """The kind `osf`: the factors are those of the weight."""

    title = "OSF"

    def __init__(self, adapter: Adapter) -> None:
        self._preserve = adapter.preserve
        self._names: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Its settings, in words."""
        return f"that preserves {self._preserve:.4g} of the singular directions"

    def config(self, owners: Mapping[str, nn.Module]) -> Any:
        """PEFT's configuration, with whole paths as targets. PEFT passes over what is no linear layer; here it is refused."""
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from peft import OSFConfig

        others = [name for name, owner in owners.items() if not (name.endswith(".weight") and isinstance(owner, nn.Linear))]
        if others:
            kind = class_name(owners[others[0]])
            raise refused(self.title, f"PEFT has it for linear layers alone, and {others[0]} is a part of {kind}", len(others))
        small = [name for name, owner in owners.items() if not self._held(tuple(owner.get_parameter("weight").shape))]
        if small:
            raise refused(self.title, f"preserve {self._preserve:g} of {small[0]} is less than one direction", len(small))
        self._names = tuple(owners)
        return OSFConfig(effective_rank=self._preserve, target_modules=sorted(name.removesuffix(".weight") for name in owners))

    def inject(self, net: nn.Module, config: Any, name: str) -> Any:
        """Puts the factors in. PEFT rounds them to the weight's dtype, and in bf16 they are orthogonal to three digits only: so the weights
        are in fp32 for that moment."""
        from peft.tuners.osf import OSFModel

        with ExitStack() as stack:
            found = parameters(net)
            for parameter in (found[one] for one in self._names):
                stack.callback(setattr, parameter, "data", parameter.data)
                parameter.data = parameter.data.float()
            return OSFModel(net, {name: config}, name)

    def wraps(self, module: nn.Module) -> bool:
        """Whether it is PEFT's wrapper."""
        return hasattr(module, "osf_svd_params")

    def confine(self, name: str, wrapper: Any, weight: Tensor, ranges: tuple[Region, ...]) -> None:
        """Not possible: the directions are those of the whole tensor."""
        del wrapper, weight, ranges
        raise refused(self.title, f"a part of {name} is selected, and PEFT decomposes a weight as a whole")

    def elements(self, shape: tuple[int, ...]) -> int:
        """For each direction that is trained: its two vectors, and its singular value."""
        return (min(shape) - self._held(shape)) * (sum(shape) + 1)

    def _held(self, shape: tuple[int, ...]) -> int:
        """How many directions stay, as PEFT counts them."""
        return int(min(shape) * self._preserve)
