"""What a recipe says about a training that goes wrong: each rule stops, warns or is off."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from selectune.recipe.basis import Finite, Part


class _Watched(Part):
    """A rule of `watch`; its word alone stands for it, with the threshold that it has anyway."""

    @model_validator(mode="before")
    @classmethod
    def _plain_word(cls, value: object) -> object:
        return {"do": value} if isinstance(value, str) else value


class NotFinite(_Watched):
    """The loss or the gradient of a step is NaN or infinite. Such a step is never taken, so the rule cannot be off."""

    do: Literal["stop", "warn"] = "stop"
    """`warn`: the step is left out and training goes on; not with `optim.in_backward`."""
    row: int = Field(default=3, ge=1)
    """With `warn`: so many of them in a row stop all the same."""


class Spike(_Watched):
    """The gradient's norm is far above what it was lately."""

    do: Literal["stop", "warn", "off"] = "warn"
    times: Finite = Field(default=10.0, gt=1)
    """Above so many times the median of the steps before."""
    window: int = Field(default=50, ge=8)
    """Steps that the median is of; with fewer than eight behind it the rule waits."""


class Dead(_Watched):
    """A selected component that no gradient has reached; an expert of a mixture that no token was sent to is none."""

    do: Literal["stop", "warn", "off"] = "stop"


class Flat(_Watched):
    """The loss does not fall."""

    do: Literal["stop", "warn", "off"] = "warn"
    window: int = Field(default=50, ge=2)
    """The median loss of the last so many steps is compared with that of the first so many."""
    fall: Finite = Field(default=0.01, ge=0, lt=1)
    """The share by which it must have fallen."""


class Starved(_Watched):
    """The device waits for data: pictures that are read, decoded and resized while nothing is computed."""

    do: Literal["stop", "warn", "off"] = "warn"
    share: Finite = Field(default=0.5, gt=0, lt=1)
    """Of the time of the last steps."""
    window: int = Field(default=20, ge=2)
    """So many steps."""


class Watch(Part):
    """What is looked at while training goes on. Each rule stops, warns or is off: ``{spike: stop, flat: {do: warn, window: 200}}``."""

    not_finite: NotFinite = Field(default_factory=NotFinite)
    spike: Spike = Field(default_factory=Spike)
    dead: Dead = Field(default_factory=Dead)
    flat: Flat = Field(default_factory=Flat)
    starved: Starved = Field(default_factory=Starved)
