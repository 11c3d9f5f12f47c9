"""One step of a training: its batch in portions, forward and back, added up over all processes, and made."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selectune.errors import Diverged
from selectune.network import holds_shards
from selectune.training.losses import cross_entropy
from selectune.training.results import Step
from selectune.training.schedule import micro_batches

if TYPE_CHECKING:
    from selectune.training.forward import Batch
    from selectune.training.setup import Setup


class Stepper:
    """Makes a training's steps, one after the other."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._optim, self._samples = setup.optim, setup.samples
        self._masters, self._keeper = setup.masters, setup.keeper
        self._forward, self._processes = setup.forward, setup.processes
        self._in_step = holds_shards(setup.model.net)

    def make(self, number: int) -> Step:
        """Step `number`. Raises Diverged, with the samples, for a loss or a gradient that is not finite; the step is then not taken."""
        started = time.perf_counter()
        kept = self._samples.kept
        indices = self._setup.schedule.batch(number)
        tokens = sum(kept[index].supervised for index in indices)
        parts: list[tuple[Batch, Tensor]] = []
        self._keeper.begin([kept[index] for index in indices])
        for apart in self._keeper.anchored(number, self._setup.seed, self._optim.micro_batch):
            apart.backward()
            if not self._optim.in_backward:
                self._masters.collect()
        for part in micro_batches(self._processes.share(indices, self._samples.lengths), self._samples.lengths, self._optim.micro_batch):
            samples = [kept[index] for index in part]
            batch = self._forward.batch(samples)
            aim = self._keeper.aim(samples, batch)
            with self._forward.kernels(batch):
                logits = self._forward.logits(batch)
                losses = cross_entropy(logits, batch.targets)
                objective = self._keeper.objective(losses, logits, aim)
                # A batch of text alone reaches nothing of a selected vision tower: it has no gradient then, which is no error.
                if losses.requires_grad and self._optim.in_backward:
                    return self._in_backward(number, started, (batch, losses.detach()), objective)
                if losses.requires_grad:
                    objective.backward()
            self._masters.collect()
            parts.append((batch, losses.detach()))
        self._keep_in_step(indices, len(parts))
        if not parts:
            self._masters.collect()
        total = torch.cat([losses for _, losses in parts]).sum() if parts else torch.zeros((), device=self._setup.model.device)
        # Each process knows how many labels the whole batch has, so that a sum over all is the mean.
        self._processes.add_up((*self._masters.gradients(), total, *self._keeper.sums.values()))
        self._keeper.pull()
        norm = self._masters.norm(self._processes)
        loss, length = torch.stack([total / tokens, norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(length)):
            raise _diverged(number, loss, length, parts)
        self._masters.step(self._setup.schedule.lr(number), norm, self._optim.clip)
        return self._made(number, started, loss, length, tokens)

    def left_out(self, number: int, started: float, error: Diverged) -> Step:
        """The step that `error` is about, as one that is not made: nothing moves, and what was collected is thrown away."""
        self._masters.forget()
        return self._made(number, started, math.nan, math.nan, 0, fault=error.what.removeprefix(f"step {number}: "))

    def _keep_in_step(self, indices: list[int], done: int) -> None:
        """Runs that count for nothing, where shards are gathered in every run and another process has more of them to make."""
        if not self._in_step:
            return
        lengths, size = self._samples.lengths, self._optim.micro_batch
        most = self._processes.most(indices, lengths, lambda share: len(micro_batches(share, lengths, size)))
        for _ in range(most - done):
            samples = [self._samples.kept[indices[0]]]
            batch = self._forward.batch(samples)
            self._keeper.aim(samples, batch)
            with self._forward.kernels(batch):
                (self._forward.losses(batch).sum() * 0.0).backward()
            self._masters.collect()

    def _in_backward(self, number: int, started: float, part: tuple[Batch, Tensor], objective: Tensor) -> Step:
        """The whole batch at once; a gradient that is not finite is seen only after its step was made, and then nothing goes on."""
        loss = part[1].mean().item()
        if not (math.isfinite(loss) and bool(objective.isfinite())):
            raise _diverged(number, loss, math.nan, [part])
        penalty = self._keeper.penalty()
        if penalty is not None:
            penalty.backward()
        pull = self._keeper.slope if self._keeper.pulls_masters else None
        with self._masters.stepping_in_backward(self._setup.schedule.lr(number), pull) as squares:
            objective.backward()
        length = torch.stack(squares).sum().sqrt().item()
        if not math.isfinite(length):
            raise _diverged(number, loss, length, [part])
        return self._made(number, started, loss, length, len(part[1]))

    def _made(self, number: int, started: float, loss: float, length: float, tokens: int, *, fault: str = "") -> Step:
        return Step(
            n=number,
            total=self._setup.schedule.total,
            loss=loss,
            lr=self._setup.schedule.lr(number),
            tokens=tokens,
            grad_norm=length,
            seconds=time.perf_counter() - started,
            fault=fault,
            kept=self._keeper.added(),
        )


def _diverged(number: int, loss: float, norm: float, parts: list[tuple[Batch, Tensor]]) -> Diverged:
    """The error that names the samples whose loss is not finite; all of the batch if it is the gradient alone."""
    bad = [batch.ids[row] for batch, losses in parts for row in sorted(set(batch.rows[~losses.isfinite()].tolist()))]
    ids = bad or [name for batch, _ in parts for name in batch.ids]
    named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return Diverged(
        f"step {number}: the loss is {loss:g} and the gradient's norm {norm:g}; samples: {named}",
        where="training",
        then="Look at these samples, lower optim.lr, or lengthen optim.warmup; the step was not taken.",
    )
