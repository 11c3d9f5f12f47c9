"""Greedy generation: a finished answer leaves the batch, a waiting prompt takes its place.

Of two ways the fast one is taken where the network's own `generate` was seen to agree with it (`evaluation.trial`). Prompts are read in
groups of like length, or of like beginning (`evaluation.plans`), and continued in a pool of several groups: a step for many rows costs
little more than one for few, since what takes its time is reading the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from selectune.evaluation.asking import Asker, batches
from selectune.evaluation.plans import POOLED, Group, groups, waves
from selectune.evaluation.reading import Rows, joined, read
from selectune.evaluation.trial import begun_at, divided, pooled

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from selectune.evaluation.frozen import Frozen
    from selectune.records import Encoded

Written = tuple[list[int], list[list[int]]]
"""Prompts' indices, and the token ids of each answer, without the end token."""
ROOM = 1 << 30
"""Bytes of keys and values that a pool may hold beyond one batch's."""


def end_tokens(asker: Asker) -> list[int]:
    """Every token that ends an answer, sorted: the generation configuration's, the tokenizer's, and the one by which the chat template ends
    a turn."""
    tokenizer, settings = asker.model.tokenizer, asker.model.net.generation_config
    configured = settings.eos_token_id if settings is not None else None
    found = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    if (turn := asker.encoder.template.end_of_turn) is not None:
        found.add(tokenizer.convert_tokens_to_ids(turn.strip()))
    return sorted(int(token) for token in found if token is not None)


def write(
    asker: Asker,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    batch: int,
    watch: Callable[[list[int]], LogitsProcessor] | None = None,
    beside: Callable[[Group, Rows], None] | None = None,
) -> Iterator[Written]:
    """Continues every prompt greedily; yields prompts' indices with the token ids that were written, as answers are finished.

    Prompts are read `batch` at a time; up to four batches are continued side by side. Of several processes each continues waves of its own;
    `Asker.whole` puts them together. The ids end before the first end token. `watch` is given a batch's indices and makes what looks at its
    logits; it must give them back as they are, and `generate` is used then. `beside` is told of each group as it was read, before it is
    continued, and leaves its rows as they are; only where prompts are `settled`.
    """
    if watch is None and settled(asker, prompts):
        planned, frozen = planned_groups(asker, prompts, batch), frozen_part(asker, prompts)
        for wave in asker.own(waves(planned, batch)):
            pool = _Pool(asker, prompts, max_new_tokens=max_new_tokens, batch=batch, frozen=frozen, beside=beside)
            yield from (done for done in pool.run(wave) if done[0])
        return
    yield from _generated(asker, prompts, max_new_tokens=max_new_tokens, batch=batch, watch=watch)


def settled(asker: Asker, prompts: Sequence[Encoded]) -> bool:
    """Whether prompts like these may be read and continued in the fast way; the reason is kept."""
    asker.reasons["pooled"] = pooled(asker, prompts)
    return asker.reasons["pooled"].startswith("yes")


def planned_groups(asker: Asker, prompts: Sequence[Encoded], batch: int) -> list[Group]:
    """The prompts in groups, with shared beginnings where they are worth it and the network can be given a prompt in two parts."""
    found = groups(prompts, batch, image=asker.image, share=True)
    if not found[0].length:
        return found
    asker.reasons["divided"] = divided(asker, prompts)
    return found if asker.reasons["divided"].startswith("yes") else groups(prompts, batch)


def frozen_part(asker: Asker, prompts: Sequence[Encoded]) -> Frozen | None:
    """The frozen layers, where passes may begin above them."""
    if asker.frozen is None:
        return None
    asker.reasons["frozen"] = begun_at(asker, prompts, asker.frozen)
    return asker.frozen if asker.reasons["frozen"].startswith("yes") else None


class _Pool:
    """Answers that are being written side by side."""

    def __init__(
        self,
        asker: Asker,
        prompts: Sequence[Encoded],
        *,
        max_new_tokens: int,
        batch: int,
        frozen: Frozen | None,
        beside: Callable[[Group, Rows], None] | None,
    ) -> None:
        self._asker, self._prompts, self._frozen, self._told = asker, prompts, frozen, beside
        self._most, self._batch = max_new_tokens, batch
        self._ends = frozenset(end_tokens(asker))
        self._rows: Rows | None = None
        self._indices: list[int] = []
        self._ids: dict[int, list[int]] = {}
        self._room = batch

    def run(self, wave: Sequence[Group]) -> Iterator[Written]:
        """Reads and continues every group of a wave."""
        waiting = deque(wave)
        while waiting or self._rows is not None:
            while waiting and (self._rows is None or len(self._indices) + len(waiting[0].indices) <= self._room):
                yield self._enter(waiting.popleft())
            if self._rows is not None:
                last = [self._ids[index][-1] for index in self._indices]
                tokens = torch.tensor(last, device=self._asker.model.device).unsqueeze(1)
                self._rows.logits = self._rows.step(self._asker.model.net, tokens)[:, -1]
                self._rows, self._indices, done = self._chosen(self._rows, self._indices)
                yield done

    def _enter(self, group: Group) -> Written:
        rows = read(self._asker, self._prompts, group, self._frozen)
        if self._told is not None:
            self._told(group, rows)
        self._room = max(self._room, min(POOLED * self._batch, ROOM // max(1, _row_bytes(rows))))
        left, indices, done = self._chosen(rows, list(group.indices))
        if left is not None:
            self._rows = left if self._rows is None else joined(self._rows, left)
            self._indices += indices
        return done

    def _chosen(self, rows: Rows, indices: list[int]) -> tuple[Rows | None, list[int], Written]:
        """The likeliest token of each row is written; rows whose answer is whole leave."""
        stay, done = [], []
        # In fp32, as `generate` does: among bf16 numbers themselves a CPU looks five times as long, which was 7 % of a step.
        likeliest = rows.logits.float().argmax(dim=1)
        for row, (index, token) in enumerate(zip(indices, likeliest.tolist(), strict=True)):
            ids = self._ids.setdefault(index, [])
            if token not in self._ends:
                ids.append(token)
            if token in self._ends or len(ids) == self._most:
                done.append(index)
            else:
                stay.append(row)
        written = (done, [self._ids.pop(index) for index in done])
        if not stay:
            return None, [], written
        if len(stay) < len(indices):
            rows = rows.chosen(torch.tensor(stay, device=rows.mask.device))
        return rows, [indices[row] for row in stay], written


def _row_bytes(rows: Rows) -> int:
    tensors: list[torch.Tensor] = [tensor for layer in rows.cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) // len(rows.mask)


def _generated(
    asker: Asker,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    batch: int,
    watch: Callable[[list[int]], LogitsProcessor] | None,
) -> Iterator[Written]:
    """The plain way: the network's own `generate`, batch by batch."""
    from transformers import LogitsProcessorList

    net: Any = asker.model.net
    ends = end_tokens(asker)
    for indices in asker.own(batches([len(prompt.input_ids) for prompt in prompts], batch)):
        inputs = asker.inputs([prompts[index] for index in indices], side="left")
        watching = {"logits_processor": LogitsProcessorList([watch(indices)])} if watch is not None else {}
        written: torch.Tensor = net.generate(
            **inputs,
            **watching,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=asker.pad_id,
        )
        # What an encoder has read is not repeated before the answer: that begins after the decoder's own first token.
        new = written[:, 1 if net.config.is_encoder_decoder else inputs["input_ids"].shape[1] :]
        yield indices, [until_end(row, ends) for row in new.tolist()]


def until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first end token."""
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
