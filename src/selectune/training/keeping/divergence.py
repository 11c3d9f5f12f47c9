"""How far a student's distribution is from its teacher's: KL(teacher || student) of each position, in fp32, chunk by chunk.

Of a teacher that is kept, only the k likeliest words of each position are known, and the sum of all others. The others then count as one
word, for the student too: the divergence over these k + 1 events is never more than the whole one (data-processing inequality), equal to
it where k is the vocabulary, and no probability is left out or spread by guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selectune.training.losses import chunks


def _expected(shares: Tensor, differences: Tensor) -> Tensor:
    """Each share times its difference; 0 where the share is 0, whatever the difference."""
    return torch.where(shares > 0, shares * differences, 0.0)


class _Whole(torch.autograd.Function):
    """The gradient with the value: student's shares minus teacher's, over the temperature."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        found = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for part in chunks(logits):
            ours = torch.log_softmax(logits[part].float() / temperature, dim=-1)
            theirs = torch.log_softmax(teacher[part].float() / temperature, dim=-1)
            shares = theirs.exp()
            found[part] = _expected(shares, theirs - ours).sum(dim=-1)
            if grad is not None:
                grad[part] = (ours.exp_() - shares) / temperature
        if grad is not None:
            ctx.save_for_backward(grad)
        return found

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * outward[0].unsqueeze(1).to(grad.dtype), None, None


class _Top(torch.autograd.Function):
    """The same over k words and the rest of the vocabulary as one."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, words: Tensor, shares: Tensor, rest: Tensor, temperature: float) -> Tensor:
        found = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for part in chunks(logits):
            ours = torch.log_softmax(logits[part].float() / temperature, dim=-1)
            chosen = words[part].long()
            mine, others = ours.gather(1, chosen), _others(ours, chosen)
            top, left = shares[part].exp(), rest[part].exp()
            found[part] = _expected(top, shares[part] - mine).sum(dim=-1) + _expected(left, rest[part] - others)
            if grad is not None:
                # Of a word that is not among the k only the sum of the others is wanted: its share, less its part in what they should have.
                scale = 1.0 - torch.where(left > 0, (rest[part] - others).exp(), 0.0)
                slope = ours.exp_().mul_(scale.unsqueeze(1))
                slope.scatter_(1, chosen, mine.exp() - top)
                grad[part] = slope / temperature
        if grad is not None:
            ctx.save_for_backward(grad)
        return found

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * outward[0].unsqueeze(1).to(grad.dtype), None, None, None, None


def _others(log_shares: Tensor, words: Tensor) -> Tensor:
    """Log of the sum of every share but those of `words`; minus infinity where no word is left."""
    return torch.logsumexp(log_shares.scatter(1, words, -math.inf), dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A teacher's logits (positions, vocabulary)."""

    logits: Tensor

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """KL of each position, in nats; the gradient flows into `student` alone."""
        found: Tensor = _Whole.apply(student, self.logits, temperature)  # type: ignore[no-untyped-call]  # torch has no types here
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Top:
    """The likeliest words of a teacher at each position, at one temperature."""

    words: Tensor
    """(positions, k), int32."""
    shares: Tensor
    """(positions, k): their log-probabilities, fp32."""
    rest: Tensor
    """(positions,): log of the probability of all others."""

    @classmethod
    def of(cls, logits: Tensor, k: int, temperature: float) -> Top:
        """The `k` likeliest words by a teacher's logits; all of them where there are no more."""
        parts = []
        for part in chunks(logits):
            log_shares = torch.log_softmax(logits[part].float() / temperature, dim=-1)
            shares, words = log_shares.topk(min(k, logits.shape[1]), dim=-1)
            parts.append((words.to(torch.int32), shares, _others(log_shares, words)))
        words, shares, rest = (torch.cat(column) for column in zip(*parts, strict=True))
        return cls(words=words, shares=shares, rest=rest)

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """KL of each position over the k words and the rest as one, in nats."""
        found: Tensor = _Top.apply(student, self.words, self.shares, self.rest, temperature)  # type: ignore[no-untyped-call]
        return found


Aim = Whole | Top
"""What a teacher says of the labelled positions of a batch."""
