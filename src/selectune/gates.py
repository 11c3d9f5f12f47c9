"""The gate: a change plan's rules applied to measurements. Pure functions; no torch, no files, no clock.

Every rule compares the same samples before and after, and is passed, failed or undecided. All rules must pass, which needs no correction
for their number: a harmful update passes only if it passes the very test that it should fail (an intersection-union test).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from selectune.errors import InputError
from selectune.evaluation.matrix import Measured, align
from selectune.statistics import Outcome, Test, paired_test
from selectune.statistics.intervals import finite_or_none, is_bounded

Name = Literal["target_improved", "held_out_kept", "learned_kept"]


class Limits(Protocol):
    """What must hold; `recipe.Gate` is one."""

    @property
    def alpha(self) -> float:
        """One-sided error rate of each rule."""

    @property
    def margin(self) -> float:
        """Largest loss accepted where a task names none: a share, or nats per token for a log-likelihood."""

    @property
    def min_gain(self) -> float:
        """What the lower bound of the target's gain must exceed."""

    @property
    def min_n(self) -> int:
        """With fewer independent items a rule is undecided."""


class Guarded(Protocol):
    """A task that must not lose; `recipe.HeldOut` is one."""

    @property
    def name(self) -> str:
        """The task's name in the measurements."""

    @property
    def margin(self) -> float | None:
        """Largest loss accepted, in the unit of its scores; None: the gate's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """The measurements that one update is judged by."""

    after: Measured
    """Of the update."""
    before: Measured
    """Of the stage that the update started from."""
    anchor: Measured
    """Of the base, so that losses too small to see one by one do not add up. The same object as `before` for the first update."""
    learned: Mapping[str, Measured] = field(default_factory=dict)
    """Skills taught earlier, each with the measurement made right after it was taught."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One rule with the numbers that decided it."""

    name: Name
    task: str
    against: str
    """`previous`, `base`, or for an earlier skill the stage that taught it."""
    value: float
    """Mean change of the score, paired by sample: shares, or nats per token for a log-likelihood."""
    low: float
    """Lower bound of the change; it and `high` are each right with confidence 1 - alpha."""
    high: float
    bound: float
    """What `low` must clear: minus the margin, or the least gain."""
    n: int
    lost: int
    """Samples whose score fell."""
    gained: int
    """Samples whose score rose."""
    verdict: Outcome
    evidence: str
    """The same in one sentence."""
    method: str
    needed: int | None
    """About how many items would settle an undecided rule at the rates seen; None if settled, or if no number would."""

    def to_json(self) -> dict[str, Any]:
        """All fields; an infinite bound becomes null."""
        body = {name: getattr(self, name) for name in self.__slots__}
        return body | {"low": finite_or_none(self.low), "high": finite_or_none(self.high)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the gate says about one update: failed if any rule failed, else undecided if any is, else passed."""

    skill: str
    verdict: Outcome
    rules: tuple[Rule, ...]

    def to_json(self) -> dict[str, Any]:
        """`{"skill", "verdict", "rules"}`."""
        return {"skill": self.skill, "verdict": self.verdict, "rules": [rule.to_json() for rule in self.rules]}


def decide(skill: str, evidence: Evidence, gate: Limits, held_out: Sequence[Guarded]) -> Verdict:
    """The verdict on the update that taught `skill`.

    - `target_improved`: the gain of `skill` is above `gate.min_gain`, against the stage before and against the base.
    - `held_out_kept`: each held-out task loses less than its margin, against the stage before and against the base.
    - `learned_kept`: each skill taught earlier loses less than the gate's margin against the stage that taught it.

    For the first update the stage before is the base; each rule is then given once, against the base. A rule is failed only where harm is
    shown, its upper bound below the limit; in between, and with fewer than `gate.min_n` independent items (clusters, where samples share
    one), it is undecided. Right-or-wrong scores take Tango's score test, others the bounds of `statistics.change`. Raises DataError where
    the measurements do not hold the same samples of a task, and InputError where `skill` is held out too.

    The numbers hold for these samples at this error rate. A verdict of passed does not prove that nothing else changed.
    """
    if any(task.name == skill for task in held_out):
        raise InputError(f'"{skill}" is both taught and held out', where="gate", then="Take it out of one of them.")
    references = [("base", evidence.anchor)]
    if evidence.before is not evidence.anchor:
        references.insert(0, ("previous", evidence.before))
    rules = [_rule("target_improved", skill, _Against(name, old, evidence.after), gate.min_gain, gate) for name, old in references]
    for task in held_out:
        margin = gate.margin if task.margin is None else task.margin
        rules += [_rule("held_out_kept", task.name, _Against(name, old, evidence.after), -margin, gate) for name, old in references]
    for task_name, old in evidence.learned.items():
        if task_name != skill:
            rules.append(_rule("learned_kept", task_name, _Against(old.stage, old, evidence.after), -gate.margin, gate))
    return Verdict(skill=skill, verdict=overall([rule.verdict for rule in rules]), rules=tuple(rules))


def overall(verdicts: Sequence[Outcome]) -> Outcome:
    """Failed if any failed, else undecided if any is undecided or there is none at all, else passed."""
    if "failed" in verdicts:
        return "failed"
    return "passed" if verdicts and all(verdict == "passed" for verdict in verdicts) else "undecided"


@dataclass(frozen=True, slots=True)
class _Against:
    name: str
    old: Measured
    new: Measured

    @property
    def words(self) -> str:
        if self.name == "base":
            return "the base"
        return f'the stage before, "{self.old.stage}"' if self.name == "previous" else f'stage "{self.name}", which taught it'


@dataclass(frozen=True, slots=True)
class _Words:
    """How a task's numbers are written: shares in points, anything else as it is."""

    share: bool
    alpha: float

    def __call__(self, number: float) -> str:
        return f"{100 * number:+.1f} points" if self.share else f"{number:+.4g}"

    @property
    def confidence(self) -> str:
        return f"{100 * (1 - self.alpha):g} % confidence"


def _rule(name: Name, task: str, against: _Against, bound: float, gate: Limits) -> Rule:
    pairs = align([against.old, against.new], task)
    test = paired_test(*pairs.scores, bound=bound, alpha=gate.alpha, clusters=pairs.clusters)
    independent = len(set(pairs.clusters))
    few = independent < gate.min_n
    verdict: Outcome = "undecided" if few else test.verdict
    words = _Words(all(is_bounded(scores) for scores in pairs.scores), gate.alpha)
    needed = max(math.ceil(gate.min_n * test.n / independent), test.needed or 0) if few else test.needed
    reason = f"only {independent} independent items, and the plan asks for {gate.min_n}" if few else _reason(test, bound, words)
    changes = pairs.scores[1] - pairs.scores[0]
    lost, gained = int((changes < 0).sum()), int((changes > 0).sum())
    seen = f"{lost} of {test.n} items lost and {gained} gained against {against.words}, a change of {words(test.value)}"
    return Rule(
        name=name,
        task=task,
        against=against.name,
        value=test.value,
        low=test.low,
        high=test.high,
        bound=bound,
        n=test.n,
        lost=lost,
        gained=gained,
        verdict=verdict,
        evidence=f"{task} {_HEADINGS[name][verdict]}: {seen}; {reason}.",
        method=test.method,
        needed=needed,
    )


_HEADINGS: Mapping[Name, Mapping[Outcome, str]] = {
    "target_improved": {"passed": "improved", "failed": "did not improve enough", "undecided": "is undecided"},
    "held_out_kept": {"passed": "was kept", "failed": "was harmed", "undecided": "is undecided"},
    "learned_kept": {"passed": "was kept", "failed": "was partly forgotten", "undecided": "is undecided"},
}


def _reason(test: Test, bound: float, words: _Words) -> str:
    limit = f"the limit of {words(bound)}"
    if test.passed:
        return f"at worst {words(test.low)} at {words.confidence}, above {limit}"
    if test.refuted:
        return f"at best {words(test.high)} at {words.confidence}, below {limit}"
    settle = "no number of items would settle it" if test.needed is None else f"about {test.needed:,} items would settle it"
    return f"from {words(test.low)} to {words(test.high)} at {words.confidence} for each end, around {limit}; {settle} at the rates seen"
