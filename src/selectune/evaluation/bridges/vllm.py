"""vLLM as what writes the answers: the suite, the scorers and the measurement are ours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from selectune.errors import DataError, InputError, MissingPackage
from selectune.evaluation.measurement import Measurement, Sample
from selectune.evaluation.suite import cluster_of, score
from selectune.hashing import digest

if TYPE_CHECKING:
    from pathlib import Path

    from selectune.evaluation.suite import Suite, Task
    from selectune.records import Record


class Completion(Protocol):
    """One answer; vLLM's ``CompletionOutput`` is one."""

    @property
    def text(self) -> str:
        """What was written."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens of it."""


class Request(Protocol):
    """One prompt's answers; vLLM's ``RequestOutput`` is one."""

    @property
    def prompt_token_ids(self) -> Sequence[int] | None:
        """What went into the model."""

    @property
    def outputs(self) -> Sequence[Completion]:
        """The answers, one for greedy decoding."""


class Engine(Protocol):
    """What writes; vLLM's ``LLM`` is one."""

    def chat(self, messages: list[Any], sampling_params: Any, *, use_tqdm: bool) -> Sequence[Request]:
        """An answer to each conversation, in their order."""


def open_engine(folder: Path, **options: Any) -> Engine:
    """vLLM with the model in a folder; `options` go to ``vllm.LLM``, such as ``limit_mm_per_prompt={"image": 2}``.

    Raises MissingPackage where vLLM is not installed.
    """
    engine: Engine = _vllm().LLM(model=str(folder), trust_remote_code=False, **options)
    return engine


def evaluate_with_vllm(engine: Engine, suite: Suite, *, model_id: str, stage: str) -> Measurement:
    """Greedy answers to every record of a suite of written answers, in vLLM's batches, and our scorers' opinion of them.

    The chat template is applied by vLLM. Compare it only with another measurement by vLLM: its kernels round otherwise than the local
    evaluator's. `model_id` is the id of the weights in the engine's folder. Raises InputError for a task that compares likelihoods,
    DataError for a record without an answer from the engine and for a score outside [0, 1].
    """
    odd = [task for task in suite.tasks if task.kind not in ("generate", "caption") or task.likelihoods]
    if odd:
        what = f"the task {odd[0].name} compares likelihoods, and vLLM writes answers"
        raise InputError(what, where="vllm", then="Measure it with the local evaluator.")
    started = time.perf_counter()
    samples = [sample for task in suite.tasks for sample in _samples(engine, task)]
    return Measurement(
        stage=stage,
        model_id=model_id,
        suite=suite.digest,
        samples=tuple(samples),
        seconds=time.perf_counter() - started,
        kinds={task.name: task.kind for task in suite.tasks},
        environment={"evaluator": f"vllm {_vllm().__version__}"},
    )


def _samples(engine: Engine, task: Task) -> list[Sample]:
    settings = _vllm().SamplingParams(temperature=0.0, max_tokens=task.max_new_tokens)
    records = list(task.records)
    answers = engine.chat([messages(record) for record in records], settings, use_tqdm=False)
    if len(answers) != len(records) or not all(answer.outputs for answer in answers):
        what = f"vLLM gave {sum(bool(answer.outputs) for answer in answers)} answers to {len(records)} records"
        raise DataError(what, where=f"task {task.name}", then="Look at its log.")
    return [_sample(task, record, answer) for record, answer in zip(records, answers, strict=True)]


def messages(record: Record) -> list[dict[str, Any]]:
    """A record's prompt as OpenAI's chat messages, pictures as data: URLs in their places."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image_url", "image_url": {"url": part.data_url()}}
                for part in message.parts
            ],
        }
        for message in record.prompt
    ]


def _sample(task: Task, record: Record, answer: Request) -> Sample:
    output = answer.outputs[0].text.strip()
    pictures = [picture.digest for picture in record.pictures]
    return Sample(
        task=task.name,
        id=record.id,
        cluster=cluster_of(record),
        prompt_digest=digest("prompt", {"ids": list(answer.prompt_token_ids or ()), "pictures": pictures}),
        output=output,
        reference=record.answer,
        score=score(task.judge, record, output, where=f"task {task.name}"),
        extra={"tokens": len(answer.outputs[0].token_ids)},
    )


def _vllm() -> Any:
    try:
        return import_module("vllm")
    except ImportError as error:
        then = "On a machine with a GPU: pip install vllm."
        raise MissingPackage(f"vLLM is not installed ({error})", where="vllm", then=then) from error
