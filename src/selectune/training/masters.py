"""fp32 masters of the selection, and of nothing else.

A bf16 weight near 0.02 has neighbours 1.2e-4 apart: an AdamW step of 1e-5 is lost in rounding, most of the time. So the optimizer moves
fp32 copies, which are cast into the parameters after each step. A slice has a master of its own size; the rest of its tensor is not known
to the optimizer, so neither weight decay nor momentum can reach it. (Zeroing the gradient of frozen rows does not freeze them: decay
still shrinks them.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.errors import InputError, MissingPackage
from selectune.training.parts import Parts, parameter_of

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.recipe import Optim
    from selectune.training.processes import Processes

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Device types for which torch has a fused AdamW: one pass over the memory in place of ten."""


class Masters:
    """The selection's values in fp32, with their optimizer."""

    def __init__(self, net: nn.Module, selection: Selection, optim: Optim) -> None:
        """Copies the selection in fp32. Raises InputError for an empty one."""
        if not selection.parameters:
            raise InputError("the selection is empty", where="select", then="Name at least one component: selectune map MODEL lists them.")
        self.parts = Parts(net, selection)
        self._owners = self.parts.owners
        self.sharded = self.parts.sharded
        """Parameters of which this process holds a part; so it does of their masters."""
        self.live: Mapping[str, Tensor] = self.parts.live()
        """The parameters' own values that each master stands for, live, by the names of `values`."""
        self._live: list[Tensor] = list(self.live.values())
        self.values: dict[str, nn.Parameter] = {
            key: nn.Parameter(view.to(torch.float32, copy=True).contiguous()) for key, view in self.live.items()
        }
        self._masters: list[nn.Parameter] = list(self.values.values())
        self._of: dict[str, dict[str, nn.Parameter]] = {name: {} for name in self._owners}
        for key, master in self.values.items():
            self._of[parameter_of(key)][key] = master
        self._unreached = dict(self.values)
        self._noted = False
        held = [master for master in self._masters if master.numel()]
        groups = [list(masters.values()) for masters in self._of.values()] if optim.in_backward else [held] if held else []
        self.optimizers = [optimizer_for(group, optim) for group in groups]
        """One over all masters; with `optim.in_backward` one for each parameter, in their order."""

    def require_grad(self) -> None:
        """Lets the selected parameters have gradients."""
        for owner in self._owners.values():
            owner.requires_grad_(True)

    @torch.no_grad()
    def collect(self) -> None:
        """Adds the parameters' gradients to the masters', in fp32, and frees them. A parameter that got none counts as zeros."""
        grads: list[Tensor] = []
        for name, owner in self._owners.items():
            grads += (view for _, view in self.parts.of(name, owner.grad if owner.grad is not None else torch.zeros_like(owner)))
        if self._masters[0].grad is None:
            for master, grad in zip(self._masters, grads, strict=True):
                master.grad = grad.to(torch.float32, copy=True).contiguous()
        else:
            torch._foreach_add_([master.grad for master in self._masters if master.grad is not None], [grad.float() for grad in grads])
        for owner in self._owners.values():
            owner.grad = None

    @contextmanager
    def stepping_in_backward(self, lr: float, pull: Callable[[str, Tensor], Tensor] | None = None) -> Iterator[list[Tensor]]:
        """Inside, a backward pass makes each parameter's step as soon as its gradient is complete, and frees the gradient.

        For one backward pass a step, and without clipping, which needs every gradient at once. The list that is given holds the squared
        norm of each gradient afterwards. `pull` is added to the gradient of each master, as by the method.
        """
        squares: list[Tensor] = []

        def step(owner: nn.Parameter, name: str, optimizer: torch.optim.Optimizer) -> None:
            assert owner.grad is not None
            masters = self._of[name]
            with torch.no_grad():
                for key, grad in self.parts.of(name, owner.grad):
                    masters[key].grad = grad.to(torch.float32, copy=True).contiguous()
            owner.grad = None
            self._note_reached()
            if pull is not None:
                self._add(pull, masters)
            squares.extend(master.grad.square().sum() for master in masters.values() if master.grad is not None)
            self._set_rate(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for key, master in masters.items():
                    self.live[key].copy_(master.detach())

        handles = [
            owner.register_post_accumulate_grad_hook(lambda one, name=name, optimizer=optimizer: step(one, name, optimizer))
            for (name, owner), optimizer in zip(self._owners.items(), self.optimizers, strict=True)
        ]
        try:
            yield squares
            # Reached by an earlier backward pass alone, such as that of anchors with pictures beside a batch of text.
            for (name, owner), optimizer in zip(self._owners.items(), self.optimizers, strict=True):
                if owner.grad is not None:
                    step(owner, name, optimizer)
        finally:
            for handle in handles:
                handle.remove()

    def pull(self, gradient: Callable[[str, Tensor], Tensor]) -> None:
        """Adds `gradient(name, master)` to what was collected for each master."""
        self.note_reached()
        self._add(gradient, self.values)

    @torch.no_grad()
    def _add(self, gradient: Callable[[str, Tensor], Tensor], keys: Iterable[str]) -> None:
        for key in keys:
            grad = self.values[key].grad
            if grad is not None:
                grad += gradient(key, self.values[key])

    def note_reached(self) -> None:
        """Notes which masters the loss has reached, before something that is no gradient of its own is added."""
        self._note_reached()
        self._noted = True

    def forget(self) -> None:
        """Throws away what was collected, so that the step is not made."""
        for parameter in (*self._masters, *self._owners.values()):
            parameter.grad = None
        self._noted = False

    def _note_reached(self) -> None:
        self._unreached = {key: master for key, master in self._unreached.items() if master.grad is None or not bool(master.grad.any())}

    @staticmethod
    def _set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr

    def gradients(self) -> Iterator[Tensor]:
        """The collected gradients of parameters that this process holds whole, live; those of shards were added up on their way."""
        return (grad for key, grad in self._grads() if parameter_of(key) not in self.sharded)

    def _grads(self) -> Iterator[tuple[str, Tensor]]:
        return ((key, master.grad) for key, master in self.values.items() if master.grad is not None)

    def norm(self, processes: Processes | None = None) -> Tensor:
        """The global norm of the collected gradient, a scalar; over the shards of all processes."""
        if not self.sharded or processes is None:
            return nn.utils.get_total_norm([grad for _, grad in self._grads()])
        whole = [grad.square().sum() for key, grad in self._grads() if parameter_of(key) not in self.sharded]
        parts = [grad.square().sum() for key, grad in self._grads() if parameter_of(key) in self.sharded]
        total = torch.stack(parts).sum()
        processes.add_up([total])
        return (total + sum(whole)).sqrt()

    def step(self, lr: float, norm: Tensor, clip: float | None) -> None:
        """One AdamW step at rate `lr` with the gradient scaled down to norm `clip`; the result is cast into the parameters."""
        if not self._noted:
            self._note_reached()
        self._noted = False
        if clip is not None:
            nn.utils.clip_grads_with_norm_(self._masters, clip, norm)
        for optimizer in self.optimizers:
            self._set_rate(optimizer, lr)
            optimizer.step()
        for master in self._masters:  # those too of which this process holds nothing, and which are in no optimizer
            master.grad = None
        self.store()

    @torch.no_grad()
    def store(self) -> None:
        """Casts the masters into the parameters; round to nearest, ties to even."""
        torch._foreach_copy_(self._live, [master.detach() for master in self._masters])

    def still(self) -> list[str]:
        """Parameters that no gradient has reached yet, in this session. Gradients tell, not values: weight decay alone moves those too."""
        reached = {parameter_of(key) for key in self.values.keys() - self._unreached.keys()}
        return [name for name in self._owners if name not in reached]

    @torch.no_grad()
    def lost_to_rounding(self, base: Mapping[str, Tensor]) -> tuple[int, int]:
        """How many elements moved in fp32, and of how many of these the parameter is bit for bit what it was in `base`.

        `base` has the earlier values of each part, in its own dtype. The latter moves are what selectune's masters keep, and what weights
        trained in 16 bits would lose step by step. Of shards it counts what this process holds.
        """
        moved = lost = 0
        for key, master in self.values.items():
            before = base[key].to(master.device)
            changed = master.detach() != before.float()
            moved += int(changed.sum())
            lost += int((changed & (self.live[key] == before)).sum())
        return moved, lost

    def state(self) -> dict[str, Tensor]:
        """Masters and what the optimizer keeps of each, by name: `master/NAME`, `exp_avg/NAME`, …; the latter from the first step on.

        Of shards it is this process's part; a checkpoint of sharded masters is one file a process.
        """
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
