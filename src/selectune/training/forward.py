"""From samples to losses, on the shortest way that gives the same numbers.

Four shortcuts, each taken only after this very model has shown that it gives the same result on its first samples, else left with the
reason:

* `features`: a frozen vision tower's output is kept and handed in, in place of pixels;
* `head`: the output embeddings see labelled positions alone. With 3 labels in 40 tokens and 49152 words, that is 93 % of the head's work
and nearly all of its memory. The rows are picked at the head's own door, so whatever the model does after it (scale, soft cap) stays the
model's business.
* `late`: so do the last layer's MLP and its attention's output matrix, after which positions no longer meet;
* `cut`: what enters the first trained layer is kept, and a pass begins there (`training.cut`).

A further one, `compile`, is taken only where the recipe asks for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os.path import commonpath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from selectune.errors import ModelError
from selectune.network import image_token, walk
from selectune.training.features import Tower, inject
from selectune.training.kernels import CompiledLayers, has_plain_attention
from selectune.training.losses import cross_entropy
from selectune.training.norms import LeanNorms
from selectune.training.slicing import PartlyTrained

if TYPE_CHECKING:
    from selectune.models import Model
    from selectune.records import Encoded, Encoder
    from selectune.training.cut import Cut

REFUSALS = (ModelError, TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError)
"""What a model that does not know a shortcut is seen to raise; the reason is kept, and the plain way is taken."""
_ROLE = re.compile(r"language\.layers\.(\d+)\.(mlp\.up|mlp\.down|attn\.o|.+)")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest relative difference (2-norm) between the logits of two ways that counts as the same; 16-bit dtypes get 2e-2."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples side by side, on the model's device."""

    ids: tuple[str, ...]
    """Record ids, one a row."""
    inputs: dict[str, Any]
    """`input_ids`, `attention_mask` and what else the model takes; pictures are in it as pixels or as features."""
    labels: Tensor
    """(rows, whole length); -100 where no loss is taken."""
    rows: Tensor
    """Row of each loss: which sample it belongs to."""
    where: Tensor
    """Index of the position whose output predicts each target, into the flattened (rows * length of the inputs)."""
    targets: Tensor
    """The label that each of them must predict."""
    states: tuple[Tensor, ...] = ()
    """What enters the first trained layer, one a row; none where a pass begins at the beginning."""


