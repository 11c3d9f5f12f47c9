"""Law 7, at the level of one training: the same data, selection, settings and seed twice give the same delta."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from selectune.training import Session, train
from training_fixtures import attention, examples, optim, tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_same_training_twice_gives_the_same_digest_and_another_seed_another(dtype: torch.dtype) -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(digests))
        model = tiny_model(dtype=dtype)
        digests.append(train(model, attention(model), examples(), optim(micro_batch=2), session=Session(seed=seed)).delta.digest)
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_a_training_leaves_no_trace_that_the_next_one_could_feel() -> None:
    model = tiny_model()
    first = train(model, attention(model), examples(), optim(), session=Session(seed=5))
    train(model, model.map.select(("mlp",)), examples(6), optim(checkpointing=True), session=Session(seed=1))
    assert train(model, attention(model), examples(), optim(), session=Session(seed=5)).delta.digest == first.delta.digest
