"""Logs of lm-eval (0.4) and lmms-eval (0.7), as ``--log_samples --output_path`` writes them.

lm-eval: ``results_DATE.json`` and ``samples_TASK_DATE.jsonl``. lmms-eval: ``DATE_results.json`` and ``DATE_samples_TASK.jsonl``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selectune.errors import DataError, InputError
from selectune.evaluation.bridges.log import Log, Row
from selectune.evaluation.suite import Kind
from selectune.hashing import parse_json
from selectune.records.files import Wanted, read_table

MAX_RESULTS = 256 << 20
"""Most bytes of a file of results."""

_LM = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")
_LMMS = re.compile(r"(?P<date>\d{8}_\d{6})_samples_(?P<task>.+)\.jsonl")
_OF_A_ROW = (
    *("doc_id", "doc", "target", "arguments", "input", "input_media", "resps", "filtered_resps", "filter", "metrics", "token_counts"),
    *("doc_hash", "prompt_hash", "target_hash", "agentic_trace", "agentic_rounds"),
)
_KINDS: Mapping[str, Kind] = {"multiple_choice": "choice", "loglikelihood_rolling": "perplexity"}


def is_samples(path: Path) -> bool:
    """Whether a file is named as one of the two names its samples."""
    return bool(_LM.fullmatch(path.name) or _LMMS.fullmatch(path.name))


def read_harness(paths: Sequence[Path]) -> Log:
    """The samples in these files, which are of one evaluation, with what the results beside them say.

    Raises DataError for a file that is no whole JSON lines, a sample without an id or a prompt, and files of two evaluations.
    """
    logs = [_read(path) for path in paths]
    first = logs[0]
    for path, log in zip(paths, logs, strict=True):
        if (log.evaluator, log.model) != (first.evaluator, first.model):
            what = f"it is of {log.model} by {log.evaluator}, and {paths[0].name} of {first.model} by {first.evaluator}"
            raise DataError(what, where=str(path), then="Give the files of one evaluation.")
    kinds = {task: kind for log in logs for task, kind in log.kinds.items()}
    return replace(first, rows=tuple(row for log in logs for row in log.rows), kinds=kinds)


def _read(path: Path) -> Log:
    lm, lmms = _LM.fullmatch(path.name), _LMMS.fullmatch(path.name)
    name = lm or lmms
    if name is None:
        then = "Leave the names as the evaluator wrote them: samples_TASK_DATE.jsonl or DATE_samples_TASK.jsonl."
        raise InputError("is not named as lm-eval or lmms-eval names its samples", where=str(path), then=then)
    task = name["task"]
    results = path.with_name(f"results_{name['date']}.json" if lm else f"{name['date']}_results.json")
    told = _results(results)
    rows = read_table(path, Wanted(where="samples")).rows
    read = list(_lm_rows(task, rows, str(path)) if lm else _lmms_rows(task, rows, str(path)))
    config = told.get("configs", {}).get(task, {})
    version = str(told.get("lm_eval_version") or "").strip()
    return Log(
        rows=tuple(read),
        evaluator=f"lm-eval {version}".strip() if lm else "lmms-eval",
        model=str(told.get("model_name") or path.parent.name),
        kinds={task: _KINDS.get(str(config.get("output_type")), "generate")},
        seconds=_seconds(told.get("total_evaluation_time_seconds")),
        environment={"transformers": str(told["transformers_version"])} if told.get("transformers_version") else {},
    )


def _results(path: Path) -> dict[str, Any]:
    """The file of results beside the samples; nothing where only the samples were kept."""
    if not path.is_file():
        return {}
    try:
        found = parse_json(path.read_bytes(), limit=MAX_RESULTS)
    except InputError as error:
        raise DataError(error.what, where=str(path), then="Evaluate again, or take the damaged file away.") from error
    if not isinstance(found, dict) or not isinstance(found.get("configs", {}), dict):
        raise DataError("no results of an evaluation", where=str(path), then="Evaluate again, or take the file away.")
    return found


def _seconds(value: Any) -> float:
    try:
        return float(value or 0.0)
    except (TypeError, ValueError):
        return 0.0


def _lm_rows(task: str, rows: Sequence[Mapping[str, Any]], path: str) -> Iterator[Row]:
    """lm-eval writes a line for each filter of each document; here the filters of one are one row, their metrics named METRIC,FILTER."""
    found: dict[str, Row] = {}
    for number, row in enumerate(rows, 1):
        place = f"{path}: line {number}"
        name = _id(row, place)
        prompt, output = _said(row, place)
        suffix = f",{row['filter']}" if isinstance(row.get("filter"), str) else ""
        metrics = {f"{metric}{suffix}": row.get(metric) for metric in _listed(row.get("metrics"), place)}
        before = found.get(name)
        if before is not None and before.metrics.keys() & metrics.keys():
            what = f'sample "{name}" of task {task} is there twice, first in {before.place}'
            raise DataError(what, where=place, then="Give the log as lm-eval wrote it.")
        if before is not None and before.prompt != prompt:
            raise DataError(f'sample "{name}" of task {task} has two prompts', where=place, then="Give the log as lm-eval wrote it.")
        if before is not None:
            found[name] = replace(before, metrics={**before.metrics, **metrics})
            continue
        doc = row.get("doc")
        cluster = doc.get("cluster") if isinstance(doc, dict) else None
        found[name] = Row(
            task=task,
            id=name,
            cluster=str(cluster) if cluster is not None else name,
            prompt=prompt,
            output=output,
            reference=str(row.get("target", "")),
            metrics=metrics,
            place=place,
            asked={"document": str(row.get("doc_hash", ""))},
        )
    return iter(found.values())


def _listed(value: Any, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError('it has no list of "metrics"', where=place, then="Use lm-eval 0.4.8 or later, with --log_samples.")
    return value


def _id(row: Mapping[str, Any], place: str) -> str:
    name = row.get("doc_id")
    if isinstance(name, bool) or not isinstance(name, int | str) or name == "":
        raise DataError('the sample has no "doc_id"', where=place, then="Give the log as the evaluator wrote it.")
    return str(name)


def _said(row: Mapping[str, Any], place: str) -> tuple[str, str]:
    """The prompt, and what the model wrote or the option that it found likeliest."""
    arguments = row.get("arguments")
    calls = list(arguments.values()) if isinstance(arguments, dict) else []
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("arg_0"), str) for call in calls):
        raise DataError(f'sample "{_id(row, place)}" has no prompt', where=place, then="Give the log as lm-eval wrote it.")
    responses = row.get("resps")
    if not isinstance(responses, list) or len(responses) != len(calls) or not all(isinstance(one, list) and one for one in responses):
        raise DataError(f'sample "{_id(row, place)}" has no answer', where=place, then="Give the log as lm-eval wrote it.")
    if len(calls) == 1:
        return calls[0]["arg_0"], _text(responses[0][0])
    likely = [_likelihood(one[0], row, place) for one in responses]
    return calls[0]["arg_0"], str(calls[likely.index(max(likely))].get("arg_1", "")).strip()


def _likelihood(value: Any, row: Mapping[str, Any], place: str) -> float:
    """An option's log-likelihood, alone or with whether it was the greedy one, as numbers or as texts. None must pass for the likeliest."""
    told = value[0] if isinstance(value, list) and value else value
    try:
        return float(told)
    except (TypeError, ValueError) as error:
        what = f'sample "{_id(row, place)}" has {str(told)[:40]!r} for a log-likelihood'
        raise DataError(what, where=place, then="Give the log as lm-eval wrote it.") from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value[0]) if isinstance(value, list) and value else str(value)


def _lmms_rows(task: str, rows: Sequence[Mapping[str, Any]], path: str) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        place = f"{path}: line {number}"
        name = _id(row, place)
        prompt, answer = row.get("input"), row.get("resps", row.get("filtered_resps"))
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f'sample "{name}" has no prompt', where=place, then="Give the log as lmms-eval wrote it.")
        if answer is None or answer == []:
            raise DataError(f'sample "{name}" has no answer', where=place, then="Give the log as lmms-eval wrote it.")
        media = row.get("input_media")
        pictures = [str(one) for one in media] if isinstance(media, list) else []
        yield Row(
            task=task,
            id=name,
            cluster=pictures[0] if pictures else name,
            prompt=prompt,
            output=_text(answer),
            reference=str(row.get("target", "")),
            metrics={metric: value for metric, value in row.items() if metric not in _OF_A_ROW},
            place=place,
        )
