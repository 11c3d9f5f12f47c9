"""Greedy captions with the probability of a class of tokens at every step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor

from selectune.evaluation.asking import Asker, asker
from selectune.evaluation.undisturbed import undisturbed
from selectune.evaluation.writing import write
from selectune.probes.readings import Caption, NumberReading
from selectune.probes.tokens import TokenClass, number_class

if TYPE_CHECKING:
    from selectune.models import Model
    from selectune.records import Record

_WORD = re.compile(r"[^\W\d_]+")


def probe_numbers(model: Model, records: Sequence[Record], *, stage: str, max_new_tokens: int = 6, batch: int = 32) -> NumberReading:
    """How likely number tokens are while the model captions these records, greedily, in its own words.

    At each step, the one that ends a caption included and none after it, the total probability of number tokens (`tokens.number_class`),
    see `probe_class`. The reading is the mean over captions of the mean over steps, with its t interval. Source: the number bias probe of
    Zhu et al. (2025), arXiv 2510.08564, here with numbers of several tokens.
    """
    captions = probe_class(model, records, number_class(model.tokenizer), max_new_tokens=max_new_tokens, batch=batch)
    return NumberReading.of(stage, captions)


def probe_class(
    model: Model, records: Sequence[Record], tokens: TokenClass, *, max_new_tokens: int = 6, batch: int = 32
) -> tuple[Caption, ...]:
    """A greedy caption of each record, with the class's total probability at each step; the model and the random state are left as they
    were.

    To the class's own tokens a step adds the probability of the token that was written there, if that token is a piece of one of the
    class's words in the finished text without being in the class: of "sevent" + "een" the second piece counts so. Raises DataError for a
    record that does not fit.
    """
    with undisturbed(model.net):
        ready = asker(model)
        return _captions(ready, list(records), tokens, max_new_tokens, batch)


def _captions(asker: Asker, records: list[Record], tokens: TokenClass, max_new_tokens: int, batch: int) -> tuple[Caption, ...]:
    prompts = [asker.encoder.prompt(record) for record in records]
    for prompt in prompts:
        asker.check_fits(prompt, max_new_tokens, where="probe")
    watches: list[_Watch] = []

    def watch(indices: list[int]) -> _Watch:
        watches.append(_Watch(tokens, asker.model.device))
        return watches[-1]

    found: dict[int, Caption] = {}
    for indices, written in write(asker, prompts, max_new_tokens=max_new_tokens, batch=batch, watch=watch):
        masses, chosen = watches[-1].read()
        for row, (index, ids) in enumerate(zip(indices, written, strict=True)):
            steps = _steps(asker.model.tokenizer, tokens, [prompts[index].input_ids[-1], *ids], masses[row], chosen[row])
            text = asker.model.tokenizer.decode(ids, skip_special_tokens=True).strip()
            found[index] = Caption(id=records[index].id, text=text, mean=math.fsum(steps) / len(steps), max=max(steps), steps=tuple(steps))
    return tuple(asker.whole(found))


class _Watch(LogitsProcessor):
    """Looks at every step's logits and keeps two numbers a row: the class's probability, and that of the token to be written."""

    def __init__(self, tokens: TokenClass, device: torch.device) -> None:
        self.ids, self.bare, self.lettered = tokens.ids.to(device), tokens.bare.to(device), tokens.lettered.to(device)
        self.masses: list[torch.Tensor] = []
        self.chosen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wide = scores.float()
        whole = wide.logsumexp(dim=1)
        mass = (wide[:, self.ids].logsumexp(dim=1) - whole).exp()
        bare = (wide[:, self.bare].logsumexp(dim=1) - whole).exp()
        in_word = torch.isin(input_ids[:, -1], self.lettered)
        self.masses.append((mass + bare.masked_fill(in_word, 0.0)).cpu())
        self.chosen.append((wide.amax(dim=1) - whole).exp().cpu())
        return scores

    def read(self) -> tuple[list[list[float]], list[list[float]]]:
        """For each row the masses and the chosen tokens' probabilities, step by step."""
        return torch.stack(self.masses, dim=1).tolist(), torch.stack(self.chosen, dim=1).tolist()


def _steps(tokenizer: Any, tokens: TokenClass, ids: list[int], masses: list[float], chosen: list[float]) -> list[float]:
    """A caption's masses up to its end, with what pieces of the class's words add; `ids` starts with the prompt's last token."""
    before, *written = ids
    steps = [min(mass, 1.0) for mass in masses[: len(written) + 1]]
    text, ends = "", [0]
    for count in range(1, len(written) + 1):
        text = tokenizer.decode(written[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        ends.append(len(text))
    words = [match.span() for match in _WORD.finditer(text) if match.group().casefold() in tokens.words]
    counted, bare, lettered = (set(part.tolist()) for part in (tokens.ids, tokens.bare, tokens.lettered))
    for at, token in enumerate(written):
        in_class = token in counted or (token in bare and (written[at - 1] if at else before) not in lettered)
        if not in_class and any(start < ends[at + 1] and ends[at] < end for start, end in words):
            steps[at] = min(steps[at] + chosen[at], 1.0)
    return steps
