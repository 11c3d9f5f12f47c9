"""What the gate said, rule by rule."""

from __future__ import annotations

from typing import Literal

from selectune.reporting.document import Document, Real

Outcome = Literal["passed", "failed", "undecided"]


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
