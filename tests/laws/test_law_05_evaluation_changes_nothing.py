"""Law 5: training with evaluation in between equals training without."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from evaluation_fixtures import records, text
from selectune.evaluation import Suite, Task, evaluate
from selectune.hashing import manifest
from selectune.models import Model
from selectune.probes import probe_numbers
from selectune.training import fit
from training_fixtures import attention, examples, optim, tiny_model


def everything(model: Model) -> Suite:
    """Every kind of task."""
    asked = examples(5, pictures=model.is_vision)
    return Suite(
        tasks=(
            Task(name="free", records=asked, max_new_tokens=3, likelihoods=True),
            Task(name="choice", records=asked, kind="choice"),
            Task(name="caption", records=asked, kind="caption", max_new_tokens=3),
            Task(name="text", records=records(text("t", "a cat and a dog")), kind="perplexity"),
        )
    )


def trained(family: str, dtype: torch.dtype, *, measured: bool) -> tuple[str, list[float], list[float]]:
    """The model's id after four steps, the losses, and numbers drawn afterwards."""
    model = tiny_model(family, dtype)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    losses = []
    suite = everything(model)
    steps = fit(model, attention(model), examples(pictures=model.is_vision), optim(max_steps=4))
    for step in steps:
        losses.append(step.loss)
        if measured and step.n % 2:
            evaluate(model, suite, batch=2)
            probe_numbers(model, list(suite.tasks[0].records), stage="now", max_new_tokens=3)
    return manifest(model.net).id, losses, [random.random(), float(np.random.rand()), float(torch.rand(()))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_training_with_evaluation_in_between_equals_training_without(family: str, dtype: torch.dtype) -> None:
    without = trained(family, dtype, measured=False)
    assert trained(family, dtype, measured=True) == without
    assert len(set(without[1])) == 4


def test_a_measurement_in_the_middle_of_a_training_is_of_the_weights_at_that_moment() -> None:
    model = tiny_model("llama")
    suite = Suite(tasks=(Task(name="q", records=examples(3, pictures=False), max_new_tokens=3),))
    seen = [evaluate(model, suite).model_id]
    for _ in fit(model, attention(model), examples(pictures=False), optim(max_steps=2)):
        seen.append(evaluate(model, suite).model_id)
    assert len(set(seen)) == 3
    assert seen[0] == model.id
    assert seen[-1] == manifest(model.net).id
