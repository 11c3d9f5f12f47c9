"""How likely the model finds words that it is given: the choices of a question, or a plain text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from selectune.evaluation.asking import Asker, Inputs, batches
from selectune.evaluation.suite import choices_of
from selectune.records import Message

if TYPE_CHECKING:
    from selectune.records import Encoded, Record

IGNORED = -100
POSITIONS = 1024
"""Most positions whose logits are held at once: 200 MB in float32 at a vocabulary of 49,152."""

Done = Callable[[int], None]
Ending = tuple[list[int], list[int]]
"""What comes after a shared prompt, up to the last labelled token: its ids and their labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihood:
    """The log-likelihood of a record's labelled tokens."""

    total: float
    """Sum over the tokens, in nats."""
    tokens: int


def text_likelihoods(asker: Asker, rows: Sequence[Encoded], *, batch: int, done: Done) -> list[Likelihood]:
    """For each encoded record the log-likelihood of its labelled tokens, by one forward of the whole record. `done` is told of each batch's
    size."""
    found: dict[int, Likelihood] = {}
    for indices in asker.own(batches([len(row.input_ids) for row in rows], batch, tokens=POSITIONS)):
        part = [rows[index] for index in indices]
        for index, likelihood in zip(indices, _whole(asker, part), strict=True):
            found[index] = likelihood
        done(len(indices))
    return asker.whole(found)


def choice_likelihoods(asker: Asker, records: Sequence[Record], *, batch: int, done: Done) -> list[list[Likelihood]]:
    """For each record the log-likelihood of each of its choices as the assistant's answer, given the prompt.

    A choice's likelihood is the sum over exactly the tokens that would be labelled if the choice were the record's answer, in the form in
    which training sees it: its words and, where the template labels it, the token that ends the turn. With the end token the sum is the
    probability of that answer and nothing after it, so "cat" gains nothing from being the beginning of "cat fish", and no division by
    length is made.

    The prompt of a record runs once; its keys and values are shared by the choices. Where a network works out positions of its own
    (multi-dimensional rotary positions) each choice runs as a whole record instead: the same sums, more work.
    """
    offered = [_offered(asker, record) for record in records]
    if "mm_token_type_ids" in asker.taken:
        flat = text_likelihoods(asker, [row for rows in offered for row in rows], batch=batch, done=lambda n: None)
        done(len(records))
        bounds = iter(flat)
        return [[next(bounds) for _ in rows] for rows in offered]
    found: dict[int, list[Likelihood]] = {}
    shared = [_shared(rows) for rows in offered]
    for indices in asker.own(batches(shared, batch)):
        prompts = [_cut(offered[index][0], shared[index]) for index in indices]
        endings = [[_ending(row, shared[index]) for row in offered[index]] for index in indices]
        for index, likelihoods in zip(indices, _continued(asker, prompts, endings), strict=True):
            found[index] = likelihoods
        done(len(indices))
    return asker.whole(found)


def _offered(asker: Asker, record: Record) -> list[Encoded]:
    """The record as it would be encoded with each of its choices for an answer."""
    rows = []
    for choice in choices_of(record):
        answered = replace(record, messages=(*record.prompt, Message(role="assistant", parts=(choice,))))
        rows.append(asker.encoder.encode(answered))
        asker.check_fits(rows[-1], 0, where=f'choice "{choice}"')
    return rows


def _shared(rows: Sequence[Encoded]) -> int:
    """How many tokens the choices share before the first labelled one; at least one."""
    first = min(next(at for at, label in enumerate(row.labels) if label != IGNORED) for row in rows)
    same = next((at for at in range(first) if len({row.input_ids[at] for row in rows}) > 1), first)
    return max(same, 1)


def _cut(row: Encoded, length: int) -> Encoded:
    extra = {name: values[:length] for name, values in row.extra.items()}
    return replace(row, input_ids=row.input_ids[:length], labels=row.labels[:length], extra=extra)


def _ending(row: Encoded, start: int) -> Ending:
    end = max(at for at, label in enumerate(row.labels) if label != IGNORED) + 1
    return list(row.input_ids[start:end]), list(row.labels[start:end])


