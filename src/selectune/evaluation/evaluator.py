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


def _measured(asker: Asker, task: Task, way: _Way, progress: Progress | None) -> list[Sample]:
    """A task's samples, read where they are kept."""
    if way.kept is None:
        return _measure(asker, task, way.batch, progress)
    if asker.processes.count > 1:
        # One might find what another does not, and they measure in step.
        asker.reasons["kept"] = "no: several processes"
        return _measure(asker, task, way.batch, progress)
    about = _about(asker, task, way.batch)
    found = way.kept.find(task, about)
    if found is None:
        made = _measure(asker, task, way.batch, progress)
        way.kept.keep(task, about, tuple(made))
        return made
    asker.cached.append(task.name)
    _Count(task, progress).add(len(found))
    if task.kind in ("perplexity", "choice"):
        return list(found)
    # The scorer may be the user's own, or better than it was: what was written is scored as it is today.
    pairs = zip(task.records, found, strict=True)
    return [_scored(task, record, asker.encoder.prompt(record), sample.output, dict(sample.extra)) for record, sample in pairs]


def _about(asker: Asker, task: Task, batch: int) -> dict[str, Any]:
    """Everything that a task's samples depend on."""
    rows = [asker.encoder.encode(record) if task.kind == "perplexity" else asker.encoder.prompt(record) for record in task.records]
    template = getattr(asker.model.processor, "chat_template", None) or getattr(asker.model.tokenizer, "chat_template", None)
    return {
        "model": asker.tensors.id,
        "task": task.digest,
        "asked": digest("asked", [[row.record_id, prompt_digest(row)] for row in rows]),
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


def _measure(asker: Asker, task: Task, batch: int, progress: Progress | None) -> list[Sample]:
    count = _Count(task, progress)
    if task.kind == "perplexity":
        return _texts(asker, task, batch, count)
    if task.kind == "choice":
        return _choices(asker, task, batch, count)
    return _answers(asker, task, batch, count)


def _answers(asker: Asker, task: Task, batch: int, count: _Count) -> list[Sample]:
    """What the model writes of its own accord; with `likelihoods` also what it finds likeliest."""
    records = list(task.records)
    prompts = [asker.encoder.prompt(record) for record in records]
    for prompt in prompts:
        asker.check_fits(prompt, task.max_new_tokens, where=f"task {task.name}")
    offered = answers_offered(records, where=f"task {task.name}") if task.likelihoods else []
    ranking = Ranking.beside(asker, prompts, records, offered) if offered and settled(asker, prompts) else None
    written: dict[int, list[int]] = {}
    for indices, ids in write(asker, prompts, max_new_tokens=task.max_new_tokens, batch=batch, beside=ranking):
        written |= dict(zip(indices, ids, strict=True))
        count.add(len(indices))
    answers = asker.whole(written)
    outputs = [asker.model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    extras: list[dict[str, Any]] = [{"tokens": len(ids)} for ids in answers]
    if task.likelihoods:
        ranked = (
            choice_likelihoods(asker, records, offered, batch=batch, done=lambda n: None) if ranking is None else asker.whole(ranking.found)
        )
        for extra, record, choices, likelihoods in zip(extras, records, offered, ranked, strict=True):
            extra["choice"] = _reading(record, choices, likelihoods)
    return [_scored(task, *row) for row in zip(records, prompts, outputs, extras, strict=True)]


def _choices(asker: Asker, task: Task, batch: int, count: _Count) -> list[Sample]:
    """Which of the choices the model finds likeliest; the first of equals."""
    records, samples = list(task.records), []
    offered = [choices_of(record) for record in records]
    ranked = choice_likelihoods(asker, records, offered, batch=batch, done=count.add)
    for record, choices, likelihoods in zip(records, offered, ranked, strict=True):
        reading = _reading(record, choices, likelihoods)
        output, found = reading.pop("output"), reading.pop("score")
        samples.append(_sample(task, record, asker.encoder.prompt(record), output=output, score=found, extra=reading))
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


def _texts(asker: Asker, task: Task, batch: int, count: _Count) -> list[Sample]:
    """How likely the assistant's words are."""
    rows = [asker.encoder.encode(record) for record in task.records]
    for row in rows:
        asker.check_fits(row, 0, where=f"task {task.name}")
    samples = []
    for record, row, likelihood in zip(task.records, rows, text_likelihoods(asker, rows, batch=batch, done=count.add), strict=True):
        if likelihood.tokens == 0:
            where = f'task {task.name}: record "{record.id}"'
            raise DataError("it has no words of the assistant after its first token", where=where, then="Give text of two tokens or more.")
        mean = likelihood.total / likelihood.tokens
        samples.append(_sample(task, record, row, output="", score=mean, extra={"tokens": likelihood.tokens}))
    return samples


def _scored(task: Task, record: Record, prompt: Encoded, output: str, extra: dict[str, Any]) -> Sample:
    found = score(task.judge, record, output, where=f"task {task.name}")
    return _sample(task, record, prompt, output=output, score=found, extra=extra)


def _sample(task: Task, record: Record, prompt: Encoded, *, output: str, score: float, extra: dict[str, Any]) -> Sample:
    return Sample(
        task=task.name,
        id=record.id,
        cluster=cluster_of(record),
        prompt_digest=prompt_digest(prompt),
        output=output,
        reference=record.answer,
        score=score,
        extra=extra,
    )
