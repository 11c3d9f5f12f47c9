"""Logs of Inspect (0.3): ``.eval``, which is a zip file, and ``.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from selectune.errors import DataError, InputError
from selectune.evaluation.bridges.archive import MAX_MEMBER, opened
from selectune.evaluation.bridges.log import Log, Row
from selectune.hashing import parse_json

MAX_LOG = 1 << 30
"""Most bytes of a log in JSON."""

# Inspect's own reading of its letters: correct, partial, incorrect, no answer.
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_AGAIN = "Evaluate again, or take the log from its source again."


def read_inspect(path: Path) -> Log:
    """Every sample of an Inspect log, scored and whole.

    A sample that was asked in several epochs is so many rows, ``ID#EPOCH``, in one cluster. Letters are read as Inspect's own metrics read
    them. Raises DataError for a file that is no such log, an evaluation that did not succeed, and a sample that failed or has no score.
    """
    if path.suffix == ".eval":
        with opened(path) as archive:
            head = _parsed(archive.read("header.json"), f"{path}: header.json")
            names = [name for name in archive.names if name.startswith("samples/") and name.endswith(".json")]
            samples = [(_parsed(archive.read(name), f"{path}: {name}"), f"{path}: {name}") for name in names]
    else:
        head = _parsed(_bytes(path), str(path), MAX_LOG)
        listed = head.get("samples")
        samples = [(one, f"{path}: sample {number}") for number, one in enumerate(listed if isinstance(listed, list) else [], 1)]
    return _log(head, samples, str(path))


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_LOG:
            raise DataError(f"has {path.stat().st_size} bytes, over the limit of {MAX_LOG}", where=str(path), then="Log in the form .eval.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), then="Correct the path.") from error


def _parsed(data: bytes, where: str, limit: int = MAX_MEMBER) -> dict[str, Any]:
    try:
        found = parse_json(data, limit=limit)
    except InputError as error:
        raise DataError(error.what, where=where, then=_AGAIN) from error
    if not isinstance(found, dict):
        raise DataError("no log of Inspect", where=where, then=_AGAIN)
    return found


def _log(head: Mapping[str, Any], samples: Sequence[tuple[Any, str]], where: str) -> Log:
    about = head.get("eval")
    if not isinstance(about, dict) or not isinstance(about.get("task"), str):
        raise DataError("no log of Inspect", where=where, then="Give a .eval or .json file that `inspect eval` wrote.")
    if head.get("status") != "success":
        what = f'the evaluation ended as "{str(head.get("status"))[:40]}": what is missing would count as if it had never been asked'
        raise DataError(what, where=where, then="Run `inspect eval-retry` on it first.")
    packages = about.get("packages")
    versions = {str(name): str(version) for name, version in packages.items()} if isinstance(packages, dict) else {}
    epochs = any(isinstance(one, dict) and one.get("epoch", 1) != 1 for one, _ in samples)
    task = about["task"].rpartition("/")[2]
    choice = all(isinstance(one, dict) and one.get("choices") for one, _ in samples)
    return Log(
        rows=tuple(_row(one, task, place, epochs=epochs) for one, place in samples),
        evaluator=f"inspect-ai {versions.pop('inspect_ai', '')}".strip(),
        model=str(about.get("model", "")),
        kinds={task: "choice" if choice else "generate"},
        seconds=_seconds(head.get("stats")),
        environment=versions,
    )


def _row(sample: Any, task: str, place: str, *, epochs: bool) -> Row:
    if not isinstance(sample, dict):
        raise DataError("the sample is no object", where=place, then=_AGAIN)
    name = sample.get("id")
    if isinstance(name, bool) or not isinstance(name, int | str) or name == "":
        raise DataError('the sample has no "id"', where=place, then=_AGAIN)
    if sample.get("error"):
        raise DataError(f'sample "{name}" failed in Inspect', where=place, then="Run `inspect eval-retry` on the log first.")
    prompt = "\n".join(_texts(sample.get("input")))
    if not prompt.strip():
        raise DataError(f'sample "{name}" has no prompt', where=place, then=_AGAIN)
    metadata, output, target = sample.get("metadata"), sample.get("output"), sample.get("target")
    cluster = metadata.get("cluster") if isinstance(metadata, dict) else None
    if not isinstance(output, dict) or not isinstance(output.get("completion"), str):
        raise DataError(f'sample "{name}" has no answer', where=place, then=_AGAIN)
    return Row(
        task=task,
        id=f"{name}#{sample.get('epoch', 1)}" if epochs else str(name),
        cluster=str(cluster) if cluster is not None else str(name),
        prompt=prompt,
        output=output["completion"],
        reference=" | ".join(str(one) for one in target) if isinstance(target, list) else str(target),
        metrics=dict(_scores(sample.get("scores"), str(name), place)),
        place=place,
        asked={"input": sample.get("input"), "choices": sample.get("choices")},
    )


def _scores(value: Any, name: str, place: str) -> Iterator[tuple[str, Any]]:
    """Every scorer's value by its name; a value of several by SCORER.KEY."""
    if not isinstance(value, dict) or not value:
        raise DataError(f'sample "{name}" has no score', where=place, then="Run `inspect score` on the log first.")
    for scorer, score in value.items():
        found = score.get("value") if isinstance(score, dict) else None
        parts = {f"{scorer}.{key}": one for key, one in found.items()} if isinstance(found, dict) else {scorer: found}
        for key, one in parts.items():
            yield key, _LETTERS.get(one, one) if isinstance(one, str) else one


def _texts(value: Any) -> Iterator[str]:
    """The words of an input: a text, or messages whose content is a text or parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        yield from _texts(value.get("content", value.get("text")))


def _seconds(stats: Any) -> float:
    """How long it took by the log's clock; 0 where it does not say."""
    try:
        started, ended = (datetime.fromisoformat(stats[name]) for name in ("started_at", "completed_at"))
        return max((ended - started).total_seconds(), 0.0)
    except (KeyError, TypeError, ValueError):
        return 0.0