class Forward:
    """One model's way from samples to per-token losses. `reasons` says which shortcuts are taken and why."""

    def __init__(
        self,
        model: Model,
        encoder: Encoder,
        tower: Tower | None,
        why_no_tower: str,
        cut: Cut | None = None,
        why_no_cut: str = "no: not asked for",
    ) -> None:
        self.net = model.net
        self._net: Any = model.net
        self._device = model.device
        self._encoder = encoder
        self._tower = tower
        self._cut = cut
        self._sparse = False
        self._late: tuple[nn.Module, ...] = ()
        self._last = _last_modules(model)
        self._head: nn.Module | None = model.net.get_output_embeddings()
        self._pad = model.tokenizer.pad_token_id or 0
        image = image_token(model.net)
        self._image: int = -1 if image is None else image
        self._known = frozenset(inspect.signature(self._net.forward).parameters)
        self._compiled: CompiledLayers | None = None
        self._partly: PartlyTrained | None = None
        self._norms: LeanNorms | None = None
        self._leads_back = False
        self.reasons: dict[str, str] = {"features": why_no_tower, "head": "not settled yet", "cut": why_no_cut}

    def batch(self, samples: Sequence[Encoded], *, trim: bool = True) -> Batch:
        """The samples with right padding, and their pictures, each once computed if a tower is kept, else as pixels."""
        from selectune.records import collate

        tensors = collate(samples, self._pad)
        labels = tensors.pop("labels").to(self._device)
        inputs: dict[str, Any] = {name: value.to(self._device) for name, value in tensors.items() if name in self._known}
        rows, columns = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        width = self._needed(inputs["input_ids"], columns) if trim else labels.shape[1]
        inputs = {name: value[:, :width] for name, value in inputs.items()} | self._seen(samples)
        states: tuple[Tensor, ...] = ()
        if self._cut is not None:
            states = tuple(self._cut.states(samples, self._below))
            inputs = {name: value for name, value in inputs.items() if name != "mm_encoder_outputs" and not name.startswith("pixel_values")}
        return Batch(
            ids=tuple(sample.record_id for sample in samples),
            inputs=inputs,
            labels=labels,
            rows=rows,
            where=rows * width + columns,
            targets=labels[rows, columns + 1],
            states=states,
        )

    def _below(self, samples: Sequence[Encoded]) -> None:
        """Sends samples through the model from its beginning."""
        cut, self._cut = self._cut, None
        try:
            self._net(**self.batch(samples, trim=False).inputs, use_cache=False)
        finally:
            self._cut = cut

    def _needed(self, ids: Tensor, columns: Tensor) -> int:
        """How far the model must read. The last label is a target only: nothing is predicted from its position or from any after it.

        A picture after the last label stays, for its features go in with the others.
        """
        width = int(columns.max()) + 1
        return ids.shape[1] if bool((ids[:, width:] == self._image).any()) else width

    def _seen(self, samples: Sequence[Encoded]) -> dict[str, Any]:
        """What the model gets for the samples' pictures: features if a tower is kept, else pixels; nothing for text alone."""
        if self._tower is not None:
            return inject(self._tower.of(self._encoder, [picture for sample in samples for picture in sample.pictures]))
        # transformers' towers cast pixels to their own dtype, so every collator hands them over as the processor made them.
        # A copy is aligned as torch aligns, wherever numpy had it, so that the same picture gives the same bits.
        pixels = self._encoder.pixels(*(sample.pictures for sample in samples))
        return {name: value.to(self._device, copy=True) for name, value in pixels.items()}

    def logits(self, batch: Batch) -> Tensor:
        """Logits (targets, vocabulary) of the position before each labelled token, in the order of `batch.targets`."""
        if self._sparse:
            return self._labelled_logits(batch)
        return self._all_logits(batch)

    def losses(self, batch: Batch) -> Tensor:
        """Negative log likelihood (nats, fp32) of each labelled token, in the order of `batch.targets`."""
        return cross_entropy(self.logits(batch), batch.targets)

    @contextmanager
    def kernels(self, batch: Batch) -> Iterator[None]:
        """Inside, forward and backward pass of this batch run on what was settled; both inside, for one may recompute the other."""
        with ExitStack() as stack:
            if has_plain_attention(self._device.type, self._net.dtype, batch.inputs["input_ids"].shape[1]):
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self._leads_back:
                stack.enter_context(_led_back(self._net.get_input_embeddings()))
            if self._compiled is not None:
                stack.enter_context(self._compiled.used())
            if self._partly is not None:
                stack.enter_context(self._partly.used())
            if self._norms is not None:
                stack.enter_context(self._norms.used())
            for module in self._late:
                stack.enter_context(_scattered(module, batch.where))
            if batch.states:
                assert self._cut is not None
                stack.enter_context(self._cut.entered(batch.states, batch.inputs["input_ids"].shape[1]))
            yield

    def _all_logits(self, batch: Batch) -> Tensor:
        """The same, of a head that sees every position."""
        logits: Tensor = self._net(**batch.inputs, use_cache=False).logits
        return logits.flatten(0, 1)[batch.where]

    def _labelled_logits(self, batch: Batch) -> Tensor:
        assert self._head is not None
        with _only(self._head, batch.where):
            logits: Tensor = self._net(**batch.inputs, use_cache=False).logits
        return logits.squeeze(0)

    @torch.no_grad()
    def settle(self, samples: Sequence[Encoded], *, compile_layers: bool = False) -> None:
        """Decides on each shortcut by comparing its logits with the plain ones, on a few samples with and without pictures.

        Also checks that the sum of our losses is the model's own `loss`, which is the definition; a model whose loss has a further term
        (a router's balance, say) is trained on cross-entropy alone, and `reasons` says so.

        With `compile_layers` the language layers are compiled too; raises ModelError where they then give other results.
        """
        (tower, self._tower), (cut, self._cut) = (self._tower, None), (self._cut, None)
        plain = self.batch(samples, trim=False)
        output = self._net(**plain.inputs, labels=plain.labels, use_cache=False)
        expected = output.logits.flatten(0, 1)[plain.where]
        ours = cross_entropy(expected, plain.targets).mean()
        if not torch.isclose(ours, output.loss.float(), rtol=max(_tolerance(expected), 1e-4)):
            self.reasons["loss"] = (
                f"the model's own loss is {output.loss.item():.6g}, cross-entropy alone {ours.item():.6g}; the latter is trained"
            )
        if tower is not None:
            self._settle_features(samples, tower, expected)
        self._settle_head(samples, expected)
        if self._sparse:
            self._settle_late(samples, expected)
        if cut is not None:
            self._settle_cut(samples, cut, expected)
        if compile_layers:
            self._settle_compiled(samples, expected)

    def _settle_features(self, samples: Sequence[Encoded], tower: Tower, expected: Tensor) -> None:
        self._tower = tower
        if not self._shows("features", samples, self._all_logits, expected):
            self._tower = None

    def _settle_head(self, samples: Sequence[Encoded], expected: Tensor) -> None:
        if self._head is None:
            self.reasons["head"] = "no: the model names no output embeddings"
            return
        self._sparse = self._shows("head", samples, self._labelled_logits, expected)

    def _settle_late(self, samples: Sequence[Encoded], expected: Tensor) -> None:
        if not self._last:
            self.reasons["late"] = "no: the last layer has no dense MLP"
            return
        self._late = self._last
        if not self._shows("late", samples, self._on_kernels(self._labelled_logits), expected):
            self._late = ()

    def _settle_cut(self, samples: Sequence[Encoded], cut: Cut, expected: Tensor) -> None:
        self._cut = cut
        if self._shows("cut", samples, self._on_kernels(self._all_logits), expected):
            self.reasons["cut"] += f"; passes begin at layer {cut.index}"
        else:
            self._cut = None

    def _shows(self, name: str, samples: Sequence[Encoded], logits: Callable[[Batch], Tensor], expected: Tensor) -> bool:
        """Whether a shortcut that was just put in gives the expected logits; the verdict is in `reasons`."""
        try:
            self.reasons[name] = _verdict(logits(self.batch(samples)), expected, _tolerance(expected))
        except REFUSALS as error:
            self.reasons[name] = f"no: {type(error).__name__}: {str(error)[:200]}"
        return self.reasons[name].startswith("yes")

    def _on_kernels(self, logits: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
        def run(batch: Batch) -> Tensor:
            with self.kernels(batch):
                return logits(batch)

        return run

    def lead_back(self) -> None:
        """Lets every pass have a backward one from now on, down to the embeddings, whatever of the selection it reaches.

        Over shards a backward pass is made by all processes or by none, and a text reaches nothing of a selected projector.
        """
        self._leads_back = True

    def train_partly(self, parts: PartlyTrained) -> None:
        """Takes weight gradients of the selected outputs alone from now on; not with compiled layers, which have code of their own."""
        if len(parts) and self._compiled is None:
            self._partly = parts
            self.reasons["slices"] = f"yes: {len(parts)} linear layers are trained in part, and take gradients of that part alone"

    def lean_norms(self, norms: LeanNorms) -> None:
        """Takes the short derivative of frozen norms from now on; not with compiled layers."""
        if len(norms) and self._compiled is None:
            self._norms = norms
            self.reasons["norms"] = f"yes: {len(norms)} RMS norms have a derivative of their own"

    def _settle_compiled(self, samples: Sequence[Encoded], expected: Tensor) -> None:
        """Unlike the other shortcuts this one was asked for, so a model that cannot have it is an error and no reason."""
        # The last layer computes fewer positions in parts of it; compiled code of the others does not know that.
        self._compiled = CompiledLayers(self._net, plain=self._late)
        batch = self.batch(samples)
        try:
            # With gradients, as every step has them: else a second version would be compiled for nothing.
            with torch.enable_grad(), self.kernels(batch):
                found = self._all_logits(batch).detach()
        except REFUSALS as error:
            raise ModelError(
                f"the language layers cannot be compiled: {type(error).__name__}: {str(error)[:200]}",
                where="optim.compile",
                then="Install a C++ compiler (g++) if it is that, or set optim.compile to false.",
            ) from error
        # Compiled code rounds less often: the embedded model's logits were 2.5e-2 from those in fp32, plain ones 2.7e-2.
        self.reasons["compile"] = reason = _verdict(found, expected, 2.5 * _tolerance(expected))
        if not reason.startswith("yes"):
            raise ModelError(f"compiled layers give other results: {reason}", where="optim.compile", then="Set it to false for this model.")


@contextmanager
def _only(head: nn.Module, where: Tensor) -> Iterator[None]:
    """Inside, the head computes the positions `where` of (rows, length, hidden) alone, as one row."""

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].flatten(0, 1)[where].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _led_back(embeddings: nn.Module) -> Iterator[None]:
    """Inside, what the embeddings give has a gradient, which nobody asks for."""

    def begin(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + output.new_zeros(()).requires_grad_()  # no leaf itself: some models write pictures into it

    handle = embeddings.register_forward_hook(begin)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _scattered(module: nn.Module, where: Tensor) -> Iterator[None]:
    """Inside, the module computes the positions `where` of (rows, length, width) alone, and gives zeros for the others."""
    shapes: list[torch.Size] = []

    def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shapes.append(args[0].shape)
        return (args[0].flatten(0, 1)[where].unsqueeze(0), *args[1:])

    def spread(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        rows, length, _ = shapes.pop()
        whole = output.new_zeros((rows * length, output.shape[-1]))
        return whole.index_copy(0, where, output.squeeze(0)).view(rows, length, -1)

    handles = [module.register_forward_pre_hook(pick), module.register_forward_hook(spread)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_modules(model: Model) -> tuple[nn.Module, ...]:
    """The last layer's MLP and its attention's output matrix, where the language tower has them there; else nothing."""
    roles: dict[int, dict[str, str]] = {}
    for component in model.map.components:
        match = _ROLE.fullmatch(component.name)
        if match is not None:
            roles.setdefault(int(match[1]), {})[match[2]] = component.parameter.rpartition(".")[0]
    last = roles.get(max(roles, default=0), {})
    if not {"mlp.up", "mlp.down", "attn.o"} <= last.keys():
        return ()
    mlp = commonpath([last["mlp.up"].replace(".", "/"), last["mlp.down"].replace(".", "/")]).replace("/", ".")
    modules = {place.path: place.module for place in walk(model.net)}
    return modules[mlp], modules[last["attn.o"]]


def _tolerance(logits: Tensor) -> float:
    return TOLERANCE.get(logits.dtype, 2e-2)


def _verdict(found: Tensor, expected: Tensor, limit: float) -> str:
    """`yes` or `no`, with the relative difference that decided."""
    if found.shape != expected.shape:
        return f"no: logits of shape {tuple(found.shape)} where {tuple(expected.shape)} is right"
    difference = ((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()
    return f"{'yes' if difference <= limit else 'no'}: the first samples' logits differ by {difference:.1e}, the limit is {limit:.0e}"
