"""What a recipe is made of: what to teach, with which components, how long, and what must not be lost.

Values are frozen; a key that is not a field is a fault. Nothing here reads a file: see `selectune.recipe.reading`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from selectune.hashing import digest
from selectune.recipe.basis import Data, Finite, Named, Part, Patterns, listed
from selectune.recipe.keep import Choose, Keep
from selectune.recipe.watch import Watch

STAGES = ("base", "recovery", "base-again")
"""What a run measures besides its skills; no skill may be called so."""


class Adapter(Part):
    """Matrices beside the selected weights, trained in their place and added to them at the end; ``lora`` or ``osf`` is short for one."""

    kind: Literal["lora", "osf"] = "lora"
    """`lora`: a product of low rank is added. `osf`: of a weight's singular directions the largest are frozen, and the others trained."""
    rank: int = Field(default=16, ge=1, le=1024)
    """lora: columns of the low-rank matrices."""
    alpha: Finite | None = Field(default=None, gt=0)
    """lora: the update is alpha / rank times the matrices' product; None: twice the rank."""
    preserve: Finite = Field(default=0.5, gt=0, lt=1)
    """osf: the share of a weight's singular directions, the largest first, that stay as they are."""

    @model_validator(mode="before")
    @classmethod
    def _plain_kind(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        foreign = {"lora": {"preserve"}, "osf": {"rank", "alpha"}}[self.kind]
        given = [name for name in sorted(foreign & self.model_fields_set) if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise ValueError(f"{' and '.join(given)} is no setting of {self.kind}")
        return self

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
    betas: Annotated[tuple[Finite, Finite], BeforeValidator(listed)] = (0.9, 0.999)
    eps: Finite = Field(default=1e-8, gt=0)
    max_length: int | None = Field(default=None, ge=1)
    """Longer records are counted and left out, never cut; None: the model's own limit."""
    save_every: int | None = Field(default=None, ge=1)
    """Write a checkpoint after every so many steps; a signal always writes one."""
    save_minutes: Finite | None = Field(default=10.0, gt=0)
    """Write one also when so many minutes have passed since the last; None: by steps alone."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """So many stay on the disk, the newest ones."""
    cache_features: bool = True
    """Keep a frozen vision tower's features."""
    adapter: Adapter | None = None
    """Train low-rank matrices in place of the selected weights (``lora``, or ``{kind: lora, rank: 8}``); None: the weights themselves."""
    in_backward: bool = False
    """Step each parameter in the backward pass, as soon as its gradient is there, and free that; for whole batches without `clip`."""
    checkpointing: bool | Literal["auto"] = "auto"
    """Trade time for memory: recompute activations. `auto`: where the batch is forecast not to fit into free memory otherwise."""
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
    scorer: str | None = None
    """None: that of the test's task, without one `exact`."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """None: that of the test's task, without one 8."""
    likelihoods: bool | None = None
    """Also rank the possible answers by likelihood, for a second reading of each sample; None: as the test's task says, else not."""
    optim: Optim | None = None
    """Overrides the recipe's `optim`, field by field."""
    keep: Keep | None = None
    """Overrides the recipe's `keep`, field by field."""


class HeldOut(Part):
    """One skill that is never taught and must not be lost. ``{task: ai2d, source: ./ai2d, limit: 200}`` is short for a name and a test."""

    name: Named
    test: Data
    scorer: str | None = None
    """None: that of the test's task, without one `exact`."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """None: that of the test's task, without one 8."""
    likelihoods: bool | None = None
    """As of a skill."""
    margin: Finite | None = Field(default=None, gt=0)
    """Largest loss that the gate accepts, as a share (for a perplexity in nats a token); None: the gate's own."""
    kind: Literal["generate", "choice", "perplexity", "caption"] | None = None
    """None: that of the test's task, without one `generate`."""

    @model_validator(mode="before")
    @classmethod
    def _plain_task(cls, value: object) -> object:
        """A task beside the fields is the test, and gives the name."""
        if not isinstance(value, dict) or "task" not in value or "test" in value:
            return value
        test = {name: value[name] for name in Data.model_fields if name in value}
        name = {"name": Path(value["task"]).stem} if isinstance(value["task"], str) else {}
        return {**name, "test": test} | {key: item for key, item in value.items() if key not in test}


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
    early: int | None = Field(default=None, ge=1)
    """Ask so many records of each guarded task at a time, in random order, and stop as soon as the gate may decide; None: ask all."""
    looks: int | None = Field(default=None, ge=1)
    """So many updates may be judged by one set of test records, each at alpha / looks; the registry counts. None: not counted."""
    noise: bool = False
    """Measure the base twice, the second time with another batch: what changes with no update at all stands beside every loss."""

    @property
    def level(self) -> float:
        """The error rate of each test of one update: alpha spread over the looks that are allowed."""
        return self.alpha / (self.looks or 1)


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
    keep: Keep = Field(default_factory=Keep)
    """Nothing of the recipe's own `keep` holds here: what comes back must come back by itself."""


class Recipe(Part):
    """What to teach, with which components, and what must not be lost."""

    name: Named
    model: str = Field(default="embedded", min_length=1)
    """A folder, a hub id that is on this disk already, or ``embedded``."""
    dtype: Literal["auto", "stored", "float32"] = "auto"
    """Of the numbers that are trained with. `auto`: as the model's files have them, but float32 for float16, and for bfloat16 on a device
    without it; updates are the original's all the same."""
    quantise: Literal["int8", "nf4"] | None = None
    """Train and measure beside a base whose frozen linear layers are in 8 or 4 bits (bitsandbytes), for memory; updates are exact against
    the original all the same."""
    shard: bool = False
    """Over several processes: each holds a part of the language tower and of what is trained in it (FSDP2)."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    choose: Choose | None = None
    """Components by a number of theirs, in place of `select` or beside it: ``{by: kappa, share: 0.25, within: language-layers}``."""
    select: Patterns = Field(default=(), validate_default=True)
    """Component patterns or presets: ``attention``, ``language.layers[8:24].mlp.{gate,up}``, ``!language.*.norm.*``. Needed without
    `choose`."""
    tie: Literal["forbid", "allow"] = "forbid"
    """Whether a tied weight may be selected through one of its names."""
    optim: Optim = Field(default_factory=Optim)
    keep: Keep = Field(default_factory=Keep)
    """What holds old skills while a new one is taught."""
    watch: Watch = Field(default_factory=Watch)
    """What stops a training, and what is only said."""
    report_to: Annotated[tuple[Literal["tensorboard", "mlflow", "wandb", "trackio"], ...], BeforeValidator(listed)] = ()
    """Trackers that get every step and score too, besides the run's own events.jsonl."""
    skills: Annotated[tuple[Skill, ...], BeforeValidator(listed)]
    held_out: Annotated[tuple[HeldOut, ...], BeforeValidator(listed)] = ()
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

    @model_validator(mode="after")
    def _one_way_to_save_memory(self) -> Self:
        if self.shard and self.quantise is not None:
            raise ValueError("shard and quantise do not go together; leave one of them out")
        return self

    @field_validator("select", "skills")
    @classmethod
    def _some(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        # A `choose` that has a fault of its own is no missing selection; it is not in the data then.
        chosen = info.field_name == "select" and info.data.get("choose", ...) is not None
        if not value and not chosen:
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

    def keep_of(self, skill: Skill) -> Keep:
        """The recipe's `keep` with the skill's own fields over it."""
        return self.keep.merged(skill.keep)

    def resolved(self) -> Recipe:
        """The same recipe with every skill's and the recovery's choices written out."""
        skills = tuple(skill.model_copy(update={"optim": self.optim_of(skill), "keep": self.keep_of(skill)}) for skill in self.skills)
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

        def kept(keep: Keep | None) -> Keep | None:
            if keep is None or keep.ewc is None:
                return keep
            return keep.model_copy(update={"ewc": keep.ewc.model_copy(update={"data": few(keep.ewc.data)})})

        taught = tuple(
            skill.model_copy(update={"test": few(skill.test), "optim": _fewer(optim, steps), "keep": kept(skill.keep)})
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

        Folders are no part of it: a file counts by its name alone (what it holds is digested with its records). `out`, `report_to` and
        `watch` do not count, as none of them changes what a finished training gives.
        """
        value = self.resolved().model_dump(mode="json", exclude={"out", "report_to", "watch"})
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
