"""Records from a recipe's `Data`: files, folders, and what installed packages offer under the entry-point group `selectune.data`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from selectune.errors import DataError
from selectune.hashing import digest
from selectune.recipe import Data
from selectune.records.files import Table, Wanted, listed, read_table
from selectune.records.forms import Form, Row, detect, text_of
from selectune.records.record import Message, Record, Records, content

ENTRY_POINTS = "selectune.data"
"""Each is a callable (skill, split) that returns the path of a Parquet file or folder, or `Records`; it is asked for as NAME:SKILL."""
EVERY_SPLIT = "*"
"""Given as `split`: every row, whatever its split."""

_OFFERED = re.compile(r"([A-Za-z][A-Za-z0-9_-]+):(?!//)(.+)", re.DOTALL)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SPENT = ("id", "messages", "images", "question", "answer", "text", "split")
_LARGEST = 2**53 - 1


class _UnreadError(Exception):
    """A value that no record keeps."""


def read_records(data: Data, *, where: str = "data") -> Records:
    """Every record that `data` names, in the source's order.

    The form is detected, with the reason in `Records.reason`; `data.form` and `data.columns` override it. `data.limit` draws so many
    records by their ids (`Records.take`). Every picture's header is checked; pixels are decoded when they are needed, or all at once
    by `Records.check_pictures`.

    Raises DataError, with `where`, the source, the record's id and what to do, for a source or split that is not there or is empty, a row
    of another form, a picture that is missing, outside its folder, at a web address or of no known format, and an id that comes twice.
    """
    if data.task is not None:
        then = "Read it with selectune.evaluation.tasks.read_task_records."
        raise DataError(f"the task {data.task} says how its rows are read", where=where, then=then)
    offered = _OFFERED.fullmatch(data.source)
    if _ADDRESS.match(data.source):
        raise DataError(
            f'"{data.source}" is a web address, and nothing is ever fetched', where=where, then="Download it and give the file or folder."
        )
    path = Path(data.source).expanduser()
    if offered and not path.exists():
        found = _offered(offered.group(1), offered.group(2), data, where)
        if isinstance(found, Records):
            return _limited(found, data)
        path = found
    split = None if data.split == EVERY_SPLIT else data.split
    column = data.columns.get("split", "split")
    table = read_table(path, Wanted(split=split, column=column, where=where))
    return _records(table, data, column)


def read_rows(rows: Iterable[Mapping[str, Any]], data: Data, *, where: str = "data") -> Records:
    """The same from rows in memory; `data.source` only names them.

    A picture is bytes, a path, a `data:` URL, `{bytes, path}` or a Pillow image.
    """
    rows = tuple(rows)
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    column = data.columns.get("split", "split")
    if data.split not in (None, EVERY_SPLIT):
        rows = tuple(row for row in rows if row.get(column) == data.split)
    table = Table(rows=rows, columns=columns, folder=Path(data.images or "."), place=f"{where}: {data.source}")
    return _records(table, data, column)


def _offered(name: str, skill: str, data: Data, where: str) -> Path | Records:
    entries = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in entries:
        near = get_close_matches(name, entries)
        then = (
            f"Did you mean {near[0]}:{skill}?"
            if near
            else f"Give a file or a folder, or one of: {', '.join(sorted(entries)) or 'no package offers any'}."
        )
        raise DataError(f'there is no file "{data.source}" and no package offers "{name}" data', where=where, then=then)
    found = entries[name].load()(skill, data.split)
    if isinstance(found, Records):
        return found
    return Path(found)


def _records(table: Table, data: Data, split_column: str) -> Records:
    if not table.rows:
        split = f' in split "{data.split}"' if data.split else ""
        raise DataError(f"there are no records{split}", where=table.place, then="Give a source or split that holds some.")
    _one_split(table, data, split_column)
    form = detect(table, data.columns, data.form, data.prompt)
    root = Path(data.images).expanduser() if data.images else table.folder
    unread: set[str] = set()
    items, repeated = [], 0
    seen: Counter[str] = Counter()
    for number, values in enumerate(table.rows, 1):
        record = _record(values, form, table, (root, number), unread)
        if not record.id:
            name = _content_id(record)
            seen[name] += 1
            repeated += seen[name] > 1
            record = replace(record, id=name if seen[name] == 1 else f"{name}-{seen[name]}")
        items.append(record)
    records = Records(
        items=tuple(items),
        name=data.source,
        form=form.name,
        reason=form.reason,
        repeated=repeated,
        unread=tuple(sorted(unread, key=table.columns.index)),
    )
    return _limited(records, data)


def _one_split(table: Table, data: Data, column: str) -> None:
    """Raises DataError where rows of several splits would be mixed without anybody having asked for it."""
    if data.split is not None or column not in table.columns:
        return
    splits = sorted({str(row.get(column)) for row in table.rows})
    if len(splits) > 1:
        then = f"Say which with split: {splits[0]}, or all of them with split: '{EVERY_SPLIT}'."
        raise DataError(f"it holds the splits {', '.join(splits)}", where=table.place, then=then)


def _limited(records: Records, data: Data) -> Records:
    if data.limit is None or data.limit >= len(records):
        return records
    over = len(records) - data.limit
    return replace(records.take(data.limit), dropped=MappingProxyType({**records.dropped, f"over the limit of {data.limit}": over}))


def _record(values: Mapping[str, Any], form: Form, table: Table, at: tuple[Path, int], unread: set[str]) -> Record:
    """One row as a record; its id is empty where the row has none."""
    root, number = at
    given = values.get(form.columns["id"]) if "id" in form.columns else None
    if isinstance(given, float):
        then = "Write ids as text; JSON holds no integer beyond 2**53 - 1."
        raise DataError(f"the id {given} is no whole number that JSON can hold", where=f"{table.place}: row {number}", then=then)
    name = "" if given is None else text_of(given, f"{table.place}: row {number}: id").strip()
    where = f'{table.place}: record "{name}"' if name else f"{table.place}: row {number}"
    row = Row(values={part: values.get(column) for part, column in form.columns.items()}, root=root, where=where)
    messages = row.messages(form)
    if not any(_shows(message) for message in messages):
        raise DataError("there is neither text nor a picture in it", where=where, then="Give it words, or take it out.")
    return Record(id=name, messages=messages, meta=MappingProxyType(_meta(values, form, where, unread)))


def _shows(message: Message) -> bool:
    return bool(message.text.strip() or message.pictures)


def _content_id(record: Record) -> str:
    return digest("record id", {"messages": content(record.messages), "meta": dict(record.meta)})[:16]


def _meta(values: Mapping[str, Any], form: Form, where: str, unread: set[str]) -> dict[str, Any]:
    # Ids that the user set aside (columns: {id: "-"}) are no part of what the record holds either.
    spent = {form.columns.get(part, "id" if part == "id" else "") for part in _SPENT}
    names = {column: part for part, column in form.columns.items()}
    found: dict[str, Any] = {}
    for column, value in values.items():
        if column in spent or value is None or value == "":
            continue
        part = names.get(column, column)
        if part in ("choices", "answers"):
            found[part] = _several(value, f"{where}: {column}")
            continue
        try:
            found[part] = _kept(value, f"{where}: {column}")
        except _UnreadError:
            unread.add(column)
    return found


def _several(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = listed(value, where) or [value]
    if not isinstance(value, Sequence):
        raise DataError(f"there is a {type(value).__name__} where a list of texts belongs", where=where, then='Write ["a", "b"].')
    return tuple(text_of(item, where) for item in value)


def _kept(value: Any, where: str) -> Any:
    """A value as meta holds it: text, numbers, true and false, and tuples of these. Integers that JSON cannot hold become text."""
    if isinstance(value, str):
        return text_of(value, where)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST else str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"there is {value}, which is no number", where=where, then="Leave the cell empty.")
        return value
    if isinstance(value, list | tuple):
        return tuple(_kept(item, where) for item in value if item is not None)
    raise _UnreadError
