"""Rows from files and folders: JSON, JSON lines, CSV, Parquet, what `datasets` saved, and folders of pictures.

Nothing here knows what a row means.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.errors import DataError, InputError
from selectune.hashing import parse_json
from selectune.records.picture import SUFFIXES

if TYPE_CHECKING:
    import pyarrow

MAX_JSON = 2 << 30
"""Most bytes of one JSON file; a longer one can be written as JSON lines, which are read line by line."""
MAX_LINE = 128 << 20
"""Most bytes of one line of JSON lines."""
DATA_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""A split's name, and what files and folders that hold it are called."""

_SHARD = re.compile(r"[-_.]\d+-of-\d+$")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows as mappings, the names of their columns, and the folder that relative paths in them start at."""

    rows: Sequence[Mapping[str, Any]]
    columns: tuple[str, ...]
    folder: Path
    place: str
    """The file or folder, for messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which part of a source to read. `column` is the column that names each row's split, where a table has it; None reads every row."""

    split: str | None = None
    column: str = "split"
    where: str = "data"
    alone: bool = False
    """Whether a single file that is called after no split at all stands for the wanted one."""

    def keeps(self, columns: Iterable[str]) -> bool:
        """Whether rows have to be filtered by the column."""
        return self.split is not None and self.column in columns


def read_table(path: Path, wanted: Wanted) -> Table:
    """The rows of a file, or of the part of a folder that `wanted` names. Raises DataError, with the place of the fault."""
    where = f"{wanted.where}: {path.name}"
    try:
        if path.is_dir():
            return _folder(path, wanted)
        if not path.is_file():
            raise DataError(f"there is no file or folder {path}", where=wanted.where, then="Correct `source`.")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", where=wanted.where, then="Correct `source`.") from error
    table = _file(path, wanted, where)
    stem = _SHARD.sub("", path.stem)
    if wanted.split is not None and wanted.column not in table.columns and not _stands_for(stem, wanted):
        then = f'Name a folder or a file that is called after its split, add a column "{wanted.column}", or leave `split` out.'
        raise DataError(f'there is no split "{wanted.split}" in it', where=where, then=then)
    return table


def _file(path: Path, wanted: Wanted, where: str) -> Table:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path, wanted, where)
    try:
        if suffix == ".json":
            rows = _json(path, where)
        elif suffix in (".jsonl", ".ndjson"):
            rows = _lines(path, where)
        elif suffix in (".csv", ".tsv"):
            rows = _csv(path, where, "\t" if suffix == ".tsv" else ",")
        else:
            raise DataError(
                f'"{path.suffix}" is no known kind of file', where=where, then=f"Give one of {', '.join(DATA_SUFFIXES)}, or a folder."
            )
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=where, then="Correct `source`.") from error
    return _table(rows, wanted, path.parent, where)


def _table(rows: Sequence[Mapping[str, Any]], wanted: Wanted, folder: Path, where: str) -> Table:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    if wanted.keeps(columns):
        rows = [row for row in rows if row.get(wanted.column) == wanted.split]
    return Table(rows=rows, columns=columns, folder=folder, place=where)


def _json(path: Path, where: str) -> list[dict[str, Any]]:
    size = path.stat().st_size
    if size > MAX_JSON:
        raise DataError(f"has {size} bytes, over the limit of {MAX_JSON}", where=where, then="Write it as JSON lines or Parquet.")
    data = path.read_bytes().removeprefix(_BOM)
    if data.lstrip()[:1] == b"{":
        return _lines(path, where)
    value = _parsed(data, MAX_JSON, where)
    if not isinstance(value, list):
        raise DataError(
            f"holds a {type(value).__name__}, not a list of records", where=where, then="Write [{…}, {…}], or one record a line."
        )
    return [_object(row, f"{where}: row {number}") for number, row in enumerate(value, 1)]


def _lines(path: Path, where: str) -> list[dict[str, Any]]:
    rows = []
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            at = f"{where}: line {number}"
            if len(line) > MAX_LINE:
                raise DataError(f"is over the limit of {MAX_LINE} bytes", where=at, then="Keep large pictures in files of their own.")
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                rows.append(_object(_parsed(line, MAX_LINE, at), at))
    return rows


