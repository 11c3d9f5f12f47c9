"""What is settled before step 1: the samples, the network's mode, where gradients end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from selectune.errors import DataError
from selectune.network import holds_shards, image_token
from selectune.records import Encoder, Picture
from selectune.training.cut import Cut, find_layers, first_layer
from selectune.training.features import FeatureCache, Tower, in_language

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model
    from selectune.recipe import Optim
    from selectune.records import Encoded, Records
    from selectune.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The encoded records that are trained on, and how many are not, by reason."""

    kept: tuple[Encoded, ...]
    skipped: dict[str, int]
    lengths: tuple[int, ...]

    def beside(self, other: Samples) -> Samples:
        """These, then those of `other`."""
        return Samples(kept=self.kept + other.kept, skipped={**self.skipped, **other.skipped}, lengths=self.lengths + other.lengths)

    def typical(self) -> list[Encoded]:
        """A few samples that show how the model behaves: short ones, with pictures and without where there are both."""
        ordered = sorted(self.kept, key=lambda sample: len(sample.input_ids))
        seeing = [sample for sample in ordered if sample.pictures][:2]
        return seeing + [sample for sample in ordered if not sample.pictures][: 4 - len(seeing)]


class TimedEncoder(Encoder):
    """An encoder that knows how long pictures took."""

    waited = 0.0
    """Seconds in which pictures were read, decoded and made into pixels."""

    def pixels(self, *groups: Sequence[Picture]) -> dict[str, Tensor]:
        """As `Encoder.pixels`."""
        started = time.perf_counter()
        try:
            return super().pixels(*groups)
        finally:
            self.waited += time.perf_counter() - started


def encode(model: Model, encoder: Encoder, records: Records, optim: Optim, *, batch: int = 1) -> Samples:
    """Every record as tokens and labels. Longer ones than `optim.max_length`, or than the model can take, are counted and left out, never
    cut.

    Raises DataError when none is left, when a record cannot be encoded, and for fewer of them than one `batch`.
    """
    limit = optim.max_length or getattr(model.net.config.get_text_config(), "max_position_embeddings", None)
    encoded = encoder.encode_all(records, limit)
    if len(encoded.items) < batch:
        # A batch would hold a record twice, or be smaller than the rate was chosen for.
        then = f"Set optim.batch to at most {len(encoded.items)}, or give more records."
        raise DataError(f"{len(encoded.items)} records are fewer than one batch of {batch}", where=records.name, then=then)
    return Samples(kept=encoded.items, skipped=dict(encoded.dropped), lengths=tuple(len(sample.input_ids) for sample in encoded.items))


def sizes(model: Model, samples: Sequence[Encoded]) -> list[tuple[int, int, int]]:
    """Tokens, labels and image tokens of each."""
    image = image_token(model.net)
    return [(len(one.input_ids), one.supervised, 0 if image is None else one.input_ids.count(image)) for one in samples]


def find_tower(model: Model, selection: Selection, optim: Optim, samples: Samples, cache: FeatureCache) -> tuple[Tower | None, str]:
    """The cached vision tower, or None with the reason."""
    early = next((component.name for component in selection.components if not in_language(component.name)), None)
    if not any(sample.pictures for sample in samples.kept):
        return None, "no: there are no pictures"
    if not optim.cache_features:
        return None, "no: optim.cache_features is false"
    if early is not None:
        return None, f"no: {early} is trained, so features change"
    return cache.bind(model), "not settled yet"


def find_cut(
    model: Model, selection: Selection, optim: Optim, samples: Samples, schedule: Schedule, cache: FeatureCache
) -> tuple[Cut | None, str]:
    """The kept states below the first trained layer, or None with the reason."""
    if not optim.cache_features:
        return None, "no: optim.cache_features is false"
    index = first_layer(selection)
    if index == 0:
        return None, "no: the first layer, or something before it, is trained"
    if holds_shards(model.net):
        return None, "no: the model is sharded, and processes would fill in different samples"
    if not schedule.repeats:
        return None, "no: every sample is seen once"
    layers = find_layers(model, index)
    if layers is None:
        return None, "no: the layers are no plain list of modules"
    return Cut(model, layers, index, cache.store, samples.kept), "not settled yet"


@contextmanager
def training_mode(net: Any, *, checkpointing: bool) -> Iterator[None]:
    """Inside, the network is in evaluation mode, needs no gradient anywhere, and holds no key-value cache; afterwards it is as it was.

    Evaluation mode throughout, the selected parts included: batch-norm statistics are buffers and must not move, and dropout would make
    the step depend on the global random state. transformers recomputes activations only in layers that are in training mode, so with
    `checkpointing` those layers alone are (not what is inside them). It also hooks the input embeddings so that everything after them
    builds a graph: 1.75 times the time when a prefix is frozen, for nothing; the hook is taken off.
    """
    modes = {module: module.training for module in net.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in net.parameters()}
    recomputed = net.is_activation_checkpointing
    net.eval()
    net.requires_grad_(False)
    if checkpointing:
        net.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        net.disable_input_require_grads()
        _awake(net)
    elif recomputed:
        net.activation_checkpointing_disable()
    try:
        yield
    finally:
        if recomputed:
            net.activation_checkpointing_enable()
        else:
            net.activation_checkpointing_disable()
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def _awake(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def prefix(model: Model, selection: Selection) -> str:
    """Where the graph begins, in words."""
    chosen = {component.name for component in selection.components}
    for number, component in enumerate(model.map.components):
        if component.name in chosen:
            return f"no graph below {component.name}, component {number + 1} of {len(model.map.components)}"
    return "nothing is selected"
