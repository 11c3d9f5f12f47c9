"""What an interrupted training needs to go on: masters and moments of the selection, and where it was.

Never the whole model, and never pickle.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from selectune.delta.files import replacing
from selectune.errors import ResumeError, StorageError
from selectune.training.results import Step

FORMAT = "selectune/checkpoint/1"
NAME = "checkpoint-{:08d}.safetensors"
_RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A training after some of its steps."""

    identity: Mapping[str, Any]
    """What must be the same to go on: model, selection, records, optimizer settings, seed."""
    steps: tuple[Step, ...]
    """Every step so far."""
    tensors: Mapping[str, Tensor]
    """As `Masters.state` gives them."""


def write(folder: Path, checkpoint: Checkpoint, previous: Path | None = None) -> Path:
    """Writes one file, whole or not at all, then removes `previous`, the one that it takes the place of. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot be made ({error.strerror})", where=str(folder), then="Choose a folder that you may write to."
        ) from error
    path = folder / NAME.format(len(checkpoint.steps))
    header = {
        "format": FORMAT,
        "identity": json.dumps(checkpoint.identity, sort_keys=True),
        "steps": json.dumps([asdict(step) for step in checkpoint.steps]),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors | {_RANDOM: torch.get_rng_state()}, str(temporary), metadata=header)
    if previous is not None and previous != path:
        previous.unlink(missing_ok=True)
    return path


def read(path: Path, identity: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint at `path` (of a folder, the newest), which must have been written by the training that `identity` describes.

    Sets torch's random state to the one that was saved. Raises ResumeError with each difference, and for a file that is none of ours or
    damaged.
    """
    file = _newest(path) if path.is_dir() else path
    try:
        with safe_open(str(file), framework="pt") as opened:
            header = opened.metadata() or {}
            if header.get("format") != FORMAT:
                raise ResumeError(
                    "is no selectune checkpoint", where=str(file), then=f"Give a file named like {NAME.format(100)}, or its folder."
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
        saved = json.loads(header["identity"])
        steps = tuple(Step(**step) for step in json.loads(header["steps"]))
        random = tensors.pop(_RANDOM)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ResumeError):
            raise
        raise ResumeError(f"cannot be read ({error})", where=str(file), then="Resume from another checkpoint, or start again.") from error
    differences = list(_differences(saved, json.loads(json.dumps(identity)), ""))
    if differences:
        raise ResumeError(
            "was written by another training: " + "; ".join(differences),
            where=str(file),
            then="Use the same recipe, or start without resuming.",
        )
    torch.set_rng_state(random)
    return Checkpoint(identity=saved, steps=steps, tensors=tensors)


def _differences(saved: Any, now: Any, path: str) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted(saved.keys() | now.keys()):
            yield from _differences(saved.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif saved != now:
        yield f"{path} was {_short(saved)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:24] + "…" + text[-12:]


def _newest(folder: Path) -> Path:
    found = sorted(folder.glob(NAME.replace("{:08d}", "*")))
    if not found:
        raise ResumeError("there is no checkpoint in it", where=str(folder), then="Start without resuming.")
    return found[-1]


class Interruption:
    """Whether SIGINT or SIGTERM arrived; the second one is not held back."""

    def __init__(self) -> None:
        self.name: str | None = None


@contextlib.contextmanager
def interruptions(wanted: bool) -> Iterator[Interruption]:
    """Inside, the first SIGINT or SIGTERM is noted instead of ending the program, so that a checkpoint can be written.

    A second one acts as it did before. Outside the main thread, or when not `wanted`, nothing is changed.
    """
    noted = Interruption()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        noted.name = signal.Signals(number).name
        put_back()

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        put_back()
