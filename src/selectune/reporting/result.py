"""What one run found, as one JSON document: `result.json` holds all of it, `summary()` is what `selectune run --json` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from selectune.errors import DataError
from selectune.reporting.document import Document, Estimate, write_whole
from selectune.reporting.judged import Verdict
from selectune.reporting.measured import (
    CaptionedPicture,
    Change,
    Difference,
    LeakedPair,
    MatrixTable,
    Probes,
    SecondReading,
    Tally,
    TaskInfo,
)
from selectune.reporting.trained import ModelInfo, Phase, Recovery, SelectionInfo, UpdateInfo


class RunResult(Document):
    """All that one recipe's run found."""

    format: Literal["selectune-result-1"] = "selectune-result-1"
    run: str
    created: str = ""
    """UTC, ISO 8601."""
    name: str
    """The recipe's name."""
    recipe: dict[str, Any]
    """The recipe as it was resolved."""
    model: ModelInfo
    selection: SelectionInfo
    skills: tuple[str, ...]
    tasks: tuple[TaskInfo, ...]
    matrix: MatrixTable
    metrics: dict[str, Estimate]
    probes: Probes = Probes()
    updates: tuple[UpdateInfo, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    phases: tuple[Phase, ...] = ()
    captions: tuple[CaptionedPicture, ...] = ()
    differences: tuple[Difference, ...] = ()
    tallies: tuple[Tally, ...] = ()
    readings: tuple[SecondReading, ...] = ()
    """Of tasks whose samples were read twice."""
    changes: tuple[Change, ...] = ()
    leaks: tuple[LeakedPair, ...] = ()
    """Test records that the training holds too, where the recipe allows that: the first ones of each pair of sources."""
    recovery: Recovery | None = None
    noise: dict[str, Estimate] = Field(default_factory=dict)
    """By task: mean distance of a sample's scores in two measurements of the base, where the gate asked for it."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds by phase of the run: load, measure, train, …"""
    environment: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Limits of this run that its reader must know."""
    report: str | None = None
    """Where the report lies."""

    @model_validator(mode="after")
    def _columns_are_described(self) -> RunResult:
        unknown = set(self.matrix.columns) - {task.name for task in self.tasks}
        if unknown:
            raise ValueError(f"matrix columns without a task: {', '.join(sorted(unknown))}")
        return self

    def task(self, name: str) -> TaskInfo:
        """The description of a task; KeyError if there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)

    def summary(self) -> dict[str, Any]:
        """The JSON document of `selectune run --json`."""
        return {
            "run": self.run,
            "skills": list(self.skills),
            "matrix": self.matrix.model_dump(mode="json"),
            "metrics": {name: estimate.model_dump(mode="json") for name, estimate in self.metrics.items()},
            "probes": self.probes.model_dump(mode="json"),
            "updates": [update.id for update in self.updates],
            "verdicts": [verdict.model_dump(mode="json") for verdict in self.verdicts],
            "report": self.report,
        }


def summary(results: tuple[RunResult, ...] | list[RunResult]) -> dict[str, Any]:
    """One run's document; for several recipes in one run, `{"recipes": [one each]}`."""
    if len(results) == 1:
        return results[0].summary()
    return {"recipes": [{"recipe": result.name, **result.summary()} for result in results]}


def save_result(result: RunResult, path: Path) -> Path:
    """Write `result` as JSON, whole or not at all; StorageError if the folder cannot be written."""
    return write_whole(path, result.model_dump_json(indent=1) + "\n")


def load_result(path: Path) -> RunResult:
    """Read what `save_result` wrote; DataError names every fault of a damaged file."""
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), then="Give the result.json of a finished run.") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'document'}: {fault['msg']}" for fault in error.errors()[:8])
        raise DataError(
            f"is not a result of this version: {faults}", where=str(path), then="Give the result.json of a finished run."
        ) from error
