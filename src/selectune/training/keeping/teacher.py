"""A model's earlier self as a teacher: its values are put into the selection for a moment, and no second model is ever held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selectune.hashing import digest
from selectune.training.content import content, neighbours
from selectune.training.keeping.divergence import Aim, Top, Whole

if TYPE_CHECKING:
    from selectune.records import Encoded
    from selectune.training.forward import Batch, Forward
    from selectune.training.masters import Masters
    from selectune.training.processes import Processes
    from selectune.training.store import Store


class Earlier:
    """Values that what is trained had before, and other tensors with it."""

    def __init__(self, masters: Masters, start: Mapping[str, Tensor], besides: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        """`start` by master, in the parameters' own dtype; `besides` are pairs of a live tensor and the values that it had."""
        self._masters = masters
        self._live = [masters.live[key] for key in start]
        self._values = list(start.values())
        self._besides = list(besides)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the network computes as it did then; afterwards it holds the bits that it had before the block.

        Never between a forward and its backward pass: what the latter needs would have been written over.
        """
        kept = [live.clone() for live, _ in self._besides]
        with torch.no_grad():
            torch._foreach_copy_(self._live, self._values)
            for live, values in self._besides:
                live.copy_(values)
        try:
            yield
        finally:
            self._masters.store()
            with torch.no_grad():
                for (live, _), values in zip(self._besides, kept, strict=True):
                    live.copy_(values)


class Teacher:
    """What an earlier self gives at the labelled positions of samples: computed with each batch, or once for each sample and kept."""

    def __init__(self, forward: Forward, earlier: Earlier, *, temperature: float = 1.0) -> None:
        self._forward = forward
        self._earlier = earlier
        self.temperature = temperature
        self._top_k: int | None = None
        self._ready: dict[tuple[str, str], Mapping[str, Tensor]] = {}

    def keep_top(self, k: int, key: str, samples: Sequence[Encoded], store: Store) -> None:
        """From now on each of `samples` is asked for once, and its `k` likeliest words are kept; `key` tells this teacher from others.

        Samples are asked in groups of neighbours by length, whatever order they are trained in, so that a resumed run finds the same bits.
        """
        self._top_k, self._store = k, store
        self._key = digest("teacher", [key, k, repr(self.temperature)])
        self._groups = neighbours(samples)

    @torch.no_grad()
    def of(self, samples: Sequence[Encoded], batch: Batch) -> Aim:
        """What the teacher says of `batch`, which is made of `samples`, in the order of its targets."""
        if self._top_k is None:
            return Whole(logits=self._logits(batch))
        parts = [self._kept(sample) for sample in samples]
        return Top(
            words=torch.cat([part["words"] for part in parts]),
            shares=torch.cat([part["shares"] for part in parts]),
            rest=torch.cat([part["rest"] for part in parts]),
        )

    def _logits(self, batch: Batch) -> Tensor:
        with self._earlier.restored(), self._forward.kernels(batch):
            return self._forward.logits(batch)

    @torch.no_grad()
    def ask_together(self, samples: Sequence[Encoded], processes: Processes) -> None:
        """Has the answers for `samples` ready, where every pass is made by all processes together: all ask for what any of them lacks.

        Every process has to give the same samples. Nothing is to do for a teacher whose answers are not kept.
        """
        if self._top_k is None:
            return
        names = {self._name(sample): sample for sample in samples}
        known = processes.everywhere([taught for key, taught in names if (key, taught) in self._store])
        self._ready = {}
        for name, sample in names.items():
            kept = self._store.find(name) if name[1] in known else None
            if kept is not None:
                self._ready[name] = kept
            elif name not in self._ready:
                self._ready |= self._asked(self._groups[sample.record_id])

    def _kept(self, sample: Encoded) -> Mapping[str, Tensor]:
        name = self._name(sample)
        found = self._ready.get(name) or self._store.find(name)
        return self._asked(self._groups[sample.record_id])[name] if found is None else found

    def _asked(self, group: Sequence[Encoded]) -> dict[tuple[str, str], Mapping[str, Tensor]]:
        """The answers for a group, by name; they are kept from now on."""
        assert self._top_k is not None
        batch = self._forward.batch(group)
        top = Top.of(self._logits(batch), self._top_k, self.temperature)
        made: dict[tuple[str, str], Mapping[str, Tensor]] = {}
        for row, one in enumerate(group):
            own, name = batch.rows == row, self._name(one)
            made[name] = {"words": top.words[own], "shares": top.shares[own], "rest": top.rest[own]}
            if name not in self._store:
                self._store.keep(name, made[name])
        return made

    def _name(self, sample: Encoded) -> tuple[str, str]:
        return self._key, digest("taught", [content(sample), list(sample.labels)])
