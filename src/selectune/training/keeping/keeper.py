"""The terms of one training's loss that hold old skills, and what each came to in a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selectune.hashing import digest, manifest
from selectune.network import holds_shards
from selectune.records import Encoder
from selectune.training.features import settings_digest
from selectune.training.forward import Forward
from selectune.training.keeping.anchors import encode_anchors
from selectune.training.keeping.given import Keeping
from selectune.training.keeping.pulls import Pull, fisher
from selectune.training.keeping.teacher import Earlier, Teacher
from selectune.training.parts import Parts, parameter_of
from selectune.training.preparing import Samples, encode, find_tower
from selectune.training.schedule import draw, micro_batches

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model
    from selectune.recipe import Keep, Optim
    from selectune.records import Encoded
    from selectune.training.adapter import Beside
    from selectune.training.features import FeatureCache
    from selectune.training.forward import Batch
    from selectune.training.keeping.divergence import Aim
    from selectune.training.masters import Masters
    from selectune.training.processes import Processes
    from selectune.training.store import Store

STREAM = 1 << 20
"""Tells the draws of anchors from those of records and replays, which come from the same seed."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is worked out while the network is still as it was, before masters are copied and an adapter is put in."""

    keeping: Keeping
    anchors: Samples | None
    pulls: tuple[Pull, ...]
    teachers: Mapping[str, str]
    """`start` and `base`, where answers are kept: what tells each of them from other teachers."""
    reasons: Mapping[str, str]

    @classmethod
    def of(cls, keeping: Keeping, model: Model, selection: Selection, optim: Optim, cache: FeatureCache, processes: Processes) -> Terms:
        """Encodes the anchors, and takes EWC's Fisher information: one backward pass for each of its records.

        Raises InputError where records are missing, DataError where they cannot be used.
        """
        keeping.check(selection)
        keep, encoder, anchors = keeping.keep, Encoder(model.processor), None
        pulls: list[Pull] = []
        counts = {"l2sp": selection.elements}
        if keep.l2sp is not None:
            pulls.append(Pull(name="l2sp", weight=keep.l2sp.weight))
        if keep.ewc is not None and keeping.ewc is not None:
            samples = encode(model, encoder, keeping.ewc, optim)
            forward = Forward(model, encoder, *find_tower(model, selection, optim, samples, cache))
            found = fisher(model, selection, samples, forward, processes)
            pulls.append(Pull(name="ewc", weight=keep.ewc.weight / 2, importance=found))
            counts["ewc"] = len(samples.kept)
        if keep.anchors is not None and keeping.anchors is not None:
            anchors = encode_anchors(model, encoder, keeping.anchors, keep.anchors.positions, optim.max_length)
            counts["anchors"] = len(anchors.kept)
        teachers = {}
        if any(part is not None and part.top_k is not None for part in (keep.distill, keep.anchors)):
            start = digest("start", [manifest(model.net).id, settings_digest(model)])
            teachers = {"start": start, "base": start if keeping.base is None else digest("base", [start, keeping.base.manifest.id])}
        return cls(keeping=keeping, anchors=anchors, pulls=tuple(pulls), teachers=teachers, reasons=_words(keep, counts))


