"""Cross-entropy over the labelled positions, in fp32, with no fp32 copy of all the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 20}
"""Logits that are held in fp32 at once, by device type: 4 MiB on a CPU, so that they stay in its cache; else 64 MiB."""


def chunks(logits: Tensor) -> list[slice]:
    """The rows of logits (N, vocabulary) in portions that are held in fp32 one after the other."""
    rows = max(1, CHUNK.get(logits.device.type, 1 << 24) // logits.shape[1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


class _CrossEntropy(torch.autograd.Function):
    """Computes the gradient with the value, chunk by chunk: softmax minus one-hot. Nothing in fp32 survives but one number a row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for part in chunks(logits):
            log_shares = torch.log_softmax(logits[part].float(), dim=-1)
            aims = targets[part].unsqueeze(1)
            losses[part] = -log_shares.gather(1, aims).squeeze(1)
            if grad is not None:
                shares = log_shares.exp_()
                shares.scatter_add_(1, aims, -torch.ones_like(aims, dtype=torch.float32))
                grad[part] = shares
        if grad is not None:
            ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * outward[0].unsqueeze(1).to(grad.dtype), None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood (nats, fp32) of each row's target: logits (N, vocabulary) in any float dtype, targets (N), result (N)."""
    result: Tensor = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]  # torch has no types here
    return result
