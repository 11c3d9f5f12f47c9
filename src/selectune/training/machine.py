"""How fast this machine is at what a step consists of: matrix products, moving bytes, and calling kernels at all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from selectune.training.forecast import Work
    from selectune.training.tracing import Pass

SHARE = 0.6
"""Of the matrix rate, where a pass could not be traced: what plain loops were seen to reach."""
_LARGEST = 2e10
"""Multiplications and additions of a product that is timed; rows of a larger one are left out."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates, measured by `measure` or given by hand (a data sheet's will do)."""

    device: str = "cpu"
    """Type of device, as torch calls it."""
    rate: float | None = None
    """Multiplications and additions a second of a matrix product; None: not known, and no time is forecast."""
    bandwidth: float = 2e10
    """Bytes a second that elementwise work reads and writes."""
    call: float = 5e-6
    """Seconds that one call of a kernel takes, however little it does."""
    streaming: float = 1e10
    """Bytes a second of an optimizer, whose tensors are in no cache."""

    def step(self, work: Work, traced: Pass | str, passes: int, trained: int) -> float | None:
        """Seconds of one step; an optimizer reads and writes 40 bytes for each number that is trained."""
        if self.rate is None:
            return None
        optimizer = 40 * trained / self.streaming
        if isinstance(traced, str):
            return work.total / self.rate / SHARE + optimizer
        return work.total / self.rate + passes * (traced.moved / self.bandwidth + traced.operations * self.call) + optimizer


UNKNOWN = Machine()


def measure(dtype: torch.dtype, products: Mapping[tuple[int, int, int], int] | None = None, device: str = "cpu") -> Machine:
    """This machine's rates in `dtype`, in about a second; the matrix rate is that of `products` (shape and count), or of a square one."""
    return Machine(
        device=device,
        rate=matrix_rate(dtype, products or {(2048, 2048, 2048): 1}, device),
        bandwidth=_bandwidth(dtype, device),
        call=_call(device),
        streaming=_streaming(device),
    )


def matrix_rate(dtype: torch.dtype, products: Mapping[tuple[int, int, int], int], device: str = "cpu", times: int = 3) -> float:
    """Multiplications and additions a second over products of (rows, inner, columns), each as often as it occurs: medians of `times`."""
    flops = seconds = 0.0
    for (rows, inner, columns), count in products.items():
        few = max(1, min(rows, int(_LARGEST / (2 * inner * columns))))
        left, right = torch.randn(few, inner, device=device).to(dtype), torch.randn(columns, inner, device=device).to(dtype)
        one = _median(lambda left=left, right=right: left @ right.t(), device, times)  # type: ignore[misc]
        flops += 2.0 * rows * inner * columns * count
        seconds += one * rows / few * count
    return flops / seconds


def _bandwidth(dtype: torch.dtype, device: str) -> float:
    """Of a product and of a change of dtype, in 16 bits and in fp32 by turns, on tensors of a few MB, as layers have them."""
    left, right = torch.randn(1 << 20, device=device).to(dtype), torch.randn(1 << 20, device=device).to(dtype)
    wide = left.float()
    moved = (3 * left.nbytes) + (left.nbytes + wide.nbytes) + 3 * wide.nbytes
    seconds = [_median(call, device, 5) for call in (lambda: left * right, lambda: left.to(torch.float32, copy=True), lambda: wide * wide)]
    return moved / sum(seconds)


def _streaming(device: str) -> float:
    one, other = torch.zeros(1 << 24, device=device), torch.ones(1 << 24, device=device)
    return 3 * one.nbytes / _median(lambda: one.add_(other), device, 3)


def _call(device: str) -> float:
    one = torch.zeros(64, 64, device=device, requires_grad=True)

    def chain() -> Tensor:
        value = one
        for _ in range(50):
            value = value * 1.0
        value.sum().backward()
        return value

    return _median(chain, device, 5) / 100


def _median(call: Callable[[], Tensor], device: str, times: int) -> float:
    """The first is not counted."""
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
