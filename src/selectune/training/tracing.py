"""What one pass through the language tower keeps, moves and multiplies, found by making the pass with tensors that have shapes alone.

Nothing is computed and no memory is taken, so a model of any size is traced in seconds, from its configuration. Every kind of layer says
for itself what its backward pass will need; no table of families is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from selectune.network import parameters
from selectune.training.cut import find_layers
from selectune.training.kernels import has_plain_attention
from selectune.training.norms import LeanNorms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from selectune.components import ComponentMap

_FAILURES = (RuntimeError, NotImplementedError, TypeError, ValueError, KeyError, IndexError, AttributeError)
"""What a model raises whose pass depends on values, which a tensor without values does not have."""
_VIEWS = frozenset({"view", "transpose", "expand", "slice", "t", "permute", "unsqueeze", "squeeze", "detach", "alias", "select", "split"})
_VIEWS |= {"_unsafe_view", "as_strided", "chunk", "unbind", "_reshape_alias", "split_with_sizes", "empty", "sym_size"}
"""Operations that move nothing."""


Product = tuple[int, int, int, bool, bool]
"""Rows, inner size and columns of a matrix product, and whether its left and its right side lie transposed in memory."""


Fused = tuple[int, int, int, int, bool]
"""Samples, heads, length and width of a head of a fused attention, and whether it is its backward pass."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward and backward pass of the language tower, from the first trained layer on."""

    saved: int
    """Bytes that wait for the backward pass, weights aside."""
    layers: int
    """Layers that build a graph."""
    flops: int
    """Multiplications and additions, as torch's own counter has them: what is done, needed or not."""
    moved: int
    """Bytes that everything but matrix products reads and writes."""
    operations: int
    """Calls into torch's kernels."""
    forward_moved: int
    """The forward pass' share of `moved`; what is recomputed does it twice."""
    forward_operations: int
    largest: int
    """Bytes of the largest tensor that is made on the way."""
    products: dict[Product, int] = field(default_factory=dict)
    """How often each matrix product occurs; batches of products are counted by `flops` and `moved` alone."""
    fused: dict[Fused, int] = field(default_factory=dict)
    """How often each kind of fused attention occurs."""


class _Tape(TorchDispatchMode):
    """Counts what every operation moves."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.operations = self.largest = 0
        self.products: dict[Product, int] = {}
        self.fused: dict[Fused, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _VIEWS:
            return made
        self.operations += 1
        outputs = [one for one in tree_leaves(made) if isinstance(one, Tensor)]
        self.largest = max(self.largest, *(one.nbytes for one in outputs), 0)
        if name in ("mm", "addmm"):
            left, right = args[-2:]
            shape = (left.shape[0], left.shape[1], right.shape[1], not left.is_contiguous(), not right.is_contiguous())
            self.products[shape] = self.products.get(shape, 0) + 1
        elif name.startswith("_scaled_dot_product_flash_attention"):
            back = "backward" in name
            kind: Fused = (*args[1 if back else 0].shape, back)
            self.fused[kind] = self.fused.get(kind, 0) + 1
        else:
            inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            self.moved += sum(one.numel() * one.element_size() for one in (*inputs, *outputs))
        return made


@dataclass(frozen=True, kw_only=True)
class Span:
    """What is traced, and for what kind of device."""

    first: int
    """The first layer that is computed."""
    below: bool
    """What enters it needs a gradient: something before it is trained, or matrices beside the weights are."""
    rows: int
    length: int
    device: str = "cpu"
    """The type of device that the pass is meant for."""


def trace(net: Any, found: ComponentMap, trained: Iterable[str], span: Span) -> Pass | str:
    """The pass of `span.rows` samples of `span.length` tokens with a gradient for the parameters `trained`, or why there is none.

    `net` is on the meta device and is left as it was.
    """
    wanted = set(trained)
    named = parameters(net)
    flags = {name: parameter.requires_grad for name, parameter in named.items()}
    for name, parameter in named.items():
        parameter.requires_grad_(name in wanted)
    try:
        return _trace(net, found, span)
    except _FAILURES as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(flags[name])
            parameter.grad = None


def _trace(net: Any, found: ComponentMap, span: Span) -> Pass:
    decoder, layers = net.get_decoder(), _layers(net, found, span.first)
    # A mask that is ready is taken as it is; of one to be made, transformers asks the values.
    mask = torch.ones(span.rows, 1, span.length, span.length, dtype=torch.bool, device="meta")
    width = net.config.get_text_config().hidden_size
    states = torch.empty(span.rows, span.length, width, dtype=net.dtype, device="meta")
    kept: dict[int, Tensor] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in net.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    tape, norms = _Tape(), LeanNorms(net)
    with ExitStack() as stack:
        stack.enter_context(norms.used())
        stack.enter_context(_entered(layers, span.first, needs_gradient=span.below))
        stack.enter_context(_kernel(span, net.dtype))
        counter = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(tape)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = decoder(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state
        before = (tape.moved, tape.operations)
        saved = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)
        if output.requires_grad:
            output.backward(torch.empty_like(output))
        return Pass(
            saved=saved,
            layers=len(layers) - span.first,
            flops=counter.get_total_flops(),
            moved=tape.moved,
            operations=tape.operations,
            forward_moved=before[0],
            forward_operations=before[1],
            largest=tape.largest,
            products=tape.products,
            fused=tape.fused,
        )


def _layers(net: Any, found: ComponentMap, first: int) -> nn.ModuleList:
    """The language tower's layers. Raises ValueError where they are no plain list."""
    layers = find_layers(_Mapped(net, found), first)  # type: ignore[arg-type]  # it asks for a network and a map, and no more
    if layers is None:
        raise ValueError("the layers are no plain list of modules")
    return layers


@dataclass(frozen=True)
class _Mapped:
    net: Any
    map: ComponentMap


@contextmanager
def _entered(layers: nn.ModuleList, first: int, *, needs_gradient: bool) -> Iterator[None]:
    """Inside, layers below `first` hand on what they get."""

    def enter(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not needs_gradient:
            return None
        if inputs:
            return (inputs[0].detach().requires_grad_(), *inputs[1:]), options
        return inputs, {**options, "hidden_states": options["hidden_states"].detach().requires_grad_()}

    handle = layers[first].register_forward_pre_hook(enter, with_kwargs=True)
    for layer in layers[:first]:
        layer.forward = _hand_on
    try:
        yield
    finally:
        handle.remove()
        for layer in layers[:first]:
            with suppress(AttributeError):
                del layer.forward


def _hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


@contextmanager
def _kernel(span: Span, dtype: torch.dtype) -> Iterator[None]:
    """The kind of attention that the span's device has: plain products, or a fused kernel."""
    mode = sdpa_kernel(SDPBackend.MATH) if has_plain_attention(span.device, dtype, span.length) else _Fused()
    with mode:
        yield


class _Fused(TorchFunctionMode):
    """Attention by torch's fused kernel for the CPU, which knows shapes without values; the flash kernel of a GPU keeps the same: its
    inputs, its output and a number a row."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **options)
        query, key, value = (*args, *(options[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False)[0]
