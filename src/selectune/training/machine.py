"""How fast this machine is at what a step consists of: matrix products, moving bytes, and calling kernels at all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from selectune.components import map_model
from selectune.training.norms import LeanNorms
from selectune.training.tracing import Fused, Pass, Product, Span, trace

if TYPE_CHECKING:
    from selectune.training.work import Work

SHARE = 0.6
"""Of the matrix rate, where a pass could not be traced: what plain loops were seen to reach."""
_LARGEST = 5e9
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
    fused: float | None = None
    """Multiplications and additions a second of a fused attention, forward and back; None: as of a matrix product."""

    def step(self, work: Work, traced: Pass | str, *, passes: int, trained: int, recomputed: bool = False) -> float | None:
        """Seconds of one step; an optimizer reads and writes 40 bytes for each number that is trained."""
        if self.rate is None:
            return None
        optimizer = 40 * trained / self.streaming
        attention, products = work.attention, work.total - work.attention
        if recomputed:  # of attention a third is forward
            attention, products = attention * 4 / 3, products + work.forward
        if isinstance(traced, str):
            return (products + attention) / self.rate / SHARE + optimizer
        moved, calls = traced.moved + recomputed * traced.forward_moved, traced.operations + recomputed * traced.forward_operations
        rest = passes * (moved / self.bandwidth + calls * self.call)
        return products / self.rate + attention / (self.fused or self.rate) + rest + optimizer


UNKNOWN = Machine()
"""A CPU of which no rate is known: memory alone is forecast."""


SQUARE: Mapping[Product, int] = {(2048, 2048, 2048, False, False): 1}
"""The product by which machines are compared."""


def measure(dtype: torch.dtype, traced: Pass | str = "", device: str = "cpu") -> Machine:
    """This machine's rates in `dtype`, in about two seconds; those of products and attention as a traced pass has them, if there is one."""
    call = _call(device)
    products, fused = (traced.products, traced.fused) if isinstance(traced, Pass) else ({}, {})
    return Machine(
        device=device,
        rate=matrix_rate(dtype, products or SQUARE, device),
        fused=fused_rate(dtype, fused, device) if fused else None,
        bandwidth=_bandwidth(dtype, device, call),
        call=call,
        streaming=_streaming(device),
    )


def matrix_rate(dtype: torch.dtype, products: Mapping[Product, int] = SQUARE, device: str = "cpu", times: int = 3) -> float:
    """Multiplications and additions a second over all the products, each as often as it occurs: medians of `times`."""
    flops = seconds = 0.0
    for (rows, inner, columns, *turned), count in products.items():
        share = min(1.0, _LARGEST / (2 * rows * inner * columns))
        # Of a large product fewer rows, or of a weight's gradient, whose inner size is the tokens, fewer of these.
        few, short = (rows, max(1, int(inner * share))) if turned[0] else (max(1, int(rows * share)), inner)
        left, right = _matrix(few, short, turned[0], dtype, device), _matrix(short, columns, turned[1], dtype, device)
        one = _median(lambda left=left, right=right: left @ right, device, times)  # type: ignore[misc]  # each call has its own
        flops += 2.0 * rows * inner * columns * count
        seconds += one * (rows * inner) / (few * short) * count
    return flops / seconds


def fused_rate(dtype: torch.dtype, calls: Mapping[Fused, int], device: str = "cpu", times: int = 3) -> float:
    """Multiplications and additions a second over all calls of a fused attention, the masked half left out: medians of `times`."""
    work = seconds = 0.0
    for (rows, heads, length, width, back), count in calls.items():
        query, key, value = (torch.randn(rows, heads, length, width, device=device).to(dtype).requires_grad_() for _ in range(3))

        def forward(query: Tensor = query, key: Tensor = key, value: Tensor = value) -> Tensor:
            return scaled_dot_product_attention(query, key, value, is_causal=True)

        out = forward()
        grad = torch.randn_like(out)

        def backward(out: Tensor = out, grad: Tensor = grad, inputs: Sequence[Tensor] = (query, key, value)) -> Tensor:
            return torch.autograd.grad(out, inputs, grad, retain_graph=True)[0]

        one = _median(backward if back else forward, device, times)
        work += 2.0 * rows * heads * length**2 * width * (2 if back else 1) * count
        seconds += one * count
    return work / seconds


def _matrix(rows: int, columns: int, turned: bool, dtype: torch.dtype, device: str) -> Tensor:
    made = torch.randn((columns, rows) if turned else (rows, columns), device=device).to(dtype)
    return made.t() if turned else made


def _bandwidth(dtype: torch.dtype, device: str, call: float) -> float:
    """Of all that layers do between products: what a small tower's pass takes beyond its products and its calls."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=4, **sizes)
    with torch.device("meta"):
        shapes = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    span = Span(first=0, below=False, rows=32, length=64, device=device)
    traced = trace(shapes, map_model(shapes, "the machine"), [name for name, _ in shapes.named_parameters() if "attn" in name], span)
    assert isinstance(traced, Pass)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        net = LlamaForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)
        states = torch.randn(span.rows, span.length, 256).to(dtype)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("attn" in name)

    norms = LeanNorms(net)

    def run() -> Tensor:
        net.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext(), norms.used():
            output: Tensor = net.model(inputs_embeds=states, use_cache=False).last_hidden_state
            output.backward(states)
        return output

    taken = _median(run, device, 5) - sum(2 * m * k * n * count for (m, k, n, *_), count in traced.products.items()) / matrix_rate(
        dtype, traced.products, device
    )
    return traced.moved / max(taken - traced.operations * call, 0.1 * taken)


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
