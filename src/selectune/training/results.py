"""What training is told beside its mathematics, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from selectune.recipe import Watch

if TYPE_CHECKING:
    from selectune.components.proof import Forecast, Moved
    from selectune.delta import Delta
    from selectune.training.adapter import Files
    from selectune.training.features import FeatureCache
    from selectune.training.watching import Alarm


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step, after it was made."""

    n: int
    """Number of the step, from 1."""
    total: int
    """Steps that the whole training has."""
    loss: float
    """Mean cross-entropy (nats) over the labelled tokens of the batch, before the step."""
    lr: float
    """Learning rate of this step."""
    tokens: int
    """Labelled tokens in the batch."""
    grad_norm: float
    """Global norm of the gradient of the mean loss and of what `keep` adds to it, before clipping."""
    seconds: float
    """Wall time of the step."""
    waited: float = 0.0
    """Seconds of them in which pictures were read, decoded and resized."""
    still: tuple[str, ...] = ()
    """Selected components that no gradient has reached up to now, the first eight of them."""
    fault: str = ""
    """Why the step was left out; empty for one that was made."""
    kept: Mapping[str, float] = field(default_factory=dict)
    """What each term of `keep` added to the loss, by its name there; `loss` is without them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One training among its like: its seed, and how it lives on its machine. Nothing but the seed changes the result."""

    seed: int = 0
    """Of the order in which records are drawn, and of an adapter's matrices."""
    checkpoint_dir: Path | None = None
    """Where checkpoints are written: every `optim.save_every` steps, every `optim.save_minutes`, and on SIGINT or SIGTERM. None: never."""
    resume: Path | None = None
    """A checkpoint file, or a folder whose newest one is taken, to go on from. None: from the start."""
    features: FeatureCache | None = None
    """Vision features shared with evaluation and other stages. None: a cache of its own."""
    on_step: Callable[[Step], None] | None = None
    """Called by `train` after each step; `fit` yields the steps instead."""
    watch: Watch = field(default_factory=Watch)
    """What stops the training, and what is only said."""
    on_alarm: Callable[[Alarm], None] | None = None
    """Called for what a rule of `watch` found, after `on_step`; what was found before an interruption is not said again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What `train` gives back."""

    delta: Delta
    """The selection's new values."""
    steps: tuple[Step, ...]
    """Every step of this session; a resumed session has those after its checkpoint."""
    proof: str
    """What was checked and found, in a sentence."""
    forecast: tuple[Forecast, ...]
    """Before step 1: what will move by family, against the count that the config leads one to expect."""
    moved: Moved
    """After the last step: what moved. That nothing else did was checked, or there would be no result."""
    seconds: float
    """Wall time, the preparation included."""
    skipped: Mapping[str, int]
    """Samples that were not trained on, by reason."""
    adapter: Files | None = None
    """With `optim.adapter`: the low-rank matrices in PEFT's form; the delta holds their effect already."""
    replayed: Mapping[str, int] = field(default_factory=dict)
    """How often a record of each source was replayed."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Each fast path by name (`features`, `head`, `prefix`), and why it was taken or not."""
    alarms: tuple[Alarm, ...] = ()
    """What the rules of `watch` found, in order."""
