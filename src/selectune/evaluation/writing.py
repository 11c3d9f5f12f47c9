"""Greedy generation in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from selectune.evaluation.asking import Asker, batches

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from selectune.records import Encoded


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
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Continues every prompt greedily, in batches of like length; yields the prompts' indices of a batch with the token ids that were
    written.

    Of several processes each continues batches of its own; `Asker.whole` puts them together. The ids end before the first end token.
    `watch` is given a batch's indices and makes what looks at its logits; it must give them back as they are.
    """
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
        new = written[:, inputs["input_ids"].shape[1] :]
        yield indices, [until_end(row, ends) for row in new.tolist()]


def until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first end token."""
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
