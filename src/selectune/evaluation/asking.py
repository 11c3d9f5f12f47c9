"""Encoded records as batches that a network takes, with pictures as cached features."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from selectune.errors import DataError
from selectune.evaluation.features import tower
from selectune.evaluation.frozen import Frozen, find_frozen
from selectune.hashing import Manifest, digest
from selectune.hashing import manifest as manifest_of
from selectune.network import holds_shards, image_token
from selectune.records import Encoded, Encoder, collate
from selectune.training.features import FeatureCache, Tower, inject
from selectune.training.processes import Found, Processes

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.evaluation.kept import Kept
    from selectune.models import Model

Inputs = dict[str, Any]
Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Asker:
    """A model with what its inputs are made by. Make one with `asker` whenever weights may have moved."""

    model: Model
    encoder: Encoder
    tensors: Manifest
    """The network's tensors at that moment."""
    tower: Tower
    """Pictures' features at that moment."""
    processes: Processes
    """This one and the others that measure the same model."""
    frozen: Frozen | None = None
    """The layers below everything that is trained, with what they made in other stages."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Which fast ways are taken and why, by name; filled in while the model is asked."""
    cached: list[str] = field(default_factory=list)
    """Tasks that were read and not asked."""

    def said(self) -> dict[str, str]:
        """Both for a measurement's environment."""
        ways = {f"way.{name}": why for name, why in sorted(self.reasons.items())}
        return ways | ({"cached": ", ".join(self.cached)} if self.cached else {})

    @cached_property
    def _apart(self) -> bool:
        """Whether each process takes batches of its own. A sharded model is gathered in step, so there all make the same ones."""
        return self.processes.count > 1 and not holds_shards(self.model.net)

    def own(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """This process's batches: whole ones, so that every answer is what one process alone would get."""
        return islice(batches, self.processes.index, None, self.processes.count) if self._apart else iter(batches)

    def whole(self, found: Mapping[int, Found]) -> list[Found]:
        """What was found of every index, in order; with what the other processes found of theirs."""
        merged = self.processes.merged(found) if self._apart else found
        return [merged[index] for index in sorted(merged)]

    @cached_property
    def pad_id(self) -> int:
        """What fills a batch up. It may equal the end token: padding is known by its place, not by its id."""
        tokenizer = self.model.tokenizer
        found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return int(found) if found is not None else 0

    @cached_property
    def image(self) -> int | None:
        """The id of an image token; None for a model that names none."""
        return image_token(self.model.net)

    @cached_property
    def taken(self) -> frozenset[str]:
        """The arguments that the network's forward takes by name."""
        return frozenset(inspect.signature(self.model.net.forward).parameters)

    @cached_property
    def window(self) -> int | None:
        """Most tokens that the network has positions for; None where it does not say."""
        found = getattr(self.model.net.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found is not None else None

    def inputs(self, rows: Sequence[Encoded], *, side: Literal["left", "right"]) -> Inputs:
        """The network's arguments for these rows, padded on one side; every image token's feature is at hand, so the vision tower does not
        run."""
        batch = collate(rows, self.pad_id, side)
        inputs: Inputs = {name: value.to(self.model.device) for name, value in batch.items() if name in self.taken and name != "labels"}
        pictures = [picture for row in rows for picture in row.pictures]
        seen = inject(self.tower.of(self.encoder, pictures))
        return inputs | {name: _on(value, self.model.device) for name, value in seen.items() if name in self.taken}

    def check_fits(self, row: Encoded, more: int, *, where: str) -> None:
        """Raises DataError where a record and `more` tokens to come are longer than the network's positions reach."""
        if self.window is not None and len(row.input_ids) + more > self.window:
            what = f"it has {len(row.input_ids)} tokens and may write {more}; the model reaches {self.window}"
            raise DataError(what, where=f'{where}: record "{row.record_id}"', then="Shorten it or leave it out; nothing is cut in silence.")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What measurements of one model's stages have in common; a training may share it too."""

    features: FeatureCache = field(default_factory=FeatureCache)
    """Pictures' features, and in its store what frozen layers made."""
    selection: Selection | None = None
    """What differs from stage to stage. What lies below all of it is computed once for each prompt."""
    kept: Kept | None = None
    """Tasks that were measured before, by this process or another; they are not measured again."""


def asker(model: Model, shared: Shared | None = None) -> Asker:
    """An `Asker` of the model as it is now; hashes every tensor, about a second for each 1.6 GB."""
    bound = tower(model) if shared is None else shared.features.bind(model)
    frozen, why = (None, "no: nothing is shared") if shared is None else find_frozen(model, shared.selection, shared.features.store)
    return Asker(
        model=model,
        encoder=Encoder(model.processor),
        tensors=manifest_of(model.net),
        tower=bound,
        processes=Processes(model),
        frozen=frozen,
        reasons={"frozen": why},
    )


def prompt_digest(row: Encoded) -> str:
    """Identity of what goes into the model: token ids and pictures."""
    return digest("prompt", {"ids": list(row.input_ids), "pictures": [picture.digest for picture in row.pictures]})


def batches(lengths: Sequence[int], batch: int, *, tokens: int | None = None) -> Iterator[list[int]]:
    """Every index once, the longest first, at most `batch` at a time and at most `tokens` with padding (but never fewer than one)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    at = 0
    while at < len(order):
        size = batch if tokens is None else max(1, min(batch, tokens // max(lengths[order[at]], 1)))
        yield order[at : at + size]
        at += size


def _on(value: Any, device: torch.device) -> Any:
    """A tensor on the device; anything else as it is."""
    return value.to(device) if isinstance(value, torch.Tensor) else value