def _parsed(data: bytes, limit: int, where: str) -> Any:
    try:
        return parse_json(data, limit=limit, halves=True)
    except InputError as error:
        raise DataError(error.what, where=where, then="Write strict JSON: finite numbers, each key once, UTF-8.") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"is a {type(value).__name__}, not a record", where=where, then='Write {"question": …, "answer": …} or another known form.'
        )
    return value


def _csv(path: Path, where: str, delimiter: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    then = "Quote cells that hold separators or line breaks, and save as UTF-8."
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError("has two columns of one name", where=where, then="Rename one of them.")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"has {len(cells)} cells under {len(header)} columns", where=f"{where}: line {reader.line_num}", then=then
                    )
                rows.append({name: cell if cell else None for name, cell in zip(header, cells, strict=True)})
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"is no CSV ({error})", where=where, then=then) from error
    return rows


def _parquet(path: Path, wanted: Wanted, where: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        # A file of its own, so that no folder around it is read as a part of its path.
        table = pyarrow.parquet.ParquetFile(path).read()
        return from_arrow(table, wanted, path.parent, where)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"is no Parquet file that can be read ({str(error)[:120]})", where=where, then="Write it again.") from error


def from_arrow(table: pyarrow.Table, wanted: Wanted, folder: Path, where: str) -> Table:
    """The rows of an Arrow table, with the names of classes in place of their numbers. Raises DataError for two columns of one name."""
    import pyarrow.compute

    columns = tuple(table.column_names)
    if len(set(columns)) != len(columns):
        raise DataError("has two columns of one name", where=where, then="Rename one of them.")
    if wanted.keeps(columns):
        table = table.filter(pyarrow.compute.equal(table[wanted.column], wanted.split))
    labels = _labels(table.schema)
    rows = table.to_pylist()
    for row in rows:
        for name, words in labels.items():
            row[name] = words[row[name]] if row[name] is not None and 0 <= row[name] < len(words) else None
    return Table(rows=rows, columns=columns, folder=folder, place=where)


def _labels(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Columns that `datasets` wrote as class numbers, with the classes' names."""
    notes = (schema.metadata or {}).get(b"huggingface")
    if notes is None:
        return {}
    features = (parse_json(notes).get("info") or {}).get("features") or {}
    return {
        name: kind["names"]
        for name, kind in features.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and kind.get("names")
    }


def _folder(folder: Path, wanted: Wanted) -> Table:
    where = f"{wanted.where}: {folder.name}/"
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, wanted, where)
    if any((folder / name).is_file() for name in _METADATA):
        return _described(folder, wanted, where)
    files = _grouped(path for place in (folder, folder / "data") if place.is_dir() for path in sorted(place.iterdir()))
    parts = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != "data"}
    named = None if wanted.split is None else _names(wanted.split)
    if named is not None:
        for name in named:
            if name in files:
                return _joined(files[name], wanted, folder, where)
            if name in parts:
                return _folder(parts[name], Wanted(split=None, where=wanted.where))
    if len(files) == 1:
        table = _joined(next(iter(files.values())), wanted, folder, where)
        if wanted.column in table.columns or wanted.split is None or _stands_for(next(iter(files)), wanted):
            return table
    if wanted.split is not None:
        raise DataError(f'there is no split "{wanted.split}"', where=where, then=f"It holds {_listed([*files, *parts])}.")
    if files or any(name in SPLITS for name in parts):
        raise DataError(f"holds {_listed([*files, *parts])}", where=where, then="Say which to read with `split`.")
    return _classes(folder, parts, where)


def _names(split: str) -> tuple[str, ...]:
    return (split, *(name for name in SPLITS.get(split, ()) if name != split))


def _stands_for(name: str, wanted: Wanted) -> bool:
    """Whether what is called so may be the wanted split."""
    if wanted.split is None or name in _names(wanted.split):
        return True
    return wanted.alone and not any(name in names for names in SPLITS.values())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown}, and {len(names) - 8} more" if len(names) > 8 else shown or "nothing that can be read"


