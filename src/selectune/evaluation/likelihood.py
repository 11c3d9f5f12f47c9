"""How likely the model finds words that it is given: the choices of a question, or a plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from selectune.errors import ModelError
from selectune.evaluation.asking import Asker, Inputs, batches
from selectune.evaluation.reading import Rows, part, read
from selectune.evaluation.writing import frozen_part, planned_groups, settled
from selectune.records import Message
from selectune.training.cut import Cut

if TYPE_CHECKING:
    from selectune.evaluation.plans import Group
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
    size.

    Above frozen layers it begins with the states that a training on the same records keeps, and keeps them for it. Raises ModelError for a
    model with an encoder, which reads a question apart from its answer.
    """
    if asker.model.net.config.is_encoder_decoder:
        then = "Measure it with tasks of kind generate, without likelihoods."
        raise ModelError("it has an encoder, and records are laid out for a decoder", where=f"model {asker.model.name}", then=then)
    found: dict[int, Likelihood] = {}
    frozen = frozen_part(asker, rows)
    cut = None if frozen is None else Cut(asker.model, frozen.layers, frozen.index, frozen.store, rows, below=frozen.key)
    for indices in asker.own(batches([len(row.input_ids) for row in rows], batch, tokens=POSITIONS)):
        some = [rows[index] for index in indices]
        for index, likelihood in zip(indices, _whole(asker, some, cut), strict=True):
            found[index] = likelihood
        done(len(indices))
    return asker.whole(found)


def choice_likelihoods(
    asker: Asker, records: Sequence[Record], choices: Sequence[Sequence[str]], *, batch: int, done: Done
) -> list[list[Likelihood]]:
    """For each record the log-likelihood of each of its `choices` as the assistant's answer, given the prompt.

    A choice's likelihood is the sum over exactly the tokens that would be labelled if the choice were the record's answer, in the form in
    which training sees it: its words and, where the template labels it, the token that ends the turn. With the end token the sum is the
    probability of that answer and nothing after it, so "cat" gains nothing from being the beginning of "cat fish", and no division by
    length is made.

    The prompt of a record runs once; its keys and values are shared by the choices. Where the network was not seen to allow that
    (`evaluation.trial`) each choice runs as a whole record instead: the same sums, more work.
    """
    offered = [_offered(asker, *pair) for pair in zip(records, choices, strict=True)]
    prompts = [part(rows[0], 0, _shared(rows)) for rows in offered]
    if not settled(asker, prompts):
        flat = text_likelihoods(asker, [row for rows in offered for row in rows], batch=batch, done=lambda n: None)
        done(len(records))
        bounds = iter(flat)
        return [[next(bounds) for _ in rows] for rows in offered]
    frozen, ranking = frozen_part(asker, prompts), Ranking(asker, prompts, offered)
    for group in asker.own(planned_groups(asker, prompts, batch)):
        ranking(group, read(asker, prompts, group, frozen))
        done(len(group.indices))
    return asker.whole(ranking.found)


class Ranking:
    """The likelihoods of what prompts may be answered with, worked out beside whatever else is made of them once they are read."""

    def __init__(self, asker: Asker, prompts: Sequence[Encoded], offered: Sequence[Sequence[Encoded]]) -> None:
        """`offered`: for each prompt itself with each of its answers, encoded; none for a prompt that has none to rank."""
        self._asker = asker
        self._endings = [[_ending(row, len(prompt.input_ids)) for row in rows] for prompt, rows in zip(prompts, offered, strict=True)]
        self.found: dict[int, list[Likelihood]] = {}

    @classmethod
    def beside(
        cls, asker: Asker, prompts: Sequence[Encoded], records: Sequence[Record], choices: Sequence[Sequence[str]]
    ) -> Ranking | None:
        """For `evaluation.writing.write`; None where a tokenizer joins the end of a prompt to an answer, so that it is read otherwise."""
        offered = [_offered(asker, *pair) for pair in zip(records, choices, strict=True)]
        pairs = [(prompt.input_ids, row.input_ids) for prompt, rows in zip(prompts, offered, strict=True) for row in rows]
        return cls(asker, prompts, offered) if all(ids == row[: len(ids)] for ids, row in pairs) else None

    def __call__(self, group: Group, rows: Rows) -> None:
        """Ranks a group's answers; `rows` stay as they are."""
        endings = [self._endings[index] for index in group.indices]
        self.found |= dict(zip(group.indices, _continued(self._asker, rows, endings), strict=True))


