"""What an interrupted training needs to go on: what changed in the selection, the optimizer's state, and where it was.

Never the whole model, and never pickle. Each file carries the digest of all that it holds, so that one flipped byte is found.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from selectune.delta.files import replacing
from selectune.errors import DeltaError, ResumeError, StorageError
from selectune.hashing import digest, tensor_entry
from selectune.training.packing import DELTA, packed, unpacked
from selectune.training.results import Step

FORMAT = "selectune/checkpoint/2"
NAME = "checkpoint-{:08d}.safetensors"
_RANDOM = "random"
_HEADER = ("format", "identity", "steps")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A training after some of its steps."""

    identity: Mapping[str, Any]
    """What must be the same to go on: model, selection, records, optimizer settings, seed."""
    steps: tuple[Step, ...]
    """Every step so far."""
    tensors: Mapping[str, Tensor]
    """As `Masters.state` gives them."""
    random: Tensor = field(default_factory=torch.get_rng_state)
    """torch's random state after the last step."""

    def copied(self) -> Checkpoint:
        """The same on the CPU, in memory of its own: training may go on while it is written."""
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.tensors.items()}
        return Checkpoint(identity=self.identity, steps=self.steps, tensors=tensors, random=self.random)


class DamagedError(ResumeError):
    """A checkpoint that is not what was written."""


def write(folder: Path, checkpoint: Checkpoint, start: Mapping[str, Tensor] | None = None) -> Path:
    """Writes one file, whole or not at all. With the weights at the `start`, masters are packed against them. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot be made ({error.strerror})", where=str(folder), then="Choose a folder that you may write to."
        ) from error
    path = folder / NAME.format(len(checkpoint.steps))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    tensors = packed(tensors, start or {}) | {_RANDOM: checkpoint.random}
    header = {
        "format": FORMAT,
        "identity": json.dumps(checkpoint.identity, sort_keys=True),
        "steps": json.dumps([asdict(step) for step in checkpoint.steps]),
    }
    header["digest"] = _digest(header, tensors)
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata=header)
    return path


def read(path: Path, identity: Mapping[str, Any], start: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """The checkpoint at `path` (of a folder, the newest), which must have been written by the training that `identity` describes.

    `start` is what it was written with. Sets torch's random state to the one that was saved. Raises ResumeError with each difference, for a
    file that is none of ours, and for a damaged one, which is never passed over: the error names the newest older one that is whole.
    """
    file = _newest(path) if path.is_dir() else path
    try:
        header, tensors = _checked(file)
        saved, steps, random = _state(header, tensors)
        tensors = unpacked(tensors, start or {}) if saved == json.loads(json.dumps(identity)) else {}
    except (DamagedError, DeltaError) as error:
        raise ResumeError(error.what, where=str(file), then=_instead(file)) from error
    differences = list(_differences(saved, json.loads(json.dumps(identity)), ""))
    if differences:
        raise ResumeError(
            "was written by another training: " + "; ".join(differences),
            where=str(file),
            then="Use the same recipe, or start without resuming.",
        )
    try:
        torch.set_rng_state(random)
    except (RuntimeError, TypeError) as error:
        what = f"is damaged: its random state is none ({' '.join(str(error).split())[:120]})"
        raise ResumeError(what, where=str(file), then=_instead(file)) from error
    return Checkpoint(identity=saved, steps=steps, tensors=tensors, random=random)


def written(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first; none where there is no folder."""
    return sorted(folder.glob(NAME.replace("{:08d}", "*")))


def sizes(path: Path) -> tuple[int, int]:
    """Bytes of a checkpoint: what changed in the weights, and all the rest, which is the optimizer's. Raises ResumeError."""
    _, tensors = _checked(path)
    delta = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(DELTA))
    return delta, path.stat().st_size - delta


def _checked(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a file holds, exactly as it was written. Raises DamagedError, and ResumeError for a file that is no checkpoint."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
    except FileNotFoundError as error:
        raise ResumeError("cannot be read: there is no such file", where=str(file), then="Start without resuming.") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(f"cannot be read ({error})") from error
    if not header.get("format", "").startswith("selectune/checkpoint/"):
        then = f"Give a file named like {NAME.format(100)}, or its folder."
        raise ResumeError("is no selectune checkpoint", where=str(file), then=then)
    if header["format"] != FORMAT:
        raise ResumeError(f"is of another version, {header['format'][:60]}", where=str(file), then="Start without resuming.")
    if set(header) != {*_HEADER, "digest"} or header["digest"] != _digest(header, tensors):
        raise DamagedError("is damaged: its digest does not fit what it holds")
    return header, tensors


def _state(header: Mapping[str, str], tensors: dict[str, Tensor]) -> tuple[Any, tuple[Step, ...], Tensor]:
    """What the training was, its steps, and the random state, which is taken out of the tensors. Its digest shows a flipped byte and no
    more: who writes such a file can make that fit. Raises DamagedError.
    """
    try:
        saved, steps = json.loads(header["identity"]), json.loads(header["steps"])
        return saved, tuple(_step(step) for step in steps), tensors.pop(_RANDOM)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"is damaged: its steps cannot be read ({str(error)[:200]})") from error


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    entries = {name: asdict(tensor_entry(tensor)) for name, tensor in tensors.items()}
    return digest("checkpoint", {**{name: header[name] for name in _HEADER}, "tensors": entries})


def _step(value: Mapping[str, Any]) -> Step:
    step = Step(**{**value, "still": tuple(value["still"])})
    numbers = (step.n, step.total, step.loss, step.lr, step.tokens, step.grad_norm, step.seconds, step.waited, *step.kept.values())
    if not all(isinstance(one, int | float) for one in numbers) or not all(isinstance(one, str) for one in (*step.still, step.fault)):
        raise TypeError("a step has other fields")
    return step


def _instead(file: Path) -> str:
    """What to do about a damaged checkpoint."""
    for older in reversed([one for one in written(file.parent) if one.name < file.name]):
        with contextlib.suppress(ResumeError, ValueError, TypeError, RecursionError):
            header, _ = _checked(older)
            steps = len(json.loads(header["steps"]))
            return f"{older.name} beside it, after step {steps}, is whole: delete {file.name}, or resume from that file."
    return f"There is no older one: delete {file.name} and start this training again."


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
    found = written(folder)
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