def _grouped(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Data files by name, shards of one together; a name that ends in a split's name stands for that split."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        if path.is_file() and path.suffix.lower() in DATA_SUFFIXES and path.name not in _NO_DATA:
            groups.setdefault(_SHARD.sub("", path.stem), []).append(path)
    return groups


def _joined(paths: Sequence[Path], wanted: Wanted, folder: Path, where: str) -> Table:
    tables = [_file(path, wanted, f"{where}{path.name}") for path in paths]
    rows = [row for table in tables for row in table.rows]
    columns = tuple(dict.fromkeys(name for table in tables for name in table.columns))
    return Table(rows=rows, columns=columns, folder=folder, place=f"{where}{paths[0].name}" if len(paths) == 1 else where)


def _saved(folder: Path, wanted: Wanted, where: str) -> Table:
    """A folder that `save_to_disk` wrote."""
    if (folder / "dataset_dict.json").is_file():
        listed = parse_json((folder / "dataset_dict.json").read_bytes()).get("splits") or []
        if wanted.split is None and len(listed) != 1:
            raise DataError(f"holds {_listed(listed)}", where=where, then="Say which to read with `split`.")
        split = next((name for name in (_names(wanted.split) if wanted.split else listed) if name in listed), None)
        if split is None or not (folder / split / "state.json").is_file():
            raise DataError(f'there is no split "{wanted.split or listed[0]}"', where=where, then=f"It holds {_listed(listed)}.")
        return _saved(folder / split, Wanted(split=None, where=wanted.where), where)
    from datasets import load_from_disk

    try:
        table = load_from_disk(str(folder)).with_format("arrow")[:]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is no folder that datasets can load ({str(error)[:120]})", where=where, then="Write it again with save_to_disk."
        ) from error
    found = from_arrow(table, wanted, folder, where)
    if wanted.split is not None and wanted.column not in found.columns and not _stands_for(folder.name, wanted):
        raise DataError(
            f'there is no split "{wanted.split}" in it', where=where, then=f'Add a column "{wanted.column}", or leave `split` out.'
        )
    return found


def _described(folder: Path, wanted: Wanted, where: str) -> Table:
    """A folder of pictures with a metadata file, as `datasets`' imagefolder reads it: its column `file_name` becomes `image`."""
    path = next(folder / name for name in _METADATA if (folder / name).is_file())
    table = _file(path, wanted, f"{where}{path.name}")
    if "file_name" not in table.columns:
        raise DataError('has no column "file_name"', where=table.place, then="Add it: each picture's path from this folder.")
    rows = [{("image" if name == "file_name" else name): value for name, value in row.items()} for row in table.rows]
    columns = tuple("image" if name == "file_name" else name for name in table.columns)
    return Table(rows=rows, columns=columns, folder=folder, place=table.place)


def _classes(folder: Path, parts: Mapping[str, Path], where: str) -> Table:
    """A folder with one folder of pictures for each class."""
    rows: list[dict[str, Any]] = []
    for name, part in parts.items():
        pictures = sorted(path for path in part.iterdir() if path.suffix.lower() in SUFFIXES)
        rows += [{"id": f"{name}/{path.name}", "image": f"{name}/{path.name}", "label": name} for path in pictures]
    if not rows:
        then = f"Give a folder with {', '.join(DATA_SUFFIXES)}, one that datasets saved, or one folder of pictures for each class."
        raise DataError("holds no records", where=where, then=then)
    return Table(rows=rows, columns=("id", "image", "label"), folder=folder, place=where)


def listed(value: str, where: str) -> list[Any] | None:
    """The list that a CSV cell holds as JSON; None where it holds no JSON list."""
    if not value.lstrip().startswith("["):
        return None
    try:
        found = parse_json(value.encode())
    except InputError as error:
        raise DataError(f"holds a list that is no JSON: {json.dumps(value[:60])}", where=where, then='Write ["a", "b"].') from error
    return found if isinstance(found, list) else None
