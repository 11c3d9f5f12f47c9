"""Two processes train one model, and one of them is killed; then both start again from the last checkpoint.

python tests/crash/lose_a_process.py FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import distributed

from selectune.errors import SelectuneError
from selectune.training import Session, Step, train
from selectune.training.sharding import shard
from training_fixtures import attention, examples, optim, tiny_model


def rank(index: int, folder: Path, name: str, *, sharded: bool, dies_at: int | None) -> str:
    """One of the two; what came of it, as text."""
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting-{name}", rank=index, world_size=2)
    model = tiny_model("llama")
    if sharded:
        model = shard(model)

    def die(step: Step) -> None:
        if index == 1 and step.n == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = folder / f"checkpoints-{sharded}"
    resume = checkpoints if checkpoints.is_dir() and dies_at is None and name != "straight" else None
    session = Session(checkpoint_dir=None if name == "straight" else checkpoints, resume=resume, on_step=die)
    settings = optim(max_steps=6, save_every=1)
    try:
        training = train(model, attention(model), examples(pictures=False), settings, session=session)
    except SelectuneError as error:
        return f"{type(error).__name__}: {error}"
    return training.delta.digest


def pair(folder: Path, name: str, *, sharded: bool, dies_at: int | None = None) -> list[str]:
    """What both came to; a dead one came to its signal."""
    pids = []
    for index in range(2):
        pid = os.fork()
        if pid == 0:
            said = rank(index, folder, name, sharded=sharded, dies_at=dies_at)
            (folder / f"{name}-{sharded}-{index}").write_text(said)
            os._exit(0)
        pids.append(pid)
    found = []
    for index, pid in enumerate(pids):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found.append((folder / f"{name}-{sharded}-{index}").read_text() if code == 0 else str(code))
    return found


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
            "lost": pair(base, "lost", sharded=sharded, dies_at=3),
            "again": pair(base, "again", sharded=sharded),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
