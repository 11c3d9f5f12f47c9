"""`capture`: a delta out of somebody else's training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from selectune.components.proof import Proof
from selectune.components.slices import Region, views
from selectune.delta.bits import bit_view
from selectune.delta.changes import extract, net_of, regions, snapshot
from selectune.delta.format import Delta
from selectune.errors import InputError
from selectune.hashing import Entry, Manifest

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

    Inside the block `requires_grad` is true for the selected parameters alone; build the optimizer inside, or leave that to the trainer. A
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
        if hold:
            stack.enter_context(_held(net, selection))
        yield captured
    delta = extract(model, before, selection, meta=meta)
    proof.check(net, still=still)
    captured._delta = delta


@contextmanager
def _trainable(net: torch.nn.Module, selection: Selection) -> Iterator[None]:
    """`requires_grad` true for the selected parameters alone, inside the block."""
    earlier = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    chosen = selection.parameters
    try:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name in chosen)
        yield
    finally:
        for parameter, flag in earlier:
            parameter.requires_grad_(flag)


@contextmanager
def _held(net: torch.nn.Module, selection: Selection) -> Iterator[None]:
    """Outside the selected regions gradients are zero and bits are put back after every optimizer step."""
    parameters = dict(net.named_parameters())
    inside: dict[str, list[Region]] = {}
    for name, region in regions(selection):
        if region is not None:
            inside.setdefault(name, []).append(region)
    handles = [parameters[name].register_hook(_masking(ranges)) for name, ranges in inside.items()]
    holds = [_holding(parameters[name], ranges) for name, ranges in inside.items()]

    def put_back(*_: object) -> None:
        for hold in holds:
            hold()

    handles.append(register_optimizer_step_post_hook(put_back))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masking(ranges: list[Region]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A gradient hook that keeps the regions and zeroes the rest."""

    def keep(gradient: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(gradient)
        for region in ranges:
            for target, source in zip(views(kept, region), views(gradient, region), strict=True):
                target.copy_(source)
        return kept

    return keep


def _holding(parameter: torch.nn.Parameter, ranges: list[Region]) -> Callable[[], None]:
    """Puts every bit outside the regions back to what it is now."""
    original = bit_view(parameter).clone()

    def restore() -> None:
        live = bit_view(parameter)
        whole = original.to(live.device, copy=True)
        for region in ranges:
            for target, source in zip(views(whole, region), views(live, region), strict=True):
                target.copy_(source)
        live.copy_(whole)

    return restore
