"""Pulls back to the start: L2-SP and elastic weight consolidation, over the selection alone.

Both add ``c * (value - start) ** 2`` for each selected element: c is the weight itself for L2-SP, and weight / 2 times the element's Fisher
information for EWC. Their gradient, ``2 * c * (value - start)``, is taken from the fp32 masters and added to the loss's before it is
clipped. With an adapter, `value - start` is what the adapter adds to the weight, the product of its matrices: distances between the
matrices themselves would say nothing of how far the weight has gone.

Sources: Li et al. (2018), "Explicit inductive bias for transfer learning", arXiv 1802.01483 (L2-SP); Kirkpatrick et al. (2017), "Overcoming
catastrophic forgetting in neural networks", arXiv 1612.00796 (EWC).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selectune.network import holds_shards
from selectune.training.parts import Parts, parameter_of
from selectune.training.preparing import training_mode

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model
    from selectune.training.forward import Forward
    from selectune.training.preparing import Samples
    from selectune.training.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Pull:
    """One quadratic term of the loss."""

    name: str
    weight: float
    """The factor of each element's squared distance, before its importance."""
    importance: Mapping[str, Tensor] | None = None
    """By master: a factor for each element; None: 1."""

    def value(self, key: str, moved: Tensor) -> Tensor:
        """What a part that has moved so far adds to the loss."""
        squares = moved.square()
        return self.weight * (squares if self.importance is None else self.importance[key] * squares).sum()

    def gradient(self, key: str, moved: Tensor) -> Tensor:
        """The slope of `value` at each element."""
        slope = (2.0 * self.weight) * moved
        return slope if self.importance is None else self.importance[key] * slope


def fisher(model: Model, selection: Selection, samples: Samples, forward: Forward, processes: Processes) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher at the model as it is, by master, fp32: the mean over the samples of the squared gradient of
    one sample's log-likelihood (the sum over its labelled tokens).

    One backward pass a sample, so that no two samples' gradients are added before they are squared. Several processes share the samples.
    Over shards all go through every sample together, and one of them alone has a loss that counts, for gradients are added up on their way
    to the process that holds them; each squares its own shard.
    """
    in_step = holds_shards(model.net)
    parts = Parts(model.net, selection)
    sums = {key: torch.zeros(view.shape, dtype=torch.float32, device=view.device) for key, view in parts.live().items()}
    with training_mode(model.net, checkpointing=False):
        for owner in parts.owners.values():
            owner.requires_grad_(True)
        forward.settle(samples.typical())
        everything = range(len(samples.kept))
        for number in everything if in_step else processes.share(everything, samples.lengths):
            batch = forward.batch([samples.kept[number]])
            with forward.kernels(batch):
                losses = forward.losses(batch)
                # Text alone reaches nothing of a selected vision tower: its gradient is zero there.
                if losses.requires_grad:
                    counts = not in_step or number % processes.count == processes.index
                    (losses.sum() * float(counts)).backward()
            for name, owner in parts.owners.items():
                if owner.grad is not None:
                    for key, view in parts.of(name, owner.grad):
                        sums[key] += view.float().square()
                owner.grad = None
    processes.add_up(total for key, total in sums.items() if parameter_of(key) not in parts.sharded)
    return {key: total.div_(len(samples.kept)) for key, total in sums.items()}
