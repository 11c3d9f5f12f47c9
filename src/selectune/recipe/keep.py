"""What holds old skills while a new one is taught, and what may move by numbers: the parts of a recipe for methods beside its own."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from selectune.recipe.basis import Data, Finite, Part, Patterns


class _Weighted(Part):
    """A term of the loss; a plain number stands for its weight."""

    @model_validator(mode="before")
    @classmethod
    def _plain_weight(cls, value: object) -> object:
        return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Distill(_Weighted):
    """Learning without forgetting: each word of an answer stays as likely as an earlier self of the model made it.

    The loss gains ``weight * temperature ** 2 * KL(teacher || student)``, the mean over the labelled positions.
    """

    weight: Finite = Field(default=1.0, gt=0)
    """Of the divergence, beside the cross-entropy."""
    temperature: Finite = Field(default=2.0, gt=0)
    """Logits are divided by it on both sides."""
    teacher: Literal["start", "base"] = "start"
    """The model as it was at the start of the skill, or before the first one."""
    top_k: int | None = Field(default=None, ge=1)
    """Ask the teacher once a record, and keep of each position its k likeliest words and the sum of all others, which then count as one
    word; None: ask in every step, for every word."""


class L2SP(_Weighted):
    """A pull back to the start: the loss gains ``weight * sum((value - start) ** 2)`` over the selection. A plain number is the weight."""

    weight: Finite = Field(gt=0)
    """Of the squared distance. With an adapter it is the distance that the adapter adds to the weights."""


class EWC(Part):
    """Elastic weight consolidation: the loss gains ``weight / 2 * sum(F * (value - start) ** 2)`` over the selection.

    F is the diagonal of the empirical Fisher: the mean over `data` of the squared gradient of one answer's log-likelihood.
    """

    weight: Finite = Field(gt=0)
    """Half of it stands before the squared distances."""
    data: Data
    """Records with answers, of what must be kept; each costs one backward pass before the first step."""


class Replay(Part):
    """A part of every batch comes from what was taught before. A plain number is the share."""

    share: Finite = Field(gt=0, lt=1)
    """Of all records drawn so far, to the record; the batch stays as large as it was."""
    skills: bool = True
    """Draw from the training records of every earlier skill of the recipe, the sources in turn."""
    data: Data | None = None
    """Draw from these records too, as one source more; without them the first skill has nothing to replay."""

    @model_validator(mode="before")
    @classmethod
    def _plain_share(cls, value: object) -> object:
        return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if not self.skills and self.data is None:
            raise ValueError("there is nothing to replay: name data, or set skills to true")
        return self


class Anchors(Part):
    """Prompts without answers, on which the model must go on as before.

    The loss gains ``weight * KL(teacher || student)``, the mean over the prompts' positions.
    """

    data: Data
    """Questions; what an assistant says to them is not read."""
    weight: Finite = Field(default=1.0, gt=0)
    """Of the divergence, beside the cross-entropy."""
    batch: int = Field(default=8, ge=1)
    """Prompts a step, beside the step's own records."""
    positions: Literal["all", "last"] = "all"
    """Every token of text in the prompt, or only where the answer begins."""
    teacher: Literal["start", "base"] = "base"
    """The model before the first skill, or as it was at the start of this one."""
    top_k: int | None = Field(default=None, ge=1)
    """As for `distill`."""


class Keep(Part):
    """What holds old skills while a new one is taught. Each is off until it is named; any may stand beside any other."""

    distill: Distill | None = None
    """The answers' words stay as likely as they were."""
    l2sp: L2SP | None = None
    """The selection stays near where it was."""
    ewc: EWC | None = None
    """The same, each element as near as old records need it."""
    replay: Replay | None = None
    """A share of what is drawn is from earlier skills."""
    anchors: Anchors | None = None
    """On these prompts the model goes on as before."""

    def merged(self, other: Keep | None) -> Keep:
        """This, with the fields that `other` sets in so many words; null takes one away."""
        return self if other is None else self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})


class Choose(Part):
    """Takes weight matrices by a number of theirs, the best first, up to a share of the elements; what stands beside a matrix under its
    name, such as a bias, goes with it."""

    by: Literal["kappa", "snr"]
    """`kappa`: the condition number, lowest first (KappaTune). `snr`: signal over noise of singular values, highest first (Spectrum)."""
    share: Finite = Field(gt=0, le=1)
    """Of the elements of every matrix that `within` names."""
    within: Patterns
    """Patterns or presets: what there is to choose from."""
    each: Literal["all", "family"] | None = None
    """Whether the share is of all matrices together or of each kind, such as every `language.layers.*.attn.q`; None: as the methods' own
    authors do, all for kappa and family for snr."""
    taken: Patterns = ()
    """What was chosen; a run writes it here. Where it is given, nothing is computed."""