def _whole(asker: Asker, rows: Sequence[Encoded]) -> list[Likelihood]:
    """One forward over whole records; the head runs where some row has a label."""
    inputs = asker.inputs(rows, side="right")
    width = inputs["input_ids"].shape[1]
    labels = torch.full((len(rows), width), IGNORED)
    for at, row in enumerate(rows):
        labels[at, : len(row.labels)] = torch.tensor(row.labels)
    before = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = _logits(asker, inputs, before)
    gained = _gathered(logits, labels[:, before + 1].to(logits.device))
    counts = (labels[:, 1:] != IGNORED).sum(dim=1).tolist()
    return [Likelihood(total=float(total), tokens=int(count)) for total, count in zip(gained.sum(dim=1).tolist(), counts, strict=True)]


def _logits(asker: Asker, inputs: Inputs, kept: torch.Tensor) -> torch.Tensor:
    """Logits [rows, kept, vocabulary] at the positions `kept`."""
    net: Any = asker.model.net
    if "logits_to_keep" in asker.taken:
        found: torch.Tensor = net(**inputs, use_cache=False, logits_to_keep=kept.to(asker.model.device)).logits
        return found
    whole: torch.Tensor = net(**inputs, use_cache=False).logits
    return whole[:, kept]


def _gathered(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The log-probability of each label, in float32; 0 where there is none. [rows, positions] from [rows, positions, vocabulary]."""
    wide = logits.float()
    picked = wide.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2) - wide.logsumexp(dim=2)
    return picked.masked_fill(labels == IGNORED, 0.0)


def _continued(asker: Asker, prompts: Sequence[Encoded], endings: Sequence[Sequence[Ending]]) -> list[list[Likelihood]]:
    """For each prompt the likelihood of each of its endings; the prompts run once, then only the endings run, on copies of the keys and
    values."""
    net: Any = asker.model.net
    inputs = asker.inputs(prompts, side="left")
    mask = inputs["attention_mask"]
    explicit = "position_ids" in asker.taken
    if explicit:
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    keep = {"logits_to_keep": 1} if "logits_to_keep" in asker.taken else {}
    output = net(**inputs, **keep, use_cache=True)
    first = output.logits[:, -1].float().log_softmax(dim=1)
    rows = [(at, ending) for at, part in enumerate(endings) for ending in part]
    totals = [float(first[at, labels[0]]) if labels[0] != IGNORED else 0.0 for at, (_, labels) in rows]
    longest = max(len(ids) for _, (ids, _) in rows)
    step = max(1, POSITIONS // max(longest - 1, 1))
    for start in range(0, len(rows) if longest > 1 else 0, step):
        part = rows[start : start + step]
        cache = copy.deepcopy(output.past_key_values)
        for offset, gain in enumerate(_rest(asker, part, mask, cache, explicit)):
            totals[start + offset] += gain
    found: list[list[Likelihood]] = [[] for _ in prompts]
    for (at, (_, labels)), total in zip(rows, totals, strict=True):
        found[at].append(Likelihood(total=total, tokens=sum(label != IGNORED for label in labels)))
    return found


def _rest(asker: Asker, rows: Sequence[tuple[int, Ending]], mask: torch.Tensor, cache: Any, explicit: bool) -> list[float]:
    """The log-likelihood of each ending after its first token; `rows` holds the prompt's place in the batch with the ending."""
    device = mask.device
    chosen = torch.tensor([at for at, _ in rows], device=device)
    cache.batch_select_indices(chosen)
    width = max(len(words) for _, (words, _) in rows) - 1
    ids = torch.full((len(rows), width), asker.pad_id, device=device)
    labels = torch.full((len(rows), width), IGNORED, device=device)
    fresh = torch.zeros((len(rows), width), dtype=mask.dtype, device=device)
    for row, (_, (words, wanted)) in enumerate(rows):
        n = len(words) - 1
        ids[row, :n] = torch.tensor(words[:-1], device=device)
        labels[row, :n] = torch.tensor(wanted[1:], device=device)
        fresh[row, :n] = 1
    inputs: Inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([mask[chosen], fresh], dim=1),
        "past_key_values": cache,
        "use_cache": True,
    }
    if explicit:
        inputs["position_ids"] = mask[chosen].sum(dim=1, keepdim=True) + torch.arange(width, device=device)
    net: Any = asker.model.net
    return [float(gain) for gain in _gathered(net(**inputs).logits, labels).sum(dim=1).tolist()]
