"""What was trained in a run: the model, the part of it that might move, every phase, and the updates that came of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from selectune.reporting.document import Document, Estimate, Real
from selectune.reporting.judged import Outcome
from selectune.reporting.measured import NumberStage, RecoveredTask


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
    revoked: bool = False
    notes: tuple[str, ...] = ()
    """What the registry's log says of it: who signed what, that it was revoked and why, that one person may do both."""


class Recovery(Document):
    """A short phase on other data after the last skill: what comes back was shift, what does not was lost."""

    phase: Phase
    patterns: tuple[str, ...]
    tasks: tuple[RecoveredTask, ...]
    numbers_before: NumberStage | None = None
    numbers_after: NumberStage | None = None
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """For example "held_out_recovered", the mean of after minus before."""
