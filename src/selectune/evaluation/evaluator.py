"""Measure a suite on a model: one sample for every record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

from selectune.errors import DataError
from selectune.evaluation.asking import Asker, asker, prompt_digest
from selectune.evaluation.likelihood import Likelihood, choice_likelihoods, text_likelihoods
from selectune.evaluation.measurement import Measurement, Sample, check_differs
from selectune.evaluation.scorers import Reference, f1, scorer
from selectune.evaluation.suite import Suite, Task, answer_index, choices_of
from selectune.evaluation.undisturbed import undisturbed
from selectune.evaluation.writing import write

if TYPE_CHECKING:
    from selectune.models import Model
    from selectune.records import Encoded, Record

Progress = Callable[[str, int, int], None]
"""Told the task's name, how many of its records are done, and how many it has."""


def evaluate(
    model: Model, suite: Suite, *, stage: str = "", batch: int = 32, progress: Progress | None = None, base: Measurement | None = None
) -> Measurement:
    """Asks the model every record of the suite and scores what it says; nothing about the model or the random state is changed.

    Generation is greedy, whatever the model's generation configuration says. Equal weights, suite, batch and environment give equal
    outputs; another batch size may change a low-precision model's answer where two tokens are all but equally likely. The measurement's
    `model_id` is hashed from the tensors as they are now, also in the middle of a training.

    With `base`, the model is taken for an updated one: raises SameModel where its weights are those that `base` was measured on. Raises
    DataError for a record that does not fit the model's window, and for a score outside [0, 1].
    """
    started = time.perf_counter()
    with undisturbed(model.net):
        ready = asker(model)
        if base is not None:
            check_differs(ready.tensors.id, base, stage=stage)
        samples = [sample for task in suite.tasks for sample in _measure(ready, task, batch, progress)]
    return Measurement(
        stage=stage,
        model_id=ready.tensors.id,
        suite=suite.digest,
        samples=tuple(samples),
        seconds=time.perf_counter() - started,
        kinds={task.name: task.kind for task in suite.tasks},
        environment=_environment(model, batch),
    )


def _environment(model: Model, batch: int) -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(model.device),
        "dtype": str(model.net.dtype).removeprefix("torch."),
        "batch": str(batch),
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
    """What the model writes of its own accord."""
    records = list(task.records)
    prompts = [asker.encoder.prompt(record) for record in records]
    for prompt in prompts:
        asker.check_fits(prompt, task.max_new_tokens, where=f"task {task.name}")
    written: dict[int, list[int]] = {}
    for indices, ids in write(asker, prompts, max_new_tokens=task.max_new_tokens, batch=batch):
        written |= dict(zip(indices, ids, strict=True))
        count.add(len(indices))
    answers = asker.whole(written)
    outputs = [asker.model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    extras: list[dict[str, Any]] = [{"tokens": len(ids)} for ids in answers]
    if task.likelihoods:
        for extra, record, likelihoods in zip(extras, records, _ranked(asker, task, batch, lambda n: None), strict=True):
            extra["choice"] = _reading(record, likelihoods)
    return [_scored(task, *row) for row in zip(records, prompts, outputs, extras, strict=True)]


def _choices(asker: Asker, task: Task, batch: int, count: _Count) -> list[Sample]:
    """Which of the choices the model finds likeliest; the first of equals."""
    samples = []
    for record, likelihoods in zip(task.records, _ranked(asker, task, batch, count.add), strict=True):
        reading = _reading(record, likelihoods)
        output, score = reading.pop("output"), reading.pop("score")
        samples.append(_sample(task, record, asker.encoder.prompt(record), output=output, score=score, extra=reading))
    return samples


def _ranked(asker: Asker, task: Task, batch: int, done: Callable[[int], None]) -> list[list[Likelihood]]:
    return choice_likelihoods(asker, list(task.records), batch=batch, done=done)


def _reading(record: Record, likelihoods: Sequence[Likelihood]) -> dict[str, Any]:
    """The likeliest choice, whether it is the right one, and every choice's log-likelihood in nats."""
    totals = [likelihood.total for likelihood in likelihoods]
    best = totals.index(max(totals))
    right = answer_index(record, where="choice")
    return {
        "output": choices_of(record)[best],
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
        score = likelihood.total / likelihood.tokens
        samples.append(_sample(task, record, row, output="", score=score, extra={"tokens": likelihood.tokens}))
    return samples


def _scored(task: Task, record: Record, prompt: Encoded, output: str, extra: dict[str, Any]) -> Sample:
    judge = f1 if task.kind == "caption" else scorer(task.scorer)
    where = f'task {task.name}: record "{record.id}"'
    try:
        score = float(judge(output, Reference.of(record)))
    except DataError as error:
        raise DataError(error.what, where=where, then=error.then) from error
    if not 0 <= score <= 1:
        raise DataError(f"its score is {score}, outside 0 to 1", where=where, then="Correct the scorer.")
    return _sample(task, record, prompt, output=output, score=score, extra=extra)


def _sample(task: Task, record: Record, prompt: Encoded, *, output: str, score: float, extra: dict[str, Any]) -> Sample:
    cluster = record.meta.get("cluster")
    if cluster is None:
        cluster = record.pictures[0].digest if record.pictures else record.id
    return Sample(
        task=task.name,
        id=record.id,
        cluster=str(cluster),
        prompt_digest=prompt_digest(prompt),
        output=output,
        reference=record.answer,
        score=score,
        extra=extra,
    )