def _offered(asker: Asker, record: Record, choices: Sequence[str]) -> list[Encoded]:
    """The record as it would be encoded with each of its choices for an answer."""
    rows = []
    for choice in choices:
        answered = replace(record, messages=(*record.prompt, Message(role="assistant", parts=(choice,))))
        rows.append(asker.encoder.encode(answered))
        asker.check_fits(rows[-1], 0, where=f'choice "{choice}"')
    return rows


def _shared(rows: Sequence[Encoded]) -> int:
    """How many tokens the choices share before the first labelled one; at least one."""
    first = min(next(at for at, label in enumerate(row.labels) if label != IGNORED) for row in rows)
    same = next((at for at in range(first) if len({row.input_ids[at] for row in rows}) > 1), first)
    return max(same, 1)


def _ending(row: Encoded, start: int) -> Ending:
    end = max(at for at, label in enumerate(row.labels) if label != IGNORED) + 1
    return list(row.input_ids[start:end]), list(row.labels[start:end])


def _whole(asker: Asker, rows: Sequence[Encoded], cut: Cut | None) -> list[Likelihood]:
    """One forward over whole records; the head runs where some row has a label."""
    inputs = asker.inputs(rows, side="right")
    width = inputs["input_ids"].shape[1]
    labels = torch.full((len(rows), width), IGNORED)
    for at, row in enumerate(rows):
        labels[at, : len(row.labels)] = torch.tensor(row.labels)
    before = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)
    if cut is None:
        logits = _logits(asker, inputs, before)
    else:

        def run(some: Sequence[Encoded]) -> None:
            _logits(asker, asker.inputs(some, side="right"), before)

        states = cut.states(rows, run)
        bare = {name: value for name, value in inputs.items() if name != "mm_encoder_outputs"}
        with cut.entered(states, width):
            logits = _logits(asker, bare, before)
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


def _continued(asker: Asker, read: Rows, endings: Sequence[Sequence[Ending]]) -> list[list[Likelihood]]:
    """For each prompt the likelihood of each of its endings; only the endings run, on copies of the prompts' keys and values."""
    first = read.logits.float().log_softmax(dim=1)
    rows = [(at, ending) for at, ways in enumerate(endings) for ending in ways]
    totals = [float(first[at, labels[0]]) if labels[0] != IGNORED else 0.0 for at, (_, labels) in rows]
    longest = max((len(ids) for _, (ids, _) in rows), default=0)
    step = max(1, POSITIONS // max(longest - 1, 1))
    for start in range(0, len(rows) if longest > 1 else 0, step):
        for offset, gain in enumerate(_rest(asker, rows[start : start + step], read)):
            totals[start + offset] += gain
    found: list[list[Likelihood]] = [[] for _ in endings]
    for (at, (_, labels)), total in zip(rows, totals, strict=True):
        found[at].append(Likelihood(total=total, tokens=sum(label != IGNORED for label in labels)))
    return found


def _rest(asker: Asker, rows: Sequence[tuple[int, Ending]], read: Rows) -> list[float]:
    """The log-likelihood of each ending after its first token; `rows` holds the prompt's place in the batch with the ending."""
    device = read.mask.device
    width = max(len(words) for _, (words, _) in rows) - 1
    ids = torch.full((len(rows), width), asker.pad_id, device=device)
    labels = torch.full((len(rows), width), IGNORED, device=device)
    fresh = torch.zeros((len(rows), width), dtype=read.mask.dtype, device=device)
    for row, (_, (words, wanted)) in enumerate(rows):
        n = len(words) - 1
        ids[row, :n] = torch.tensor(words[:-1], device=device)
        labels[row, :n] = torch.tensor(wanted[1:], device=device)
        fresh[row, :n] = 1
    copied = read.chosen(torch.tensor([at for at, _ in rows], device=device))
    logits = copied.step(asker.model.net, ids, fresh)
    return [float(gain) for gain in _gathered(logits, labels).sum(dim=1).tolist()]