class Keeper:
    """The terms while a network trains; with nothing to keep, every method gives back what it was given."""

    def __init__(
        self, terms: Terms, forward: Forward, masters: Masters, selection: Selection, beside: Beside | None, processes: Processes
    ) -> None:
        """Copies the start's values where a term needs them; `beside` is the adapter, if one is trained."""
        self._processes = processes
        self._in_step = holds_shards(forward.net)
        self._terms = terms
        self._keep = terms.keeping.keep
        self._forward = forward
        self._masters = masters
        self._beside = beside
        # An adapter's matrices are masters; the weights that they stand beside are what the pulls and the base speak of.
        self._parts = masters.parts if beside is None else Parts(forward.net, selection)
        self._tokens = 1
        self._start: dict[str, Tensor] = {}
        pulled = bool(terms.pulls) and beside is None
        if self._keep.distill is not None or self._keep.anchors is not None or pulled:
            self._start = {key: live.clone() for key, live in masters.live.items()}
        self.sums: dict[str, Tensor] = {}
        """What each divergence added to the loss of the step that is being made: of this process's samples, until all are added up."""
        self._pulled: dict[str, Tensor] = {}
        self._common: dict[str, Tensor] = {}
        self._distill = None if self._keep.distill is None else self._teacher(self._keep.distill.teacher, self._keep.distill.temperature)
        self._anchors = None if self._keep.anchors is None else self._teacher(self._keep.anchors.teacher, 1.0)

    def _teacher(self, which: str, temperature: float) -> Teacher:
        base = self._terms.keeping.base
        if which == "start" or base is None:
            return Teacher(self._forward, Earlier(self._masters, self._start), temperature=temperature)
        before = self._parts.at(base)
        if self._beside is None:
            return Teacher(self._forward, Earlier(self._masters, {**self._start, **before}), temperature=temperature)
        # An adapter's matrices at the start add nothing, and the weights that they stand beside get the base's values.
        live = self._parts.live()
        besides = [(live[key], values) for key, values in before.items()]
        return Teacher(self._forward, Earlier(self._masters, self._start, besides), temperature=temperature)

    def keep_answers(self, samples: Sequence[Encoded], store: Store) -> None:
        """Lets teachers with a `top_k` answer once for each sample, the anchors' or `samples`."""
        keep, anchors = self._keep, self._terms.anchors
        if keep.distill is not None and keep.distill.top_k is not None and self._distill is not None:
            self._distill.keep_top(keep.distill.top_k, self._terms.teachers[keep.distill.teacher], samples, store)
        if keep.anchors is not None and keep.anchors.top_k is not None and self._anchors is not None and anchors is not None:
            self._anchors.keep_top(keep.anchors.top_k, self._terms.teachers[keep.anchors.teacher], anchors.kept, store)

    def begin(self, samples: Sequence[Encoded]) -> None:
        """A new step, whose whole batch, of all processes together, is `samples`."""
        self._tokens, self._pulled, self._common = sum(sample.supervised for sample in samples), {}, {}
        if self._in_step and self._distill is not None:
            self._distill.ask_together(samples, self._processes)
        names = (*(("distill",) if self._distill else ()), *(("anchors",) if self._anchors else ()))
        device = next(iter(self._masters.live.values())).device
        self.sums = {name: torch.zeros((), device=device) for name in names}

    def aim(self, samples: Sequence[Encoded], batch: Batch) -> Aim | None:
        """What distillation's teacher says of a batch; ask before the student's pass, as the network is another one meanwhile."""
        return None if self._distill is None else self._distill.of(samples, batch)

    def objective(self, losses: Tensor, logits: Tensor, aim: Aim | None) -> Tensor:
        """This part's share of the loss, a scalar: the losses of its labels, with their divergences, over the labels of the whole batch."""
        if aim is not None and self._keep.distill is not None:
            temperature = self._keep.distill.temperature
            apart = self._keep.distill.weight * temperature**2 * aim.divergence(logits, temperature)
            self.sums["distill"] += apart.detach().sum() / self._tokens
            losses = losses + apart
        return losses.sum() / self._tokens

    def anchored(self, step: int, seed: int, micro_batch: int | None) -> Iterator[Tensor]:
        """The anchors' share of a step's loss, portion by portion; go back through each before you take the next.

        Over shards every process has as many portions as the one with the most, and those beyond its own count for nothing.
        """
        settings, samples = self._keep.anchors, self._terms.anchors
        if settings is None or samples is None or self._anchors is None:
            return
        drawn = draw(len(samples.kept), (step - 1) * settings.batch, settings.batch, seed=seed, stream=STREAM)
        positions = sum(samples.kept[index].supervised for index in drawn)
        portions = [(part, 1.0) for part in micro_batches(self._processes.share(drawn, samples.lengths), samples.lengths, micro_batch)]
        if self._in_step:
            self._anchors.ask_together([samples.kept[index] for index in drawn], self._processes)
            most = self._processes.most(drawn, samples.lengths, lambda share: len(micro_batches(share, samples.lengths, micro_batch)))
            portions += [(drawn[:1], 0.0)] * (most - len(portions))
        for part, share in portions:
            chosen = [samples.kept[index] for index in part]
            batch = self._forward.batch(chosen)
            aim = self._anchors.of(chosen, batch)
            with self._forward.kernels(batch):
                apart = share * settings.weight * aim.divergence(self._forward.logits(batch), 1.0).sum() / positions
                self.sums["anchors"] += apart.detach()
                if apart.requires_grad:
                    yield apart

    @property
    def pulls_masters(self) -> bool:
        """Whether `slope` is to be asked: something pulls back to the start, and there is no adapter."""
        return bool(self._terms.pulls) and self._beside is None

    def penalty(self) -> Tensor | None:
        """With an adapter, what the pulls add to the loss: of what its matrices add to the weights. None without pulls or adapter."""
        if self._beside is None or not self._terms.pulls:
            return None
        parts: dict[str, list[Tensor]] = {pull.name: [] for pull in self._terms.pulls}
        for name, update in self._beside.updates():
            for key, moved in self._parts.of(name, update):
                for pull in self._terms.pulls:
                    parts[pull.name].append(pull.value(key, moved))
        sums = {name: torch.stack(values).sum() for name, values in parts.items()}
        self._pulled = {name: value.detach() for name, value in sums.items()}
        return torch.stack(list(sums.values())).sum()

    @torch.no_grad()
    def slope(self, key: str, master: Tensor) -> Tensor:
        """Without an adapter, what the pulls add to the gradient of one master; counts what they add to the loss too."""
        moved = master.detach() - self._start[key]
        total = torch.zeros_like(moved)
        for pull in self._terms.pulls:
            value = pull.value(key, moved)
            counts = (self._pulled,) if parameter_of(key) in self._masters.sharded else (self._pulled, self._common)
            for count in counts:
                count[pull.name] = count.get(pull.name, torch.zeros_like(value)) + value
            total += pull.gradient(key, moved)
        return total

    def pull(self) -> None:
        """Adds the pulls' gradient to what the masters collected, once that is added up over all processes."""
        penalty = self.penalty()
        if penalty is not None:
            self._masters.note_reached()
            penalty.backward()
            self._masters.collect()
        elif self.pulls_masters:
            self._masters.pull(self.slope)
            if self._masters.sharded:
                # Each process has pulled at its part; what they hold in common counts in the first alone.
                common = {} if self._processes.is_first else self._common
                for name, value in self._pulled.items():
                    value -= common.get(name, torch.zeros_like(value))
                self._processes.add_up(self._pulled.values())

    def added(self) -> dict[str, float]:
        """What each term added to the loss of the step that was made, by its name in the recipe; asks the device once."""
        found = {**self.sums, **self._pulled}
        self.sums, self._pulled = {}, {}
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True)) if found else {}


