"""Two processes train one model, and one of them is killed in the middle of a step, or stands still; then both start again from the last
checkpoint.

python tests/crash/lose_a_process.py FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import distributed

from selectune.errors import SelectuneError
from selectune.training import Session, Step, train
from selectune.training.sharding import shard
from training_fixtures import attention, examples, optim, tiny_model

PATIENCE = timedelta(seconds=8)


def rank(index: int, folder: Path, name: str, *, sharded: bool, dies_in: int | None) -> tuple[str, int]:
    """One of the two; what came of it, as text, and its exit code."""
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting-{name}", rank=index, world_size=2, timeout=PATIENCE)
    model = tiny_model("llama")
    if sharded:
        model = shard(model)

    done = 0

    def count(step: Step) -> None:
        nonlocal done
        done = step.n

    def die(*_: object) -> None:
        if done + 1 == dies_in:
            os.kill(os.getpid(), signal.SIGSTOP if name == "still" else signal.SIGKILL)

    if index == 1 and dies_in is not None:
        # In the middle of a pass, with the first layer done and the others waiting for it.
        model.net.get_decoder().layers[0].register_forward_hook(die)

    checkpoints = folder / f"checkpoints-{sharded}"
    resume = checkpoints if checkpoints.is_dir() and dies_in is None and name != "straight" else None
    session = Session(checkpoint_dir=None if name == "straight" else checkpoints, resume=resume, on_step=count)
    settings = optim(max_steps=6, save_every=1)
    try:
        training = train(model, attention(model), examples(pictures=False), settings, session=session)
    except SelectuneError as error:
        return f"{type(error).__name__}: {error}", error.exit_code
    return training.delta.digest, 0


def pair(folder: Path, name: str, *, sharded: bool, dies_in: int | None = None) -> dict[str, Any]:
    """What both came to, with their exit codes; a dead one has its signal, and one that stands still is killed in the end."""
    pids, started = [], time.monotonic()
    for index in range(2):
        pid = os.fork()
        if pid == 0:
            said, code = rank(index, folder, name, sharded=sharded, dies_in=dies_in)
            (folder / f"{name}-{sharded}-{index}").write_text(said)
            os._exit(code)
        pids.append(pid)
    codes, seconds = [], 0.0
    for pid in pids:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        seconds = seconds or time.monotonic() - started
        if name == "still" and len(codes) == 1:
            os.kill(pids[1], signal.SIGKILL)
    files = [folder / f"{name}-{sharded}-{index}" for index in range(2)]
    checkpoints = folder / f"checkpoints-{sharded}"
    return {
        "said": [file.read_text() if file.is_file() else "" for file in files],
        "codes": codes,
        "seconds": seconds,
        "torn": [str(path) for path in checkpoints.rglob("*") if path.is_file() and not path.match("checkpoint-????????.safetensors")],
    }


def main() -> None:
    """Whole models first, then shards."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {}
    for sharded in (False, True):
        base = folder / str(sharded)
        base.mkdir(parents=True)
        found["sharded" if sharded else "whole"] = {
            "straight": pair(base, "straight", sharded=sharded),
            "lost": pair(base, "lost", sharded=sharded, dies_in=4),
            "again": pair(base, "again", sharded=sharded),
            "still": pair(base, "still", sharded=sharded, dies_in=6),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
