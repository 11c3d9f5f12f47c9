"""`capture`: a delta out of somebody else's training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from selectune.components.proof import Proof
from selectune.components.slices import Region, mask
from selectune.delta.bits import bit_view
from selectune.delta.changes import extract, net_of, regions, snapshot
from selectune.delta.format import Delta
from selectune.errors import InputError
from selectune.hashing import Entry, Manifest
from selectune.network import is_sharded, local, parameters, quantised, same_sharding

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model

__all__ = ["Captured", "capture"]


class Captured:
    """What a `capture` block gives once it is over."""

    def __init__(self, base: Manifest) -> None:
        self.base = base
        """The manifest of the model before the block."""
        self._delta: Delta | None = None

    @property
    def delta(self) -> Delta:
        """What the block changed. Raises InputError inside the block, and after one that raised."""
        if self._delta is None:
            raise InputError("the delta is not there yet", where="captured.delta", then="Read it after the `with` block has ended.")
        return self._delta

    def updated(self, model: Model) -> Model:
        """`model` with the manifest of what its network now holds: `revert(captured.updated(model), captured.delta)` gives the base."""
        delta = self.delta
        entries = {name: Entry(dtype=one.dtype, shape=one.shape, sha256=one.new) for name, one in delta.tensors.items()}
        return model.updated(self.base.replace(entries))


@contextmanager
def capture(
    model: Model | torch.nn.Module,
    selection: Selection,
    *,
    hold: bool = True,
    still: Literal["forbid", "report"] = "forbid",
    meta: Mapping[str, Any] | None = None,
) -> Iterator[Captured]:
    """Lets any trainer train the selection, and nothing else, and gives the exact delta.

    Inside the block `requires_grad` is true for the selected parameters alone, and modules without any stay in evaluation mode, whatever
    the trainer's `model.train()` says; build the optimizer inside, or leave that to the trainer. A
    parameter of which only regions are selected is trained whole by the optimizer. With `hold` the gradient outside the regions is zeroed,
    and after each step of any torch optimizer the bits there are put back, since weight decay and momentum move them even where the
    gradient is zero: the forward pass never sees them moved. Without `hold` they are only checked.

    After the block every tensor is hashed again. Raises SelectionViolated if anything outside the selection moved (buffers and tied weights
    included) or, unless `still` is "report", a selected component did not; DeltaError if tensors came, went or changed dtype.
    `requires_grad` is put back in any case; the weights stay as the trainer left them.
    """
    net = net_of(model)
    before = snapshot(model, selection)
    proof = Proof.start(net, selection)
    captured = Captured(before.manifest)
    with ExitStack() as stack:
        stack.enter_context(_trainable(net, selection))
        stack.enter_context(_asleep(net, selection))
        if hold:
            stack.enter_context(_held(net, selection))
        yield captured
    delta = extract(model, before, selection, meta=meta)
    proof.check(net, still=still)
    captured._delta = delta


@contextmanager
def _trainable(net: torch.nn.Module, selection: Selection) -> Iterator[None]:
    """`requires_grad` true for the selected parameters alone, inside the block."""
    earlier = {name: parameter.requires_grad for name, parameter in parameters(net).items()}
    chosen = selection.parameters
    try:
        for name, parameter in parameters(net).items():
            if quantised(parameter) is None:  # integers have no gradient to be asked for
                parameter.requires_grad_(name in chosen)
        yield
    finally:
        for name, parameter in parameters(net).items():
            if quantised(parameter) is None:
                parameter.requires_grad_(earlier[name])


@contextmanager
def _asleep(net: torch.nn.Module, selection: Selection) -> Iterator[None]:
    """Modules without a selected parameter stay in evaluation mode through every `train()`, as do running statistics anywhere.

    Batch-norm's averages move in training mode even where no gradient flows, and dropout in a frozen tower is noise for nothing.
    """
    found = parameters(net)
    chosen = {id(found[name]) for name in selection.parameters}
    modes = {module: module.training for module in net.modules()}
    asleep: list[torch.nn.Module] = []

    def visit(module: torch.nn.Module) -> None:
        own = [*module.parameters(), *module.buffers()]
        if own and not any(id(tensor) in chosen for tensor in own):
            asleep.append(module)
            return
        if "running_mean" in module._buffers:
            asleep.append(module)
        for child in module.children():
            visit(child)

    visit(net)
    for module in asleep:
        module.eval()
        module.train = _stays(module)  # type: ignore[method-assign]  # the instance alone, until the block ends
    try:
        yield
    finally:
        for module in asleep:
            module.__dict__.pop("train", None)
        for module, mode in modes.items():
            module.training = mode


def _stays(module: torch.nn.Module) -> Any:
    def train(mode: bool = True) -> torch.nn.Module:
        return module

    return train


@contextmanager
def _held(net: torch.nn.Module, selection: Selection) -> Iterator[None]:
    """Outside the selected regions gradients are zero and bits are put back after every optimizer step."""
    found = parameters(net)
    inside: dict[str, list[Region]] = {}
    for name, region in regions(selection):
        if region is not None:
            inside.setdefault(name, []).append(region)
    holds = {name: _Hold(name, found[name], ranges) for name, ranges in inside.items()}

    def put_back(*_: object) -> None:
        now = parameters(net) if holds else {}  # FSDP2 puts parameters of its own in the place of those that it shards
        for name, hold in holds.items():
            hold.put_back(now[name])

    handles = [hold.mask_gradients(found[name]) for name, hold in holds.items()]
    handles.append(register_optimizer_step_post_hook(put_back))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Hold:
    """One parameter of which only regions may move: what this process holds of it, and where they lie in that."""

    def __init__(self, name: str, parameter: torch.nn.Parameter, ranges: list[Region]) -> None:
        self._name = name
        self._inside = same_sharding(mask(tuple(parameter.shape), ranges).to(parameter.device), parameter)
        self._original = bit_view(local(parameter)).clone()

    def mask_gradients(self, parameter: torch.nn.Parameter) -> RemovableHandle:
        """Zeroes every gradient outside the regions from now on."""
        if is_sharded(parameter):
            # FSDP2 sets the gradients of its shards itself, and runs none of autograd's hooks but this one.
            def mask_sum(one: torch.Tensor) -> None:
                if one.grad is not None:
                    local(one.grad).masked_fill_(~self._inside, 0)

            handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(mask_sum)
        else:
            handle = parameter.register_hook(lambda gradient: torch.where(self._inside.to(gradient.device), gradient, 0))
        return handle

    def put_back(self, parameter: torch.nn.Parameter) -> None:
        """Puts every bit outside the regions back to what it was."""
        live = bit_view(local(parameter))
        if live.shape != self._original.shape:
            raise InputError(
                f"{self._name} was {tuple(self._original.shape)} in this process and is {tuple(live.shape)}",
                where="capture",
                then="Shard the model (fully_shard) before the block begins.",
            )
        live.copy_(torch.where(self._inside.to(live.device), live, self._original.to(live.device)))
