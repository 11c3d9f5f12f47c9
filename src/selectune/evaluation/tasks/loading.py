"""A task's records, from the hub's data set by `datasets`, or from a file or folder of the same schema."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from selectune.errors import DataError
from selectune.evaluation.suite import Task
from selectune.evaluation.tasks.finding import find_task
from selectune.evaluation.tasks.rendering import Row, column, rendered
from selectune.evaluation.tasks.spec import Origin, TaskSpec
from selectune.recipe import Data
from selectune.records import Records, read_rows
from selectune.records.files import Table, Wanted, from_arrow, read_table

if TYPE_CHECKING:
    from typing import Literal

_BLANK = "blank"


def task_of(
    task: str | TaskSpec, data: Data | None = None, *, name: str | None = None, role: Literal["target", "held-out"] | None = None
) -> Task:
    """The task of that name, or in that YAML file, with its records. `data` gives another source, split or limit.

    Raises NoMatch for an unknown task, and what `read_task_records` and `Task` raise.
    """
    spec = find_task(task) if isinstance(task, str) else task
    records = read_task_records(spec, data or Data(task=spec.name), where=f"task {spec.name}")
    return Task(name=name or spec.name, records=records, role=role or spec.role, **spec.asked)


def read_task_records(spec: TaskSpec, data: Data, *, where: str = "data") -> Records:
    """The records of a task: every row asked as the task asks.

    Without `data.source` the hub's data set is loaded by `datasets`, which asks the hub unless it is told to stay offline
    (HF_HUB_OFFLINE=1) and runs no code of it. A source is a file, a folder of the hub's layout, or one that `save_to_disk` wrote; a split
    that `data` names has to be there, else a single file that is named after no split is taken for the task's own.

    Raises DataError, naming the row, for what `rendered` and `selectune.records.read_rows` refuse.
    """
    table = _local(spec.source, data, where) if data.source else _hub(spec.source, data.split, where)
    rows, dropped = [], 0
    for number, row in _wanted(spec, table):
        found = rendered(spec, row, _place(spec, row, f"{table.place}: row {number}"))
        if spec.kind == "perplexity" and not found["text"].strip():
            dropped += 1
            continue
        rows.append(found)
    if not rows:
        raise DataError("there are no records in it", where=table.place, then="Give a source or split that holds some.")
    plain = Data(
        source=spec.name,
        form="text" if spec.kind == "perplexity" else "question-answer",
        images=data.images or str(table.folder),
        limit=data.limit,
    )
    records = read_rows(rows, plain, where=where)
    if not dropped:
        return records
    return replace(records, dropped=MappingProxyType({**records.dropped, _BLANK: dropped}))


def _wanted(spec: TaskSpec, table: Table) -> Iterable[tuple[int, Row]]:
    """The rows that the task takes, with their numbers in the source."""
    for number, raw in enumerate(table.rows, 1):
        # A row of JSON lines lacks the keys that others have; one of a table has them all.
        row: Row = {name: raw.get(name) for name in table.columns}
        row = row if spec.row is None else spec.row(row)
        where = f"{table.place}: row {number}"
        if all(str(column(row, name, where)) == value for name, value in spec.where.items()):
            yield number, row


def _place(spec: TaskSpec, row: Row, where: str) -> str:
    value = row.get(spec.id) if spec.id is not None else None
    return where if value is None or not str(value).strip() else f'{where} (sample "{value}")'


def _local(origin: Origin, data: Data, where: str) -> Table:
    path = Path(data.source).expanduser()
    if origin.config is not None and (path / origin.config).is_dir():
        path = path / origin.config
    return read_table(path, Wanted(split=data.split or origin.split, where=where, alone=data.split is None))


def _hub(origin: Origin, split: str | None, where: str) -> Table:
    from datasets import Dataset, load_dataset

    then = f"Where there is a network: hf download --repo-type dataset {origin.hub} --local-dir FOLDER. Then give source: FOLDER."
    try:
        found: Any = load_dataset(origin.hub, origin.config, split=split or origin.split)
    except (OSError, ValueError) as error:
        what = f"the data set {origin.hub} cannot be loaded ({str(error)[:200]})"
        raise DataError(what, where=where, then=then) from error
    if not isinstance(found, Dataset):
        raise DataError(f"{origin.hub} gives no table of rows for the split {split or origin.split}", where=where, then=then)
    return from_arrow(found.with_format("arrow")[:], Wanted(where=where), Path(), f"{where}: {origin.hub}")
