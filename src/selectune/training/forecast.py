"""How much memory and time a training takes, from shapes alone: nothing is loaded.

Everything is a sum that can be read: weights, masters, moments, gradients, what waits for the backward pass (`training.tracing`), logits,
and what is kept of frozen parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from selectune.network import parameters
from selectune.quantising import Kind, frozen_linears
from selectune.training.adapter import matrix_elements
from selectune.training.allocator import Allocator, allocator
from selectune.training.cut import first_layer
from selectune.training.features import in_language
from selectune.training.load import Load
from selectune.training.losses import CHUNK
from selectune.training.machine import UNKNOWN, Machine
from selectune.training.tracing import Pass, Span, trace
from selectune.training.work import Work, is_early, required

if TYPE_CHECKING:
    from selectune.components import ComponentMap, Selection
    from selectune.models import Model
    from selectune.recipe import Anchors, Distill, Optim

# Korthikanti et al. (2022), arXiv 2205.05198, equation 2 without attention scores, which fused attention never stores: 34 bytes a
# token and hidden unit for 16-bit activations of one layer. For models that cannot be traced, and for vision towers.
ACTIVATION_BYTES = 34
HOLES: dict[Allocator, dict[int, float]] = {"glibc": {4: 0.22, 2: 0.35}, "tcmalloc": {4: 0.0, 2: 0.15}}
"""By bytes of a number, what a CPU's heap needs beyond what comes and goes in a pass, as a share of that. Measured over 20 trainings with
glibc: fp32 0.1 to 0.3, bf16 0.3 to 0.6. With freed blocks given back at once it was none, and a step took 1.4 times the CPU time. Measured
over nine with tcmalloc: bf16 0.05 to 0.25, fp32 -0.2, as what comes and goes is over-counted there. Others are taken for glibc."""
HOLES_OF_GRADIENTS: dict[Allocator, float] = {"glibc": 0.3, "tcmalloc": 0.1}
"""A further share, of gradients, which come when activations go."""
HOLES_BETWEEN = 0.3
"""A further share of a pass where a batch is divided into several."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """An estimate of the memory that training takes, in bytes."""

    parameters: int
    """All weights, frozen ones in the bits that they are held in."""
    masters: int
    """fp32 copies of what is trained; with an adapter its matrices too."""
    moments: int
    """What the optimizer keeps."""
    gradients: int
    """At the most: in the parameters' dtype, then in fp32 beside them."""
    activations: int
    """What waits for the backward pass, above the cut."""
    logits: int = 0
    """Of labelled positions, with their gradient."""
    kept: int = 0
    """Features of pictures and states at the cut, and the base's values of the selection."""
    passing: int = 0
    """The largest tensors that come and go."""
    waiting: int = 0
    """Gradients of one portion that wait while the next one runs."""
    keep: int = 0
    """What holds old skills: copies of what is trained as it was at the start, the Fisher information, a teacher's kept answers."""
    heap: int = 0
    """Holes in the C library's heap that fit nothing: freed memory is kept for speed (`training.allocator`)."""

    @property
    def above(self) -> int:
        """The peak above the weights. When activations are at their most there are no gradients yet, and the other way round."""
        steady = self.masters + self.moments + self.kept + self.keep
        running = self.activations + self.logits + self.passing + self.waiting
        return steady + max(running, self.gradients) + self.heap

    @property
    def total(self) -> int:
        """The peak."""
        return self.parameters + self.above


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a training is expected to take."""

    memory: Memory
    work: Work
    seconds: float | None = None
    """A step; None where the machine's rates are not known."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """How each part was found, where there is more than one way."""


def forecast(
    model: Model, selection: Selection, optim: Optim, load: Load, *, machine: Machine = UNKNOWN, quantised: Kind | None = None
) -> Forecast:
    """What training `selection` is expected to take on `machine`. Only the model's shapes are used; `outline` gives one without weights."""
    net = outline(model.net)
    task = _Task(net=net, map=model.map, selection=selection, optim=optim, load=load, quantised=quantised)
    span = Span(first=task.first, below=task.below, rows=load.rows, length=load.length, device=machine.device)
    traced = trace(net, model.map, () if task.adapter else selection.parameters, span)
    work = required(model.map, net.config, selection, load)
    if isinstance(traced, str):
        why = f"34 bytes a token, hidden unit and layer, for its pass could not be traced: {traced}"
    else:
        why = f"the pass was traced: {traced.saved / 1e6:,.0f} MB in {traced.layers} layers"
    memory = task.memory(traced, machine.device)
    again = optim.checkpointing is True
    seconds = machine.step(work, traced, passes=load.passes, trained=task.count, recomputed=again)
    return Forecast(memory=memory, work=work, seconds=seconds, reasons={"activations": why})


