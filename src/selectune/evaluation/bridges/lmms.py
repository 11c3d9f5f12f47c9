"""lmms-eval, run in an environment of its own: its pins would not live beside ours."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from selectune.errors import CheckFailed, InputError, MissingPackage
from selectune.evaluation.bridges.harness import read_harness
from selectune.evaluation.bridges.log import Log
from selectune.hashing import parse_json

PACKAGES = ("lmms_eval", "torch", "transformers", "accelerate", "datasets")
"""Whose versions in its environment are kept."""
TOLD = 12
"""So many of its last lines are shown where it fails."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COUNT = re.compile(r"(\d+)/(\d+) \[")
_VERSIONS = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What lmms-eval is to do."""

    python: Path
    """The interpreter of its environment."""
    tasks: tuple[str, ...]
    """By lmms-eval's own names."""
    backend: str = "huggingface"
    """Its name for the kind of model: qwen2_5_vl, llava_hf, …"""
    model_args: tuple[str, ...] = ()
    """``NAME=VALUE``, such as ``device=cpu``; the folder is added."""
    include: Path | None = None
    """A folder with tasks of one's own."""
    limit: int | None = None
    batch: int = 1


Told = Callable[[str], None]
Counted = Callable[[int, int], None]


def run_lmms_eval(folder: Path, asked: Asked, *, say: Told, count: Counted) -> Log:
    """lmms-eval's samples of the model in `folder`, with the command, its versions and its exit code in `environment`.

    Its lines go to `say` and its progress to `count` while it runs. Raises MissingPackage where its python does not have it, InputError
    for a folder or a task that its options cannot carry, CheckFailed with its last lines where it failed. Trap: lmms-eval ends with 0
    after an error too, so what counts is whether it wrote samples.
    """
    _check(folder, asked)
    versions = _versions(asked.python)
    with tempfile.TemporaryDirectory(prefix="selectune-lmms-eval-") as out:
        command = [str(part) for part in _command(folder, asked, Path(out))]
        started = time.perf_counter()
        code, last = _run(command, say, count)
        samples = sorted(Path(out).rglob("*_samples_*.jsonl"))
        if code or not samples:
            raise CheckFailed(
                f"it ended with {code} and wrote {len(samples)} files of samples; its last lines:\n" + "\n".join(last) + "\n",
                where="lmms-eval",
                then=f"Run it by hand: {' '.join(command)}",
            )
        log = read_harness(samples)
    about = {name: version for name, version in versions.items() if name != "lmms_eval"}
    about |= {"command": " ".join(command), "exit_code": str(code), "model_args": _model_args(folder, asked)}
    name = f"lmms-eval {versions['lmms_eval']}"
    return replace(log, evaluator=name, model=str(folder), seconds=time.perf_counter() - started, environment=about)


def _check(folder: Path, asked: Asked) -> None:
    if not asked.tasks or any(not re.fullmatch(r"[\w.*-]+", task) or task.startswith("-") for task in asked.tasks):
        raise InputError(f"the tasks {list(asked.tasks)}", where="lmms-eval", then="Give names as `lmms-eval --tasks list` prints them.")
    if "," in str(folder) or "=" in str(folder):
        raise InputError("has a comma or an equals sign, which lmms-eval's model_args cannot", where=str(folder), then="Rename the folder.")
    for text in asked.model_args:
        if not re.fullmatch(r"\w+=[^,]+", text) or text.startswith(("pretrained=", "trust_remote_code=")):
            raise InputError(f'"{text}" is no model argument', where="lmms-eval", then="Write NAME=VALUE, such as device=cpu.")


def _model_args(folder: Path, asked: Asked) -> str:
    return ",".join((f"pretrained={folder}", *asked.model_args))


def _command(folder: Path, asked: Asked, out: Path) -> Iterator[str | Path]:
    yield from (asked.python, "-m", "lmms_eval", "--model", asked.backend, "--model_args", _model_args(folder, asked))
    yield from ("--tasks", ",".join(asked.tasks), "--batch_size", str(asked.batch), "--log_samples", "--output_path", out)
    if asked.include is not None:
        yield from ("--include_path", asked.include)
    if asked.limit is not None:
        yield from ("--limit", str(asked.limit))


def _versions(python: Path) -> dict[str, str]:
    then = "Make an environment for it, `python -m venv V; V/bin/pip install lmms-eval==0.7.3`, and give --python V/bin/python."
    try:
        done = subprocess.run([python, "-c", _VERSIONS % (PACKAGES,)], capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingPackage(f"cannot be run ({error})", where=str(python), then=then) from error
    if done.returncode:
        raise MissingPackage(f"does not have lmms-eval ({done.stderr.strip()[-200:]})", where=str(python), then=then)
    return {str(name): str(version) for name, version in parse_json(done.stdout.encode()).items()}


def _run(command: list[str], say: Told, count: Counted) -> tuple[int, list[str]]:
    """The exit code and the last lines. The bars that lmms-eval draws over one another become counts."""
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    last: deque[str] = deque(maxlen=TOLD)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        try:
            for text in _pieces(process.stdout):
                if bar := _COUNT.search(text):
                    count(int(bar[1]), int(bar[2]))
                else:
                    last.append(text)
                    say(text)
        except BaseException:
            process.terminate()
            raise
    return process.returncode, list(last)


def _pieces(stream: IO[bytes]) -> Iterator[str]:
    """What lies between line ends of either kind, without control characters, as soon as it is there."""
    rest = b""
    while chunk := os.read(stream.fileno(), 1 << 16):
        *pieces, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from (text for piece in pieces if (text := _clean(piece)))
        rest = rest[-(1 << 16) :]
    if text := _clean(rest):
        yield text


def _clean(piece: bytes) -> str:
    return _CONTROL.sub("", piece.decode("utf-8", "replace")).strip()[:2000]
