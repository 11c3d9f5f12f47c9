"""What one run found, as one JSON document: `result.json` holds all of it, `summary()` is what `selectune run --json` prints.

Every model reads plain objects too (`from_attributes`), so that a `gates.Verdict` or a `statistics.Estimate` is passed as it is:
`Verdict.model_validate(verdict)`. A score that is not a number (nothing was measured) is `None`, as JSON has no NaN.

Scores are shares from 0 to 1, and differences of shares; a perplexity task's score is minus the mean log likelihood of a token, in nats.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from selectune.delta.files import replacing
from selectune.errors import DataError, StorageError

Outcome = Literal["passed", "failed", "undecided"]
Role = Literal["target", "held-out"]

_PICTURE = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _picture(value: str | None) -> str | None:
    if value is not None and not _PICTURE.fullmatch(value):
        raise ValueError(f"a picture must be a base64 data URL of a PNG, JPEG, WebP or GIF, not {value[:40]!r}")
    return value


Real = Annotated[float | None, BeforeValidator(_finite)]
"""A finite number, or None where nothing was measured."""

PictureUrl = Annotated[str | None, BeforeValidator(_picture)]
"""A data URL of a picture; nothing else can come into a report as one."""


class Document(BaseModel):
    """A frozen part of a result; unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Estimate(Document):
    """A measured number with its 95 % interval and the count that it rests on."""

    value: Real
    low: Real = None
    high: Real = None
    n: int
    method: str = ""
    """How the interval was made, in words, for example "paired t"."""
    label: str | None = None
    """What the value belongs to where that is itself a finding: the worst stage or the worst task."""


class TaskInfo(Document):
    """What a column of the matrix measures."""

    name: str
    role: Role
    kind: Literal["generate", "choice", "perplexity", "caption"] = "generate"
    scorer: str = ""
    synthetic: bool = False
    """True for rendered data: the report then says "synthetic" wherever the task is shown."""
    about: str = ""
    """One sentence: what is asked, and where the data is from."""
    margin: Real = None
    """The loss that the gate tolerates, as a share."""


class MatrixTable(Document):
    """Scores of each task (column) after each stage (row); row 0 is the base."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    scores: tuple[tuple[Real, ...], ...]
    n: tuple[tuple[int, ...], ...]
    low: tuple[tuple[Real, ...], ...]
    high: tuple[tuple[Real, ...], ...]

    @model_validator(mode="after")
    def _rectangular(self) -> MatrixTable:
        for name in ("scores", "n", "low", "high"):
            grid = getattr(self, name)
            if len(grid) != len(self.rows) or any(len(row) != len(self.columns) for row in grid):
                raise ValueError(f"{name} must have {len(self.rows)} rows of {len(self.columns)}")
        return self

    def cell(self, row: str, column: str) -> Estimate:
        """The score of task `column` after stage `row`; KeyError if there is none."""
        if row not in self.rows or column not in self.columns:
            raise KeyError((row, column))
        i, j = self.rows.index(row), self.columns.index(column)
        return Estimate(value=self.scores[i][j], low=self.low[i][j], high=self.high[i][j], n=self.n[i][j])


class NumberStage(Document):
    """The number probe after one stage: the probability of number tokens in captions."""

    stage: str
    mean: Real
    low: Real
    high: Real
    max_mean: Real = None
    """Mean over pictures of the largest step's probability."""
    n: int


class Probes(Document):
    """What the probes read after each stage."""

    numbers: tuple[NumberStage, ...] = ()
    correlation: Estimate | None = None
    """Between a stage's number probability and its mean held-out score; `n` counts the stages."""


class Rule(Document):
    """One rule of the gate, with the numbers that decided it."""

    name: str
    task: str
    against: str
    value: Real
    low: Real
    high: Real
    """The ends of `value`, each right at the gate's one-sided confidence."""
    bound: Real
    """What `low` must clear: minus the margin, or the least gain."""
    n: int
    lost: int | None = None
    """Samples whose score fell; None where it was not counted."""
    gained: int | None = None
    """Samples whose score rose; None where it was not counted."""
    verdict: Outcome
    evidence: str = ""
    """The same in one sentence."""
    method: str = ""
    needed: int | None = None
    """About how many samples would settle an undecided rule; None if it is settled, or no number would."""
    planned: int | None = None
    """How many samples the task has, where the gate might stop before the last; `n` of them were asked, in random order."""
    noise: Real = None
    """Mean distance of a sample's scores in two measurements of the base; None where that was not measured."""


