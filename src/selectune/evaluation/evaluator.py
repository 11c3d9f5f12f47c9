"""Measure a suite on a model: one sample for every record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

from selectune.components import Selection
from selectune.delta import applied
from selectune.errors import DataError
from selectune.evaluation.asking import Asker, Shared, asker, prompt_digest
from selectune.evaluation.likelihood import Likelihood, Ranking, choice_likelihoods, text_likelihoods
from selectune.evaluation.measurement import Measurement, Sample, check_differs
from selectune.evaluation.suite import Suite, Task, answer_index, answers_offered, choices_of, cluster_of, score
from selectune.evaluation.undisturbed import undisturbed
from selectune.evaluation.writing import end_tokens, settled, write
from selectune.hashing import digest
from selectune.training.features import settings_digest

if TYPE_CHECKING:
    from selectune.delta import Delta
    from selectune.evaluation.kept import Kept
    from selectune.models import Model
    from selectune.records import Encoded, Record

Progress = Callable[[str, int, int], None]
"""Told the task's name, how many of its records are done, and how many it has."""


def evaluate(
    model: Model,
    suite: Suite,
    *,
    stage: str = "",
    batch: int = 32,
    progress: Progress | None = None,
    base: Measurement | None = None,
    shared: Shared | None = None,
) -> Measurement:
    """Asks the model every record of the suite and scores what it says; nothing about the model or the random state is changed.

    Generation is greedy, whatever the model's generation configuration says. Equal weights, suite, batch and environment give equal
    outputs; another batch size may change a low-precision model's answer where two tokens are all but equally likely. The measurement's
    `model_id` is hashed from the tensors as they are now, also in the middle of a training. Its `environment` says which fast ways were
    taken, or why not.

    `shared` is what this measurement has in common with those of other stages. With `base`, the model is taken for an updated one: raises
    SameModel where its weights are those that `base` was measured on. Raises DataError for a record that does not fit the model's window,
    and for a score outside [0, 1].
    """
    started = time.perf_counter()
    with undisturbed(model.net):
        ready = asker(model, shared)
        if base is not None:
            check_differs(ready.tensors.id, base, stage=stage)
        kept = None if shared is None else shared.kept
        samples = [sample for task in suite.tasks for sample in _measured(ready, task, _Way(batch=batch, kept=kept), progress)]
    return Measurement(
        stage=stage,
        model_id=ready.tensors.id,
        suite=suite.digest,
        samples=tuple(samples),
        seconds=time.perf_counter() - started,
        kinds={task.name: task.kind for task in suite.tasks},
        environment=environment(model, batch) | ready.said(),
    )


