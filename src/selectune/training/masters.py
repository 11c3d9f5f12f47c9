"""fp32 masters of the selection, and of nothing else.

A bf16 weight near 0.02 has neighbours 1.2e-4 apart: an AdamW step of 1e-5 is lost in rounding, most of the time. So the optimizer moves
fp32 copies, which are cast into the parameters after each step. A slice has a master of its own size; the rest of its tensor is not known
to the optimizer, so neither weight decay nor momentum can reach it. (Zeroing the gradient of frozen rows does not freeze them: decay
still shrinks them.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from selectune.components.slices import views
from selectune.errors import InputError
from selectune.network import parameters

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.recipe import Optim

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Device types for which torch has a fused AdamW: one pass over the memory in place of ten."""


class Masters:
    """The selection's values in fp32, with their optimizer."""

    def __init__(self, net: nn.Module, selection: Selection, optim: Optim) -> None:
        """Copies the selection in fp32. Raises InputError for an empty one."""
        found = parameters(net)
        self._regions = dict(selection.parameters)
        if not self._regions:
            raise InputError("the selection is empty", where="select", then="Name at least one component: selectune map MODEL lists them.")
        self._owners: dict[str, nn.Parameter] = {name: found[name] for name in self._regions}
        live = {
            f"{name}#{number}": view
            for name, owner in self._owners.items()
            for number, view in enumerate(self._views(name, owner.detach()))
        }
        self._live: list[Tensor] = list(live.values())
        self.values: dict[str, nn.Parameter] = {
            key: nn.Parameter(view.to(torch.float32, copy=True).contiguous()) for key, view in live.items()
        }
        self._masters: list[nn.Parameter] = list(self.values.values())
        self.optimizer = torch.optim.AdamW(
            self._masters,
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=self._live[0].device.type in FUSED,
        )

    def _views(self, name: str, tensor: Tensor) -> list[Tensor]:
        regions = self._regions[name]
        return [view for region in ((None,) if regions is None else regions) for view in views(tensor, region)]

    def require_grad(self) -> None:
        """Lets the selected parameters have gradients."""
        for owner in self._owners.values():
            owner.requires_grad_(True)

    @torch.no_grad()
    def collect(self) -> None:
        """Adds the parameters' gradients to the masters', in fp32, and frees them. A parameter that got none counts as zeros."""
        grads: list[Tensor] = []
        for name, owner in self._owners.items():
            grads += self._views(name, owner.grad if owner.grad is not None else torch.zeros_like(owner))
        if self._masters[0].grad is None:
            for master, grad in zip(self._masters, grads, strict=True):
                master.grad = grad.to(torch.float32, copy=True).contiguous()
        else:
            torch._foreach_add_([master.grad for master in self._masters if master.grad is not None], [grad.float() for grad in grads])
        for owner in self._owners.values():
            owner.grad = None

    def norm(self) -> Tensor:
        """The global norm of the collected gradient, a scalar."""
        return nn.utils.get_total_norm([master.grad for master in self._masters if master.grad is not None])

    def step(self, lr: float, norm: Tensor, clip: float | None) -> None:
        """One AdamW step at rate `lr` with the gradient scaled down to norm `clip`; the result is cast into the parameters."""
        if clip is not None:
            nn.utils.clip_grads_with_norm_(self._masters, clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.store()

    @torch.no_grad()
    def store(self) -> None:
        """Casts the masters into the parameters; round to nearest, ties to even."""
        torch._foreach_copy_(self._live, [master.detach() for master in self._masters])

    def still(self) -> list[str]:
        """Parameters that no gradient has reached yet. Their moments tell, not their values: weight decay alone moves those too."""
        reached = {
            key.rpartition("#")[0]
            for key, master in self.values.items()
            if (kept := self.optimizer.state.get(master)) and bool(kept["exp_avg_sq"].any())
        }
        return [name for name in self._owners if name not in reached]

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name: `master/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`; moments from the first step on."""
        tensors = {f"master/{key}": master.detach() for key, master in self.values.items()}
        for key, master in self.values.items():
            kept = self.optimizer.state.get(master, {})
            tensors |= {f"{moment}/{key}": kept[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in kept}
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Takes back what `state` gave after `step` steps."""
        for key, master in self.values.items():
            master.copy_(tensors[f"master/{key}"])
            if step:
                self.optimizer.state[master] = {
                    "step": torch.tensor(float(step), device=master.device),
                    "exp_avg": tensors[f"exp_avg/{key}"].to(master.device, copy=True),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{key}"].to(master.device, copy=True),
                }
        self.store()
