"""fp32 masters of the selection, and of nothing else.

A bf16 weight near 0.02 has neighbours 1.2e-4 apart: an AdamW step of 1e-5 is lost in rounding, most of the time. So the optimizer moves
fp32 copies, which are cast into the parameters after each step. A slice has a master of its own size; the rest of its tensor is not known
to the optimizer, so neither weight decay nor momentum can reach it. (Zeroing the gradient of frozen rows does not freeze them: decay
still shrinks them.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.components.slices import Region, views
from selectune.errors import InputError, MissingPackage
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
        self._unreached = dict(self.values)
        groups = [self._of(name) for name in self._owners] if optim.in_backward else [self._masters]
        self.optimizers = [optimizer_for(group, optim) for group in groups]
        """One over all masters; with `optim.in_backward` one for each parameter, in their order."""

    def _views(self, name: str, tensor: Tensor) -> list[Tensor]:
        regions = self._regions[name]
        return [view for region in ((None,) if regions is None else regions) for view in views(tensor, region)]

    def _of(self, name: str) -> list[nn.Parameter]:
        return [master for key, master in self.values.items() if key.rpartition("#")[0] == name]

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

    @contextmanager
    def stepping_in_backward(self, lr: float) -> Iterator[list[Tensor]]:
        """Inside, a backward pass makes each parameter's step as soon as its gradient is complete, and frees the gradient.

        For one backward pass a step, and without clipping, which needs every gradient at once. The list that is given holds the squared
        norm of each gradient afterwards.
        """
        squares: list[Tensor] = []

        def step(owner: nn.Parameter, name: str, optimizer: torch.optim.Optimizer) -> None:
            assert owner.grad is not None
            masters = self._of(name)
            with torch.no_grad():
                for master, grad in zip(masters, self._views(name, owner.grad), strict=True):
                    master.grad = grad.to(torch.float32, copy=True).contiguous()
                    squares.append(master.grad.square().sum())
            owner.grad = None
            self._note_reached()
            self._set_rate(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for live, master in zip(self._views(name, owner.detach()), masters, strict=True):
                    live.copy_(master.detach())

        handles = [
            owner.register_post_accumulate_grad_hook(lambda one, name=name, optimizer=optimizer: step(one, name, optimizer))
            for (name, owner), optimizer in zip(self._owners.items(), self.optimizers, strict=True)
        ]
        try:
            yield squares
        finally:
            for handle in handles:
                handle.remove()

    def _note_reached(self) -> None:
        self._unreached = {key: master for key, master in self._unreached.items() if master.grad is None or not bool(master.grad.any())}

    @staticmethod
    def _set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr

    def gradients(self) -> Iterator[Tensor]:
        """The collected gradients, live."""
        return (master.grad for master in self._masters if master.grad is not None)

    def norm(self) -> Tensor:
        """The global norm of the collected gradient, a scalar."""
        return nn.utils.get_total_norm([master.grad for master in self._masters if master.grad is not None])

    def step(self, lr: float, norm: Tensor, clip: float | None) -> None:
        """One AdamW step at rate `lr` with the gradient scaled down to norm `clip`; the result is cast into the parameters."""
        self._note_reached()
        if clip is not None:
            nn.utils.clip_grads_with_norm_(self._masters, clip, norm)
        for optimizer in self.optimizers:
            self._set_rate(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.store()

    @torch.no_grad()
    def store(self) -> None:
        """Casts the masters into the parameters; round to nearest, ties to even."""
        torch._foreach_copy_(self._live, [master.detach() for master in self._masters])

    def still(self) -> list[str]:
        """Parameters that no gradient has reached yet, in this session. Gradients tell, not values: weight decay alone moves those too."""
        reached = {key.rpartition("#")[0] for key in self.values.keys() - self._unreached.keys()}
        return [name for name in self._owners if name not in reached]

    @torch.no_grad()
    def lost_to_rounding(self, base: Mapping[tuple[str, Region | None], Tensor]) -> float:
        """The share of the elements that moved in fp32 whose parameter is bit for bit what it was in `base`: by parameter and region, flat.

        The rest of a training that selectune's masters keep, and that weights trained in 16 bits would lose step by step.
        """
        moved = lost = 0
        for name, regions in self._regions.items():
            number = 0
            for region in (None,) if regions is None else regions:
                old = base[name, region]
                at = 0
                for view in views(self._owners[name].detach(), region):
                    master = self.values[f"{name}#{number}"].detach()
                    before = old[at : at + view.numel()].view(view.shape).to(view.device)
                    changed = master != before.float()
                    moved += int(changed.sum())
                    lost += int((changed & (view == before)).sum())
                    at += view.numel()
                    number += 1
        return lost / moved if moved else 0.0

    def state(self) -> dict[str, Tensor]:
        """Masters and what the optimizer keeps of each, by name: `master/NAME`, `exp_avg/NAME`, …; the latter from the first step on."""
        tensors = {f"master/{key}": master.detach() for key, master in self.values.items()}
        for key, master in self.values.items():
            for part, value in self._state_of(master).items():
                tensors[f"{part}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
            tensors[f"reached/{key}"] = torch.tensor(key not in self._unreached)
        return tensors

    def _optimizer_of(self, master: nn.Parameter) -> torch.optim.Optimizer:
        return next(one for one in self.optimizers if any(master is other for group in one.param_groups for other in group["params"]))

    def _state_of(self, master: nn.Parameter) -> Mapping[str, Any]:
        return next((one.state[master] for one in self.optimizers if master in one.state), {})

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave."""
        kept: dict[str, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            kept.setdefault(key, {})[part] = tensor
        for key, master in self.values.items():
            parts = kept[key]
            master.copy_(parts.pop("master"))
            if bool(parts.pop("reached")):
                self._unreached.pop(key, None)
            if parts:
                # An integer count of steps was a plain number.
                self._optimizer_of(master).state[master] = {
                    part: value.to(master.device, copy=True) if value.ndim or value.is_floating_point() else value.item()
                    for part, value in parts.items()
                }
        self.store()


def optimizer_for(masters: list[nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    """The optimizer that the recipe names, over the masters. Raises MissingPackage for 8 bits without bitsandbytes."""
    if optim.optimizer == "adafactor":
        return torch.optim.Adafactor(masters, lr=optim.lr, weight_decay=optim.weight_decay)
    options: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(masters, fused=masters[0].device.type in FUSED, **options)
    try:
        from bitsandbytes import optim as eight_bits
    except ImportError as error:
        raise MissingPackage(
            "AdamW in 8 bits needs bitsandbytes", where="optim.optimizer", then="Install it: pip install 'selectune[quantised]'."
        ) from error
    built: Any = eight_bits
    found: torch.optim.Optimizer = built.AdamW8bit(masters, **options)
    return found
