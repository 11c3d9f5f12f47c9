"""What was measured in a run: tasks, the matrix of stages, changes between two stages, captions.

Scores are shares from 0 to 1, and differences of shares; a perplexity task's score is minus the mean log likelihood of a token, in nats.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from selectune.reporting.document import Document, Estimate, PictureUrl, Real

Role = Literal["target", "held-out"]


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


class LeakedSide(Document):
    """One of two records that share something."""

    id: str
    picture: PictureUrl = None
    text: str = ""
    """What it asks, or its text."""


class LeakedPair(Document):
    """A training and a test record that hold the same, or nearly."""

    learned: str
    """The training's name."""
    task: str
    how: str
    """What they share, in words."""
    likeness: Real
    """In 0 to 1: bits of the perceptual hash that agree, or shared shingles of the texts."""
    detail: str
    train: LeakedSide
    test: LeakedSide
    more: int = 0
    """Further pairs of records that share the same thing."""


class RecoveredTask(Document):
    """One task before the first skill, at the end of the last one, and after the recovery phase."""

    task: str
    base: Estimate
    before: Estimate
    after: Estimate