class Verdict(Document):
    """What the gate said about one skill's update."""

    skill: str
    verdict: Outcome
    rules: tuple[Rule, ...]


class ModelInfo(Document):
    """The model that was taught."""

    name: str
    id: str
    elements: int
    about: str = ""


class Family(Document):
    """A row of the selection's table: a kind of component, and how much of it may move."""

    component: str
    count: int
    elements: int


class SelectionInfo(Document):
    """Which part of the model was allowed to move."""

    patterns: tuple[str, ...]
    elements: int
    total: int
    """Elements of the whole model."""
    digest: str = ""
    families: tuple[Family, ...] = ()


class StepPoint(Document):
    """One optimizer step."""

    n: int
    loss: Real
    lr: float
    grad_norm: Real
    tokens: int
    seconds: float


class QuickPoint(Document):
    """Scores of small samples in the middle of a phase: a forgetting curve, too small to judge by."""

    step: int
    scores: dict[str, Real]
    n: int


class Phase(Document):
    """One stretch of training on one source of records."""

    name: str
    """The stage that it ends in, as in the matrix's rows."""
    kind: Literal["skill", "recovery"] = "skill"
    source: str = ""
    synthetic: bool = False
    records: int
    optim: dict[str, Any]
    """The resolved values: lr, epochs, batch, …"""
    steps: tuple[StepPoint, ...]
    seconds: float
    quick: tuple[QuickPoint, ...] = ()
    skipped: dict[str, int] = Field(default_factory=dict)
    """Records left out while training, by reason, for example over-long ones."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Records left out while reading, by reason."""
    proof: str = ""
    """What the proof of selection checked, in one sentence."""
    keep: dict[str, str] = Field(default_factory=dict)
    """What held old skills, by its field in the recipe, each in a sentence."""


class StageCaption(Document):
    """What the model wrote about a picture after one stage."""

    stage: str
    text: str
    mean: Real = None
    """Mean probability of number tokens over the caption's steps."""


class CaptionedPicture(Document):
    """One held-out picture and its captions, stage by stage."""

    id: str
    picture: PictureUrl = None
    reference: str = ""
    synthetic: bool = False
    captions: tuple[StageCaption, ...]


class Difference(Document):
    """A task's change between two stages, paired by sample."""

    task: str
    stage: str
    against: str = "base"
    value: Real
    low: Real
    high: Real
    n: int


class SecondReading(Document):
    """A task's loss between two stages, taken apart (`selectune.evaluation.readings`): shares of items, paired by sample."""

    task: str
    stage: str
    against: str = "base"
    lost: Estimate
    """By what was written; negative where the score rose."""
    knowledge: Estimate
    """By the likeliest answer too."""
    form: Estimate
    """The rest: a shift of format or of the distribution of answers."""


class Tally(Document):
    """How many answers of a task changed between two stages, on the same samples."""

    task: str
    stage: str
    against: str = "base"
    gained: int
    lost: int
    n: int


class Change(Document):
    """A sample whose answer became right or wrong."""

    task: str
    id: str
    stage: str
    against: str = "base"
    way: Literal["gained", "lost"]
    picture: PictureUrl = None
    question: str
    reference: str
    before: str
    after: str


class UpdateInfo(Document):
    """An update in the registry."""

    id: str
    parent: str | None
    """The update before it, or None for the first on its base."""
    base: str = ""
    """Id of the model that the delta applies to."""
    child: str = ""
    """Id of the model that it makes."""
    skill: str
    verdict: Outcome | None = None
    names: tuple[str, ...] = ()
    elements: int = 0
    """Elements whose bits changed."""
    bytes: int = 0
    """Size of the delta's file."""
    created: str = ""


class RecoveredTask(Document):
    """One task before the first skill, at the end of the last one, and after the recovery phase."""

    task: str
    base: Estimate
    before: Estimate
    after: Estimate


class Recovery(Document):
    """A short phase on other data after the last skill: what comes back was shift, what does not was lost."""

    phase: Phase
    patterns: tuple[str, ...]
    tasks: tuple[RecoveredTask, ...]
    numbers_before: NumberStage | None = None
    numbers_after: NumberStage | None = None
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """For example "held_out_recovered", the mean of after minus before."""


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


def write_whole(path: Path, text: str) -> Path:
    """Write `text` beside `path`, then rename: a reader sees the old file or the new one, never a half.

    Lone surrogates, which UTF-8 cannot hold, are written as question marks. Raises StorageError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror})", where=str(path), then="Free space, or choose another folder."
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))
    return path
