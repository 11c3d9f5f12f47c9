"""What was measured: one sample for every record, with the model and the suite that it belongs to.

A measurement is one Parquet file: a row for each sample, and the rest in the file's metadata. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from selectune.delta.files import replacing
from selectune.errors import DataError, InputError, NoMatch, SameModel
from selectune.hashing import parse_json

VERSION = 1
_MOST_ROWS = 10_000_000
_MOST_BYTES = 1 << 30
_KEY = b"selectune.measurement"
_COLUMNS = ("task", "id", "cluster", "prompt_digest", "output", "reference", "score", "extra")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One record of one task, asked and scored."""

    task: str
    id: str
    """The record's id: what two measurements are paired by."""
    cluster: str
    """Samples that are not independent share one: ``meta["cluster"]``, else the picture, else the record itself."""
    prompt_digest: str
    """Of the token ids and pictures that went into the model, 64 hex digits."""
    output: str
    """What the model wrote, or the choice that it found likeliest; empty for a perplexity."""
    reference: str
    score: float
    """In [0, 1]; for a perplexity the mean log-likelihood of a token in nats, at most 0. Higher is better for every kind."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON: ``tokens`` (generated or scored), ``choice`` (the second reading), ``logprobs`` of each choice."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Every sample of a suite on one model. Raises DataError for two samples of one task with one id, and for a score that is no finite
    number."""

    stage: str
    """When it was taken, in the user's words: ``base``, a skill's name."""
    model_id: str
    suite: str
    """The suite's digest."""
    samples: tuple[Sample, ...]
    seconds: float
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Task name to kind, in the suite's order."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What else the outputs may depend on: versions, device, dtype, batch."""
    planned: Mapping[str, int] = field(default_factory=dict)
    """Where a gate stopped early: task to how many records it has. Its samples are those asked, in the order in which they were."""

    def __post_init__(self) -> None:
        for sample in self.samples:
            if not math.isfinite(sample.score):
                where = f'measurement "{self.stage}": task {sample.task}: sample "{sample.id}"'
                raise DataError(f"its score is {sample.score}", where=where, then="Check the model's weights and the scorer.")
        if sum(len(samples) for samples in self._by_task.values()) != len(self.samples):
            counts = Counter((sample.task, sample.id) for sample in self.samples)
            (task, name), times = counts.most_common(1)[0]
            where = f'measurement "{self.stage}": task {task}: sample "{name}"'
            raise DataError(f"it is there {times} times", where=where, then="Give every record an id of its own.")

    @cached_property
    def _by_task(self) -> Mapping[str, Mapping[str, Sample]]:
        found: dict[str, dict[str, Sample]] = {name: {} for name in self.kinds}
        for sample in self.samples:
            found.setdefault(sample.task, {})[sample.id] = sample
        return found

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in the suite's order."""
        return tuple(self._by_task)

    @property
    def cached(self) -> tuple[str, ...]:
        """The tasks whose samples were read and not measured (`selectune.evaluation.kept`)."""
        return tuple(self.environment.get("cached", "").split(", ")) if self.environment.get("cached") else ()

    def of(self, task: str) -> Mapping[str, Sample]:
        """The samples of one task by record id, in the records' order. Raises NoMatch for a task that was not measured."""
        if task not in self._by_task:
            then = f"It has: {', '.join(self.tasks)}."
            raise NoMatch(f'"{task}" was not measured', where=f'measurement "{self.stage}"', then=then)
        return self._by_task[task]

    def scores(self, task: str) -> dict[str, float]:
        """Record id to score."""
        return {name: sample.score for name, sample in self.of(task).items()}

    def clusters(self, task: str) -> dict[str, str]:
        """Record id to cluster."""
        return {name: sample.cluster for name, sample in self.of(task).items()}

    def n(self, task: str) -> int:
        """How many samples a task has."""
        return len(self.of(task))

    def score(self, task: str) -> float:
        """The mean of a task's sample scores: a share, or for a perplexity the records' mean log-likelihood of a token in nats."""
        scores = self.scores(task)
        return math.fsum(scores.values()) / len(scores)

    def headline(self, task: str) -> float:
        """The figure that people quote: the perplexity over all tokens of all records, ``exp(-sum of log-likelihoods / tokens)``; else
        `score`."""
        if self.kinds.get(task) != "perplexity":
            return self.score(task)
        samples = self.of(task).values()
        tokens = sum(int(sample.extra["tokens"]) for sample in samples)
        return math.exp(-math.fsum(sample.score * int(sample.extra["tokens"]) for sample in samples) / tokens)

    def check_differs(self, base: Measurement) -> None:
        """Raises SameModel where this should be of an updated model and `base` has the very same weights."""
        check_differs(self.model_id, base, stage=self.stage)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the Parquet file whole or not at all; raises StorageError where it cannot be written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [
            asdict(sample) | {"extra": json.dumps(dict(sample.extra), ensure_ascii=False, sort_keys=True, allow_nan=False)}
            for sample in self.samples
        ]
        schema = pa.schema([(name, _type(pa, name)) for name in _COLUMNS])
        about = {name: getattr(self, name) for name in ("stage", "model_id", "suite", "seconds")}
        about |= {"version": VERSION, "kinds": list(self.kinds.items())}
        about |= {"environment": dict(self.environment), "planned": dict(self.planned)}
        table = pa.Table.from_pylist(rows, schema=schema.with_metadata({_KEY: json.dumps(about).encode()}))
        with replacing(Path(path)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurement:
        """Reads what `save` wrote. Raises DataError for a file that is missing, cut off, or no measurement."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        then = "Take the measurement again."
        try:
            # As dictionaries: a long text that a page repeats a million times is in memory once, until its size is known.
            with pq.ParquetFile(path, read_dictionary=[name for name in _COLUMNS if name != "score"]) as file:
                about = file.metadata
                _check_size(about.num_rows, sum(about.row_group(at).total_byte_size for at in range(about.num_row_groups)), str(path))
                table = file.read()
        except FileNotFoundError as error:
            raise DataError("there is no such file", where=str(path), then=then) from error
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a whole Parquet file ({error})", where=str(path), then=then) from error
        raw = (table.schema.metadata or {}).get(_KEY)
        types = [one.value_type if pa.types.is_dictionary(one) else one for one in table.schema.types]
        if raw is None or table.schema.names != list(_COLUMNS) or types != [_type(pa, name) for name in _COLUMNS]:
            raise DataError("a Parquet file, but no measurement", where=str(path), then=then)
        _check_size(table.num_rows, sum(_text_bytes(chunk) for name in _COLUMNS for chunk in table[name].chunks), str(path))
        about = _parsed(raw, "what it says of itself", str(path))
        if about.pop("version", None) != VERSION:
            raise DataError("written by another version of selectune", where=str(path), then=then)
        for name in _COLUMNS:
            if table[name].null_count:
                number = table[name].is_null().to_pylist().index(True)
                known = table["id"][number].as_py()
                told = f'sample "{known}"' if known is not None else f"sample {number + 1}"
                raise DataError(f"{told} has no {name.replace('_', ' ')}", where=str(path), then=then)
        rows = [
            row | {"extra": _parsed(row["extra"].encode(), f"what is beside sample {at}", str(path))}
            for at, row in enumerate(table.to_pylist(), start=1)
        ]
        samples = tuple(Sample(**row) for row in rows)
        try:
            kinds = dict(about.pop("kinds"))
            texts = [about["stage"], about["model_id"], about["suite"], *kinds, *kinds.values(), *about["environment"].values()]
            if not all(isinstance(one, str) for one in texts) or not all(isinstance(one, int) for one in about["planned"].values()):
                raise TypeError("a word or a number is none")
            return cls(samples=samples, kinds=kinds, **(about | {"seconds": float(about["seconds"])}))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"what it says of itself has other fields ({error})", where=str(path), then=then) from error


def _type(pa: Any, column: str) -> Any:
    return pa.float64() if column == "score" else pa.string()


def _check_size(rows: int, size: int, where: str) -> None:
    """Refuses what would take more memory than any measurement does."""
    if rows > _MOST_ROWS or size > _MOST_BYTES:
        what = f"it would unpack to {rows:,} rows and {size:,} bytes; at most {_MOST_ROWS:,} and {_MOST_BYTES:,} are read"
        raise DataError(what, where=where, then="Take the measurement again, in several suites.")


def _text_bytes(column: Any) -> int:
    """How many bytes a column's texts have when each is written out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return int(pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices).cast(pa.int64())).as_py() or 0)


def _parsed(text: bytes, what: str, where: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
        if not isinstance(found, dict):
            raise InputError("no JSON object")
    except InputError as error:
        raise DataError(f"{what} is no JSON ({error.what})", where=where, then="Take the measurement again.") from error
    return found


def check_differs(model_id: str, base: Measurement, *, stage: str) -> None:
    """Raises SameModel where a model that should have been updated is the one that `base` was measured on."""
    if model_id == base.model_id:
        where = f'stage "{stage}"' if stage else "evaluate"
        what = f'the model has the same weights as "{base.stage}" ({model_id[:12]}): nothing was updated'
        raise SameModel(what, where=where, then="Apply the delta first, or leave `base` out to measure a base again.")