def rough(model: Model, selection: Selection, optim: Optim, load: Load) -> Memory:
    """The memory by formulas alone, in milliseconds; no pass is traced."""
    task = _Task(net=model.net, map=model.map, selection=selection, optim=optim, load=load, quantised=None)
    return task.memory("not traced", model.device.type)


def outline(net: Any) -> Any:
    """The network on the meta device: itself if it is there, else one built from its configuration."""
    import torch

    if all(parameter.is_meta for parameter in net.parameters()):
        return net
    with torch.device("meta"):
        return type(net)._from_config(net.config, dtype=net.dtype).eval()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One training, and the parts of its memory."""

    net: Any
    map: ComponentMap
    selection: Selection
    optim: Optim
    load: Load
    quantised: Kind | None

    @property
    def first(self) -> int:
        return first_layer(self.selection)

    @property
    def adapter(self) -> bool:
        return self.optim.adapter is not None

    @property
    def below(self) -> bool:
        """Whether what enters the first layer needs a gradient."""
        return self.adapter or is_early(self.selection)

    @property
    def size(self) -> int:
        return int(self.net.dtype.itemsize)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The whole shapes of what is selected in full or in part."""
        return [tuple(self.selection.full_shapes[name]) for name in self.selection.parameters]

    @property
    def count(self) -> int:
        """Numbers that are trained."""
        adapter = self.optim.adapter
        return self.selection.elements if adapter is None else matrix_elements(self.selection, adapter)

    def memory(self, traced: Pass | str, device: str) -> Memory:
        load, width, words = self.load, self.net.config.get_text_config().hidden_size, self.net.config.get_text_config().vocab_size
        # The base's values of the selection lie in the machine's own memory, wherever the model is.
        kept = self.selection.elements * self.size if device == "cpu" else 0
        if in_pictures(self.selection) is None:
            kept += load.kept * load.picture * width * self.size
        if load.begins == "cut":
            kept += load.kept * load.length * width * self.size
        # Beside its own logits, their gradient and the loss's: a teacher's, and the divergence's gradient.
        logits = self._logits(load.labels, 3 + _of_teacher(load.keep.distill), words, device)
        activations, passing = self._activations(traced), 0 if isinstance(traced, str) else 4 * traced.largest
        if load.anchors is not None:
            # They come before the batch, in passes of their own, so that the larger of both counts.
            theirs = activations * load.anchors.tokens // load.tokens
            seen = self._logits(load.anchors.labels, 2 + _of_teacher(load.keep.anchors), words, device)
            activations, logits = max((activations, logits), (theirs, seen), key=sum)
        heap = 0.0
        if device == "cpu":
            whose: Allocator = "tcmalloc" if allocator() == "tcmalloc" else "glibc"
            share = HOLES[whose].get(self.size, HOLES[whose][4]) + (HOLES_BETWEEN if load.passes > 1 else 0.0)
            heap = share * (activations + logits + passing) + HOLES_OF_GRADIENTS[whose] * self._gradients()
        return Memory(
            parameters=self._weights() + (4 * self.count if self.adapter else 0),
            masters=4 * self.count,
            moments=self._moments(),
            gradients=self._gradients(),
            activations=activations,
            logits=logits,
            kept=kept,
            passing=passing,
            heap=int(heap),
            waiting=4 * self.count if load.passes > 1 or load.anchors is not None else 0,
            keep=self._keep(words),
        )

    def _logits(self, labels: int, copies: int, words: int, device: str) -> int:
        return copies * self.size * labels * words + 8 * min(labels * words, CHUNK.get(device, 1 << 24))

    def _keep(self, words: int) -> int:
        """Of `training.keeping`: what is there from the first step to the last."""
        keep = self.load.keep
        taught, pulled = keep.distill is not None or keep.anchors is not None, keep.l2sp is not None or keep.ewc is not None
        total = 4 * self.selection.elements if keep.ewc is not None else 0
        if taught or (pulled and not self.adapter):
            total += 4 * self.count if self.adapter else self.selection.elements * self.size
        for term, asked in ((keep.distill, self.load), (keep.anchors, self.load.anchors)):
            if term is not None and asked is not None and term.top_k is not None:
                # A word's number and the logarithm of its share, and that of all others.
                total += asked.labels * asked.records // asked.rows * (8 * min(term.top_k, words) + 4)
        return total

    def _weights(self) -> int:
        named = parameters(self.net)
        total = sum(parameter.numel() * parameter.element_size() for parameter in named.values())
        if self.quantised is None:
            return total
        for place in frozen_linears(self.net, self.map, self.selection.parameters):
            rows, columns = named[f"{place.path}.weight"].shape
            # int8: a scale in fp32 for each row; nf4: one for each 64 weights.
            packed = rows * columns + 4 * rows if self.quantised == "int8" else rows * columns // 2 + rows * columns // 16
            total -= rows * columns * self.size - packed
        return total

    def _moments(self) -> int:
        if self.optim.optimizer == "adamw":
            return 8 * self.count
        shapes = [(self.count,)] if self.adapter else self.shapes
        if self.optim.optimizer == "adafactor":
            return sum(4 * (sum(shape[-2:]) * prod(shape[:-2]) if len(shape) > 1 else shape[0]) for shape in shapes)
        # bitsandbytes: two of one byte with a scale in fp32 for each 256, and fp32 for tensors of less than 4096 elements.
        return sum(prod(shape) * 2 + prod(shape) // 32 if prod(shape) >= 4096 else 8 * prod(shape) for shape in shapes)

    def _gradients(self) -> int:
        if self.adapter:
            return (4 + 4) * self.count
        whole = [prod(shape) for shape in self.shapes]
        if self.optim.in_backward:
            return (self.size + 4) * max(whole)
        # A tensor of which a part is selected has a gradient all the same. A further portion is made fp32 before it is added.
        more = 4 * self.count if self.load.passes > 1 and self.size < 4 else 0
        return self.size * sum(whole) + 4 * self.count + more

    def _activations(self, traced: Pass | str) -> int:
        text, tokens = self.net.config.get_text_config(), self.load.tokens
        layers = text.num_hidden_layers - self.first
        rough = ACTIVATION_BYTES * self.size // 2 * tokens * text.hidden_size
        saved = rough * layers if isinstance(traced, str) else traced.saved
        if self.optim.checkpointing is True:
            # While a layer is recomputed, what it has for itself is there beside what waits.
            saved = tokens * text.hidden_size * self.size * layers + 2 * saved // max(layers, 1)
        elif self.adapter:
            # PEFT hands a copy of the input in fp32 to each pair of matrices; where it is fp32 already, several have the same one.
            shared = 1 if self.size < 4 else 2
            saved += sum(4 * tokens * shape[-1] for shape in self.shapes if len(shape) > 1) // shared
        vision = getattr(self.net.config, "vision_config", None)
        if in_pictures(self.selection) is not None and vision is not None and self.load.picture:
            saved += _of_towers(vision, self.size, self.load)
        return saved


def _of_teacher(term: Distill | Anchors | None) -> int:
    """Copies of the logits that a divergence needs: its gradient, and a teacher's own unless its likeliest words are kept."""
    return 0 if term is None else 1 + (term.top_k is None)


def _of_towers(vision: Any, size: int, load: Load) -> int:
    """Roughly, what a trained vision tower keeps: a patch for each image token, and more of them where a projector merges some."""
    merged = getattr(vision, "spatial_merge_size", 1) ** 2
    layers = next((getattr(vision, name) for name in ("num_hidden_layers", "depth", "num_layers") if hasattr(vision, name)), 1)
    return ACTIVATION_BYTES * size // 2 * load.rows * load.picture * merged * int(vision.hidden_size) * int(layers)


def in_pictures(selection: Selection) -> str | None:
    """The first component of a selection that decides what a picture becomes; None where features can be kept."""
    return next((name for name in selection.names if not in_language(name)), None)