def _words(keep: Keep, counts: Mapping[str, int]) -> dict[str, str]:
    """What each term is, in a sentence."""
    words: dict[str, str] = {}
    if keep.distill is not None:
        one, k = keep.distill, keep.distill.top_k
        asked = "over every word" if k is None else f"over its {k} likeliest words and the rest as one, asked once a record"
        words["keep.distill"] = f"{one.weight:g} times the divergence from the {one.teacher} at temperature {one.temperature:g}, {asked}"
    if keep.l2sp is not None:
        words["keep.l2sp"] = f"{keep.l2sp.weight:g} times the squared distance from the start, over {counts['l2sp']:,} elements"
    if keep.ewc is not None:
        words["keep.ewc"] = f"{keep.ewc.weight:g} / 2 times the squared distance from the start, by the Fisher information of"
        words["keep.ewc"] += f" {counts['ewc']} records"
    if keep.anchors is not None:
        two, k = keep.anchors, keep.anchors.top_k
        asked = "" if k is None else f", over its {k} likeliest words and the rest as one"
        where = "every position" if two.positions == "all" else "the last position"
        words["keep.anchors"] = f"{two.weight:g} times the divergence from the {two.teacher} at {where} of {two.batch} prompts a step,"
        words["keep.anchors"] += f" of {counts['anchors']}{asked}"
    return words