def evaluate_versions(
    model: Model,
    versions: Mapping[str, Sequence[Delta]],
    suite: Suite,
    *,
    batch: int = 32,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> dict[str, Measurement]:
    """Measures several versions of a model, each the deltas that lead to it from `model`, none for the model itself.

    What they have in common is computed once: pictures' features, and what layers below all that the deltas touch make of each prompt.
    Afterwards the model is as it was. Raises WrongParent for deltas that do not lead on from one another.
    """
    if shared is None:
        touched = {name for chain in versions.values() for delta in chain for name in delta.tensors}
        components = tuple(component for component in model.map.components if component.parameter in touched)
        shapes = {name: model.map.shapes[name] for name in touched}
        shared = Shared(selection=Selection(patterns=(), components=components, full_shapes=shapes) if components else None)
    found = {}
    for stage, version in in_turn(model, versions):
        found[stage] = evaluate(version, suite, stage=stage, batch=batch, progress=progress, shared=shared)
    return found


def in_turn(model: Model, versions: Mapping[str, Sequence[Delta]]) -> Iterator[tuple[str, Model]]:
    """The versions one after another, in the one network; deltas that two neighbours share stay on between them."""
    on: list[tuple[Delta, Model, ExitStack]] = []
    try:
        for stage, chain in versions.items():
            while [(delta.parent, delta.child) for delta, _, _ in on] != [(delta.parent, delta.child) for delta in chain[: len(on)]]:
                on.pop()[2].close()
            for delta in chain[len(on) :]:
                stack = ExitStack()
                on.append((delta, stack.enter_context(applied(on[-1][1] if on else model, delta)), stack))
            yield stage, on[-1][1] if on else model
    finally:
        while on:
            on.pop()[2].close()


def environment(model: Model, batch: int) -> dict[str, str]:
    """What outputs may depend on besides weights and prompts: versions, and where the last bits of a number come from."""
    from selectune import __version__

    return {
        "selectune": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(model.device),
        "processor": _processor(model.device),
        "threads": str(torch.get_num_threads()),
        "dtype": str(model.net.dtype).removeprefix("torch."),
        "attention": str(model.net.config._attn_implementation),
        "batch": str(batch),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """How a task is measured."""

    batch: int
    kept: Kept | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A task with its records as the model reads them, encoded once."""

    task: Task
    rows: tuple[Encoded, ...]
    """Prompts; of a perplexity task whole records."""
    digests: tuple[str, ...]
    """Of each row: what goes into the model."""

    @classmethod
    def of(cls, asker: Asker, task: Task) -> _Asked:
        encode = asker.encoder.encode if task.kind == "perplexity" else asker.encoder.prompt
        rows = tuple(encode(record) for record in task.records)
        return cls(task=task, rows=rows, digests=tuple(prompt_digest(row) for row in rows))

    @property
    def where(self) -> str:
        return f"task {self.task.name}"

    def sample(self, at: int, output: str, score: float, extra: dict[str, Any]) -> Sample:
        """What was found of the record at this place."""
        record = self.task.records[at]
        return Sample(
            task=self.task.name,
            id=record.id,
            cluster=cluster_of(record),
            prompt_digest=self.digests[at],
            output=output,
            reference=record.answer,
            score=score,
            extra=extra,
        )

    def scored(self, at: int, output: str, extra: dict[str, Any]) -> Sample:
        """The same with the score that the task's scorer gives."""
        return self.sample(at, output, score(self.task.judge, self.task.records[at], output, where=self.where), extra)


def _measured(asker: Asker, task: Task, way: _Way, progress: Progress | None) -> list[Sample]:
    """A task's samples, read where they are kept."""
    asked, count = _Asked.of(asker, task), _Count(task, progress)
    if way.kept is None:
        return _measure(asker, asked, way.batch, count)
    if asker.processes.count > 1:
        # One might find what another does not, and they measure in step.
        asker.reasons["kept"] = "no: several processes"
        return _measure(asker, asked, way.batch, count)
    about = _about(asker, asked, way.batch)
    found = way.kept.find(task, about)
    if found is None:
        made = _measure(asker, asked, way.batch, count)
        way.kept.keep(task, about, tuple(made))
        return made
    asker.cached.append(task.name)
    count.add(len(found))
    if task.kind in ("perplexity", "choice"):
        return list(found)
    # The scorer may be the user's own, or better than it was: what was written is scored as it is today.
    return [asked.scored(at, sample.output, dict(sample.extra)) for at, sample in enumerate(found)]


def _about(asker: Asker, asked: _Asked, batch: int) -> dict[str, Any]:
    """Everything that a task's samples depend on."""
    task = asked.task
    template = getattr(asker.model.processor, "chat_template", None) or getattr(asker.model.tokenizer, "chat_template", None)
    return {
        "model": asker.tensors.id,
        "task": task.digest,
        "asked": digest("asked", [[row.record_id, found] for row, found in zip(asked.rows, asked.digests, strict=True)]),
        "pictures": settings_digest(asker.model),
        "template": digest("template", str(template)),
        "decoding": {"greedy": True, "ends": end_tokens(asker), "most": task.max_new_tokens},
        "environment": environment(asker.model, batch),
        "begins": 0 if asker.frozen is None else asker.frozen.index,
    }


class _Count:
    """Progress through one task."""

    def __init__(self, task: Task, progress: Progress | None) -> None:
        self.name, self.total, self.progress, self.done = task.name, len(task.records), progress, 0

    def add(self, n: int) -> None:
        self.done += n
        if self.progress is not None:
            self.progress(self.name, self.done, self.total)


def _measure(asker: Asker, asked: _Asked, batch: int, count: _Count) -> list[Sample]:
    if asked.task.kind == "perplexity":
        return _texts(asker, asked, batch, count)
    if asked.task.kind == "choice":
        return _choices(asker, asked, batch, count)
    return _answers(asker, asked, batch, count)


def _answers(asker: Asker, asked: _Asked, batch: int, count: _Count) -> list[Sample]:
    """What the model writes of its own accord; with `likelihoods` also what it finds likeliest."""
    task, prompts, records = asked.task, asked.rows, list(asked.task.records)
    for prompt in prompts:
        asker.check_fits(prompt, task.max_new_tokens, where=asked.where)
    offered = answers_offered(records, where=asked.where) if task.likelihoods else []
    ranking = Ranking.beside(asker, prompts, records, offered) if any(offered) and settled(asker, prompts) else None
    written: dict[int, list[int]] = {}
    for indices, ids in write(asker, prompts, max_new_tokens=task.max_new_tokens, batch=batch, beside=ranking):
        written |= dict(zip(indices, ids, strict=True))
        count.add(len(indices))
    answers = asker.whole(written)
    outputs = [asker.model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    extras: list[dict[str, Any]] = [{"tokens": len(ids)} for ids in answers]
    for at, likelihoods in _ranked(asker, records, offered, ranking, batch):
        extras[at]["choice"] = _reading(records[at], offered[at], likelihoods)
    return [asked.scored(at, *row) for at, row in enumerate(zip(outputs, extras, strict=True))]


def _ranked(
    asker: Asker, records: Sequence[Record], offered: Sequence[Sequence[str]], ranking: Ranking | None, batch: int
) -> list[tuple[int, list[Likelihood]]]:
    """The place of each record that has answers to rank, and their likelihoods: those that were worked out in writing, else made now."""
    places = [at for at, choices in enumerate(offered) if choices]
    if ranking is not None:
        whole = asker.whole(ranking.found)
        return [(at, whole[at]) for at in places]
    some = [records[at] for at in places]
    found = choice_likelihoods(asker, some, [offered[at] for at in places], batch=batch, done=lambda n: None) if some else []
    return list(zip(places, found, strict=True))


def _choices(asker: Asker, asked: _Asked, batch: int, count: _Count) -> list[Sample]:
    """Which of the choices the model finds likeliest; the first of equals."""
    records = list(asked.task.records)
    offered = [choices_of(record) for record in records]
    samples = []
    for at, likelihoods in enumerate(choice_likelihoods(asker, records, offered, batch=batch, done=count.add)):
        reading = _reading(records[at], offered[at], likelihoods)
        samples.append(asked.sample(at, reading.pop("output"), reading.pop("score"), reading))
    return samples


def _reading(record: Record, choices: Sequence[str], likelihoods: Sequence[Likelihood]) -> dict[str, Any]:
    """The likeliest choice, whether it is the right one, and every choice's log-likelihood in nats."""
    totals = [likelihood.total for likelihood in likelihoods]
    best = totals.index(max(totals))
    right = answer_index(record, where="choice", choices=choices)
    return {
        "output": choices[best],
        "score": float(best == right),
        "logprobs": totals,
        "tokens": [one.tokens for one in likelihoods],
    }


def _texts(asker: Asker, asked: _Asked, batch: int, count: _Count) -> list[Sample]:
    """How likely the assistant's words are."""
    for row in asked.rows:
        asker.check_fits(row, 0, where=asked.where)
    samples = []
    for at, likelihood in enumerate(text_likelihoods(asker, asked.rows, batch=batch, done=count.add)):
        if likelihood.tokens == 0:
            where = f'{asked.where}: record "{asked.rows[at].record_id}"'
            raise DataError("it has no words of the assistant after its first token", where=where, then="Give text of two tokens or more.")
        samples.append(asked.sample(at, "", likelihood.total / likelihood.tokens, {"tokens": likelihood.tokens}))
    return samples
