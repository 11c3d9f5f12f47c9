"""Law 6: interrupted and resumed equals straight through, bit for bit on a CPU."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from selectune.errors import Stopped
from selectune.hashing import manifest
from selectune.training import Session, Step, train
from training_fixtures import attention, examples, optim, tiny_model

SETTINGS = optim(max_steps=6, epochs=1.0, micro_batch=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_state_that_goes_on_to_the_same_delta(number: signal.Signals, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(dtype=dtype)
    straight = train(model, attention(model), examples(), SETTINGS, session=Session(seed=3))

    def interrupt(step: Step) -> None:
        if step.n == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=rf"{number.name} after step 2 of 6; the state is written\. Go on .*resume .*checkpoint-00000002"):
        train(model, attention(model), examples(), SETTINGS, session=Session(seed=3, checkpoint_dir=tmp_path, on_step=interrupt))
    assert signal.getsignal(number) is before
    assert manifest(model.net).id == model.id

    torch.manual_seed(99)
    fresh = tiny_model(dtype=dtype)
    resumed = train(fresh, attention(fresh), examples(), SETTINGS, session=Session(seed=3, resume=tmp_path))
    assert resumed.delta.digest == straight.delta.digest
    assert [(step.n, step.loss, step.grad_norm) for step in resumed.steps] == [
        (step.n, step.loss, step.grad_norm) for step in straight.steps
    ]


def test_every_saved_step_goes_on_to_the_same_delta(tmp_path: Path) -> None:
    model = tiny_model("llama")
    records = examples(pictures=False)
    settings = optim(max_steps=5, save_every=1, keep_checkpoints=4)
    straight = train(model, attention(model), records, settings, session=Session(checkpoint_dir=tmp_path))
    kept = sorted(tmp_path.iterdir())
    assert [path.name for path in kept] == [f"checkpoint-0000000{n}.safetensors" for n in (2, 3, 4, 5)]
    for path in kept:
        assert train(model, attention(model), records, settings, session=Session(resume=path)).delta.digest == straight.delta.digest
