"""What the tests of keeping share: batches and logits computed plainly, with nothing of the engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from selectune.components import Selection
from selectune.components.slices import mask
from selectune.models import Model
from selectune.network import parameters
from selectune.recipe import Keep
from selectune.records import Encoder, Record, Records, collate
from selectune.training import Keeping

CALM: dict[str, Any] = {"batch": 12, "max_steps": 3, "warmup": 0.0, "schedule": "constant", "lr": 1e-2, "eps": 1e-3, "weight_decay": 0.0}
"""Whole batches of twelve records; a large eps, for a small one makes signs of rounding."""


def keeping(given: dict[str, Any], **more: Any) -> Keeping:
    """A `Keeping` of a recipe's `keep`, with records beside it."""
    return Keeping(keep=Keep.model_validate(given), **more)


def plain_logits(net: Any, model: Model, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Logits of every position before a label, and the labels: pixels, whole head, no cache."""
    encoder = Encoder(model.processor)
    samples = [encoder.encode(record) for record in records]
    batch = collate(samples, 0)
    labels = batch.pop("labels")
    pixels = encoder.pixels(*(sample.pictures for sample in samples))
    output = net(**batch, **pixels).logits[:, :-1]
    wanted = labels[:, 1:] != -100
    return output[wanted], labels[:, 1:][wanted]


def copied(net: Any, chosen: Sequence[str]) -> tuple[Any, list[torch.nn.Parameter]]:
    """A deep copy of a network, and those of its parameters that are to be trained."""
    other = copy.deepcopy(net).requires_grad_(False)
    trained = [parameters(other)[name].requires_grad_(True) for name in chosen]
    return other, trained


def inside(selection: Selection, name: str, shape: torch.Size) -> Tensor:
    """Which elements of a parameter are selected."""
    regions = selection.parameters[name]
    return mask(tuple(shape), (None,) if regions is None else regions)


def renamed(records: Records, prefix: str) -> Records:
    """The same records under other ids."""
    return replace(records, items=tuple(replace(record, id=f"{prefix}{record.id}") for record in records), name=prefix)
