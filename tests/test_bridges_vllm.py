"""vLLM as the generator. It does not run on a CPU machine like this: a stand-in speaks its public interface."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import evaluation_fixtures as made
from selectune.errors import DataError, InputError, MissingPackage
from selectune.evaluation import Suite, Task
from selectune.evaluation.bridges.vllm import evaluate_with_vllm, open_engine
from selectune.models import load


@dataclass
class Completion:
    text: str
    token_ids: list[int]


@dataclass
class Request:
    prompt_token_ids: list[int]
    outputs: list[Completion]


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int


@dataclass
class LLM:
    model: str
    trust_remote_code: bool
    asked: list[Any] = field(default_factory=list)
    silent: bool = False

    def chat(self, messages: list[Any], sampling_params: SamplingParams, *, use_tqdm: bool) -> Sequence[Request]:
        assert sampling_params.temperature == 0.0
        self.asked += messages
        answer = [] if self.silent else [Completion(text=" cat ", token_ids=[5, 6])]
        return [Request(prompt_token_ids=[1, number], outputs=answer) for number in range(len(messages))]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> LLM:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, "0.0"
    monkeypatch.setitem(sys.modules, "vllm", module)
    return open_engine(Path("model"))  # type: ignore[return-value]


def suite(**change: Any) -> Suite:
    records = made.records(made.record("a", "What is it?", "cat", shade=3), made.record("b", "And this?", "dog", shade=4))
    return Suite(tasks=(Task(**({"name": "t", "records": records} | change)),))


def test_vllm_writes_and_our_scorer_reads(engine: LLM) -> None:
    found = evaluate_with_vllm(engine, suite(), model_id="m" * 64, stage="after")
    assert found.scores("t") == {"a": 1.0, "b": 0.0}
    assert found.of("t")["a"].output == "cat"
    assert found.environment == {"evaluator": "vllm 0.0"}
    assert found.suite == suite().digest
    picture, question = engine.asked[0][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert question == {"type": "text", "text": "What is it?"}
    assert not engine.trust_remote_code


def test_what_vllm_cannot_do_is_refused(engine: LLM) -> None:
    with pytest.raises(InputError, match="the task t compares likelihoods"):
        evaluate_with_vllm(engine, suite(kind="perplexity"), model_id="m", stage="x")
    with pytest.raises(DataError, match=r"task t.*: its score is 2\.0"):
        evaluate_with_vllm(engine, suite(scorer=two), model_id="m", stage="x")
    engine.silent = True
    with pytest.raises(DataError, match="vLLM gave 0 answers to 2 records"):
        evaluate_with_vllm(engine, suite(), model_id="m", stage="x")


def two(output: str, reference: object) -> float:
    return 2.0


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_says_how_to_get_it() -> None:
    with pytest.raises(MissingPackage, match="pip install vllm"):
        open_engine(Path("model"))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: it needs a GPU; pip install vllm")
def test_the_real_vllm_answers_what_the_suite_asks(tmp_path: Path) -> None:
    from bridges_fixtures import write_model

    folder = write_model(tmp_path / "model")
    found = evaluate_with_vllm(open_engine(folder, max_model_len=256), suite(), model_id=load(str(folder)).id, stage="x")
    assert set(found.scores("t")) == {"a", "b"}
