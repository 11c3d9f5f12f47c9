"""What a recipe is made of: what to teach, with which components, how long, and what must not be lost.

Values are frozen; a key that is not a field is a fault. Nothing here reads a file: see `selectune.recipe.reading`.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from selectune.hashing import digest

EMBEDDED = "embedded:"
"""A source that starts so is a skill which comes with the package: ``embedded:digits``."""

STAGES = ("base", "recovery")
"""Stages that a run has besides its skills; no skill may be called so."""


def _listed(value: object) -> object:
    """One string stands for a list of one; a YAML list becomes a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Named = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
"""A name that can be a part of a file's name."""


class Part(BaseModel):
    """A frozen piece of a recipe; unknown keys and wrong types are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Part):
    """Where records come from. A plain string stands for ``Data(source=…)``."""

    source: str = Field(min_length=1)
    """A file, a folder, or ``embedded:SKILL``. A relative path starts at the recipe's folder (for a preset: at the current one)."""
    split: str | None = None
    """The part of the source to read, where it has parts: train, validation, test."""
    form: str | None = None
    """The records' form; None: detected, with the reason."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Which column plays which part, where detection is wrong: ``{question: q, answer: a}``."""
    images: str | None = None
    """The folder that image paths start at; None: the source's own."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many records."""
    prompt: str | None = None
    """A question for records that have none, such as pictures alone."""
    synthetic: bool = False
    """Rendered or generated: the report says so wherever it shows them."""
    about: str = ""
    """One sentence for the report: what is asked, and where the records are from."""

    @model_validator(mode="before")
    @classmethod
    def _plain_source(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("source", "images")
    @classmethod
    def _rooted(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A path that means the same from every folder, when the recipe was read from a file."""
        folder = info.context
        if value is None or value.startswith(EMBEDDED) or not isinstance(folder, Path):
            return value
        return str((folder / Path(value).expanduser()).absolute())


class Adapter(Part):
    """Low-rank matrices beside the selected weights, trained in their place and added to them at the end; ``lora`` is short for it."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, le=1024)
    """Columns of the low-rank matrices."""
    alpha: Finite | None = Field(default=None, gt=0)
    """The update is alpha / rank times the matrices' product; None: twice the rank."""

    @model_validator(mode="before")
    @classmethod
    def _plain_kind(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def scale(self) -> float:
        """Alpha, as given or by default."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


class Optim(Part):
    """How the selected components are trained. The defaults are those of the study that this follows."""

    lr: Finite = Field(default=5e-6, gt=0)
    """Peak learning rate, after warm-up."""
    epochs: Finite = Field(default=1.0, gt=0)
    """Passes over the skill's training records."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimizer steps; the schedule is laid over them."""
    batch: int = Field(default=32, ge=1)
    """Records a step."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Records that go through the model at once; None: the whole batch."""
    warmup: Finite = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after warm-up."""
    optimizer: Literal["adamw", "adamw-8bit", "adafactor"] = "adamw"
    """`adamw-8bit` keeps its moments in 8 bits (bitsandbytes), `adafactor` by rows and columns alone, without momentum."""
    weight_decay: Finite = Field(default=0.0, ge=0)
    clip: Finite | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; None: not clipped."""
    betas: Annotated[tuple[Finite, Finite], BeforeValidator(_listed)] = (0.9, 0.999)
    eps: Finite = Field(default=1e-8, gt=0)
    max_length: int | None = Field(default=None, ge=1)
    """Longer records are counted and left out, never cut; None: the model's own limit."""
    save_every: int | None = Field(default=None, ge=1)
    """Write a checkpoint after every so many steps; a signal always writes one."""
    cache_features: bool = True
    """Keep a frozen vision tower's features."""
    adapter: Adapter | None = None
    """Train low-rank matrices in place of the selected weights (``lora``, or ``{kind: lora, rank: 8}``); None: the weights themselves."""
    in_backward: bool = False
    """Step each parameter in the backward pass, as soon as its gradient is there, and free that; for whole batches without `clip`."""
    checkpointing: bool = False
    """Trade time for memory: recompute activations."""
    compile: bool = False
    """Compile the language layers with torch.compile; the first step then takes half a minute or more, and a C++ compiler is needed."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if any(not 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {list(self.betas)}")
        if self.in_backward and (self.clip is not None or self.micro_batch is not None):
            raise ValueError("in_backward steps before all gradients are there: set clip to null, and leave micro_batch out")
        return self

    def merged(self, other: Optim | None) -> Optim:
        """This, with the fields that `other` sets in so many words."""
        return self if other is None else self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})


class Skill(Part):
    """One skill to teach: records to learn from, and other ones to be measured on."""

    name: Named
    train: Data
    test: Data
    validation: Data | None = None
    scorer: str = "exact"
    max_new_tokens: int = Field(default=8, ge=1)
    optim: Optim | None = None
    """Overrides the recipe's `optim`, field by field."""


class HeldOut(Part):
    """One skill that is never taught and must not be lost."""

    name: Named
    test: Data
    scorer: str = "exact"
    max_new_tokens: int = Field(default=8, ge=1)
    margin: Finite | None = Field(default=None, gt=0)
    """Largest loss that the gate accepts, as a share (for a perplexity in nats a token); None: the gate's own."""
    kind: Literal["generate", "choice", "perplexity", "caption"] = "generate"


class Gate(Part):
    """What must hold before an update is accepted."""

    alpha: Finite = Field(default=0.05, gt=0, lt=0.5)
    """Error rate of each test."""
    margin: Finite = Field(default=0.05, gt=0, lt=1)
    """Largest loss on a held-out skill, as a share: 0.05 for five points."""
    min_gain: Finite = Field(default=0.0, ge=0, lt=1)
    """What the target's lower bound must exceed."""
    min_n: int = Field(default=30, ge=1)
    """With fewer samples a rule is undecided."""


class Probe(Part):
    """What is read besides the scores."""

    numbers: Data | None = None
    """Pictures to caption after every stage, for the share of number tokens; None: no probe."""
    max_new_tokens: int = Field(default=6, ge=1)
    quick_every: int | None = Field(default=None, ge=1)
    """Measure small samples after every so many steps of training, for a curve of learning and forgetting; None: never."""
    quick_n: int = Field(default=16, ge=1)
    """Records of each task in such a sample; a skill's are taken from its validation records, and without those it is left out."""


class Recovery(Part):
    """A short phase on other data after the last skill: what comes back at once was shifted, not lost."""

    train: Data
    select: Patterns = ()
    """None given: the recipe's own."""
    optim: Optim | None = None
    """Overrides the recipe's `optim`, field by field."""


class Recipe(Part):
    """What to teach, with which components, and what must not be lost."""

    name: Named
    model: str = Field(default="embedded", min_length=1)
    """A folder, a hub id that is on this disk already, or ``embedded``."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    select: Patterns
    """Component patterns or presets: ``attention``, ``language.layers[8:24].mlp.{gate,up}``, ``!language.*.norm.*``."""
    tie: Literal["forbid", "allow"] = "forbid"
    """Whether a tied weight may be selected through one of its names."""
    optim: Optim = Field(default_factory=Optim)
    skills: Annotated[tuple[Skill, ...], BeforeValidator(_listed)]
    held_out: Annotated[tuple[HeldOut, ...], BeforeValidator(_listed)] = ()
    gate: Gate = Field(default_factory=Gate)
    probe: Probe = Field(default_factory=Probe)
    recovery: Recovery | None = None
    on_failure: Literal["continue", "stop"] = "continue"
    """After an update that the gate failed: build the next skill on it all the same, as a study does, or stop there."""
    leakage: Literal["refuse", "report"] = "refuse"
    """What to do when a training record is also in a test set."""
    out: str | None = None
    """The folder that runs are written to; None: ``selectune-runs``."""
    eval_batch: int = Field(default=32, ge=1)

    @field_validator("model")
    @classmethod
    def _rooted(cls, value: str, info: ValidationInfo) -> str:
        folder = info.context
        if isinstance(folder, Path) and ("/" in value or value.startswith((".", "~"))):
            path = folder / Path(value).expanduser()
            if path.is_dir():
                return str(path.absolute())
        return value

    @field_validator("select", "skills")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("needs at least one entry")
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = Counter([*(skill.name for skill in self.skills), *(task.name for task in self.held_out)])
        twice = [name for name, count in names.items() if count > 1]
        taken = [name for name in names if name in STAGES]
        if taken:
            raise ValueError(f"{' and '.join(taken)} is the name of a stage of every run; rename the skill")
        if twice:
            raise ValueError(f"skills and held_out share one list of names; used more than once: {', '.join(twice)}")
        return self

    def optim_of(self, skill: Skill) -> Optim:
        """The recipe's `optim` with the skill's own fields over it."""
        return self.optim.merged(skill.optim)

    def resolved(self) -> Recipe:
        """The same recipe with every skill's and the recovery's choices written out."""
        skills = tuple(skill.model_copy(update={"optim": self.optim_of(skill)}) for skill in self.skills)
        recovery = self.recovery
        if recovery is not None:
            recovery = recovery.model_copy(update={"optim": self.optim.merged(recovery.optim), "select": recovery.select or self.select})
        return self.model_copy(update={"skills": skills, "recovery": recovery})

    def shortened(self, *, skills: int, steps: int, records: int) -> Recipe:
        """A version for a first look: the first skills only, fewer steps, and fewer records to measure and caption.

        Training records stay as they are, as the steps bound them. What it finds is too small to judge by.
        """

        def few(data: Data) -> Data:
            return data.model_copy(update={"limit": min(data.limit or records, records)})

        recipe = self.resolved()
        optims = [self.optim_of(skill) for skill in self.skills[:skills]]
        taught = tuple(
            skill.model_copy(update={"test": few(skill.test), "optim": _fewer(optim, steps)})
            for skill, optim in zip(recipe.skills[:skills], optims, strict=True)
        )
        held_out = tuple(task.model_copy(update={"test": few(task.test)}) for task in recipe.held_out)
        probe, recovery = recipe.probe, recipe.recovery
        if probe.numbers is not None:
            probe = probe.model_copy(update={"numbers": few(probe.numbers)})
        if recovery is not None and recovery.optim is not None:
            recovery = recovery.model_copy(update={"optim": _fewer(recovery.optim, steps)})
        name = f"{self.name}-quick"
        return recipe.model_copy(update={"name": name, "skills": taught, "held_out": held_out, "probe": probe, "recovery": recovery})

    @property
    def digest(self) -> str:
        """Identity of the resolved recipe, 64 hex digits.

        Folders are no part of it: a file counts by its name alone (what it holds is digested with its records), `out` not at all.
        """
        value = self.resolved().model_dump(mode="json", exclude={"out"})
        return digest("recipe", _placeless(value))


def _fewer(optim: Optim, steps: int) -> Optim:
    return optim.model_copy(update={"max_steps": min(optim.max_steps or steps, steps)})


def _placeless(value: Any) -> Any:
    """The same value with every absolute path cut to its last part."""
    if isinstance(value, dict):
        return {key: _placeless(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_placeless(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
