"""The gate: a change plan's rules applied to measurements. Pure functions; no torch, no files, no clock.

Every rule compares the same samples before and after, and is passed, failed or undecided. All rules must pass, which needs no correction
for their number: a harmful update passes only if it passes the very test that it should fail (an intersection-union test).

With `early` guarded tasks are asked in random order and judged by a bet, which may be looked at after every portion: `unsettled` says which
are to be asked on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from selectune.errors import InputError
from selectune.evaluation.matrix import Measured, Pairs, align
from selectune.statistics import Estimate, Outcome, betting, paired_test
from selectune.statistics.intervals import finite_or_none, is_bounded

Name = Literal["target_improved", "held_out_kept", "learned_kept"]


class Limits(Protocol):
    """What must hold; `recipe.Gate` is one."""

    @property
    def level(self) -> float:
        """One-sided error rate of each rule of this update."""

    @property
    def margin(self) -> float:
        """Largest loss accepted where a task names none: a share, or nats per token for a log-likelihood."""

    @property
    def min_gain(self) -> float:
        """What the lower bound of the target's gain must exceed."""

    @property
    def min_n(self) -> int:
        """With fewer independent items a rule is undecided."""

    @property
    def early(self) -> int | None:
        """Whether guarded tasks may stop early: records asked at a time, or None."""


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
    noise: Mapping[str, Estimate] = field(default_factory=dict)
    """Task to what changes with no update at all (`evaluation.noise.noise_floor`), where that was measured."""


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
    planned: int | None = None
    """How many items the task has, where the gate may stop before the last: `n` of them were asked, in random order."""
    noise: float | None = None
    """The noise floor: mean distance of an item's scores in two measurements of the base; None where that was not measured."""

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
    one), it is undecided. Right-or-wrong scores take Tango's score test, others the bounds of `statistics.change`. With `gate.early` the
    tasks of `guarded_tasks` take `statistics.betting` instead, over the samples of `after` in their order, which must be random.

    Raises DataError where the measurements do not hold the same samples of a task (with `gate.early`, where the older ones lack some of
    `after`'s), and InputError where `skill` is held out too.

    The numbers hold for these samples at this error rate. A verdict of passed does not prove that nothing else changed.
    """
    if any(task.name == skill for task in held_out):
        raise InputError(f'"{skill}" is both taught and held out', where="gate", then="Take it out of one of them.")
    references = [("base", evidence.anchor)]
    if evidence.before is not evidence.anchor:
        references.insert(0, ("previous", evidence.before))
    cases = [_Case("target_improved", skill, name, old, gate.min_gain) for name, old in references]
    for task in held_out:
        margin = gate.margin if task.margin is None else task.margin
        cases += [_Case("held_out_kept", task.name, name, old, -margin) for name, old in references]
    for task_name, old in evidence.learned.items():
        if task_name != skill:
            cases.append(_Case("learned_kept", task_name, old.stage, old, -gate.margin))
    early = guarded_tasks(skill, evidence, held_out) if gate.early else ()
    rules = tuple(_rule(case, evidence, gate, early=case.task in early) for case in cases)
    return Verdict(skill=skill, verdict=overall([rule.verdict for rule in rules]), rules=rules)


def guarded_tasks(skill: str, evidence: Evidence, held_out: Sequence[Guarded]) -> tuple[str, ...]:
    """The tasks that may stop early: held out or learned earlier, with scores in 0..1 at the base (a bet needs bounded scores)."""
    names = dict.fromkeys([task.name for task in held_out] + [name for name in evidence.learned if name != skill])
    scores: dict[str, list[float]] = {name: [] for name in names}
    for sample in evidence.anchor.samples:
        if sample.task in scores:
            scores[sample.task].append(sample.score)
    return tuple(name for name, found in scores.items() if found and all(0 <= one <= 1 for one in found))


def unsettled(verdict: Verdict) -> tuple[str, ...]:
    """The tasks that an early gate must ask on: those with an undecided rule; none once any rule has failed, as that decides the gate."""
    if verdict.verdict == "failed":
        return ()
    return tuple(dict.fromkeys(rule.task for rule in verdict.rules if rule.verdict == "undecided"))


def overall(verdicts: Sequence[Outcome]) -> Outcome:
    """Failed if any failed, else undecided if any is undecided or there is none at all, else passed."""
    if "failed" in verdicts:
        return "failed"
    return "passed" if verdicts and all(verdict == "passed" for verdict in verdicts) else "undecided"


@dataclass(frozen=True, slots=True)
class _Case:
    """What one rule asks."""

    name: Name
    task: str
    against: str
    old: Measured
    bound: float

    @property
    def words(self) -> str:
        if self.against == "base":
            return "the base"
        return f'the stage before, "{self.old.stage}"' if self.against == "previous" else f'stage "{self.against}", which taught it'


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a test says of a case, whichever test it is."""

    verdict: Outcome
    value: float
    low: float
    high: float
    method: str
    needed: int | None
    planned: int | None = None


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


def _rule(case: _Case, evidence: Evidence, gate: Limits, *, early: bool) -> Rule:
    pairs = align([evidence.after, case.old], case.task, seen=early)
    before, after = pairs.scores[1], pairs.scores[0]
    found = _bet(case, pairs, evidence.anchor, gate) if early else _fixed(case, pairs, gate)
    n, independent = len(pairs.ids), len(set(pairs.clusters))
    few = independent < gate.min_n
    verdict: Outcome = "undecided" if few else found.verdict
    words = _Words(is_bounded(before) and is_bounded(after), gate.level)
    needed = max(math.ceil(gate.min_n * n / independent), found.needed or 0) if few else found.needed
    reason = f"only {independent} independent items, and the plan asks for {gate.min_n}" if few else _reason(found, case.bound, words)
    lost, gained = int((after < before).sum()), int((after > before).sum())
    seen = f"{lost} of {n} items lost and {gained} gained against {case.words}, a change of {words(found.value)}"
    asked = "" if found.planned is None else f", asked {n} of {found.planned} in random order"
    noise = evidence.noise.get(case.task)
    return Rule(
        name=case.name,
        task=case.task,
        against=case.against,
        value=found.value,
        low=found.low,
        high=found.high,
        bound=case.bound,
        n=n,
        lost=lost,
        gained=gained,
        verdict=verdict,
        evidence=f"{case.task} {_HEADINGS[case.name][verdict]}: {seen}{asked}; {reason}.{_noise(found.value, noise, words)}",
        method=found.method,
        needed=needed,
        planned=found.planned,
        noise=None if noise is None else noise.value,
    )


def _fixed(case: _Case, pairs: Pairs, gate: Limits) -> _Finding:
    test = paired_test(pairs.scores[1], pairs.scores[0], bound=case.bound, alpha=gate.level, clusters=pairs.clusters)
    return _Finding(test.verdict, test.value, test.low, test.high, test.method, test.needed)


def _bet(case: _Case, pairs: Pairs, anchor: Measured, gate: Limits) -> _Finding:
    """The bet on the items seen so far; what was asked after the stop counts in the change, and its bounds still hold for it."""
    clusters = Counter(sample.cluster for sample in anchor.samples if sample.task == case.task)
    differences = pairs.scores[0] - pairs.scores[1]
    bet = betting(differences, -case.bound, alpha=gate.level, clusters=pairs.clusters, largest=max(clusters.values()))
    value = float(differences.mean())
    method = "betting" if clusters.total() == len(clusters) else f"betting, clusters of up to {max(clusters.values())}"
    return _Finding(bet.verdict, value, min(value, bet.low), max(value, bet.high), method, bet.needed, clusters.total())


def _noise(value: float, noise: Estimate | None, words: _Words) -> str:
    """What an update's loss is beside what changes without one."""
    if noise is None or value >= 0:
        return ""
    floor = f"{100 * noise.value:.1f} % of items flip" if words.share else f"items move by {noise.value:.4g}"
    within = "within" if -value <= noise.value else "above"
    return f" That loss is {within} the noise floor: {floor} between two measurements of the base alone."


_HEADINGS: Mapping[Name, Mapping[Outcome, str]] = {
    "target_improved": {"passed": "improved", "failed": "did not improve enough", "undecided": "is undecided"},
    "held_out_kept": {"passed": "was kept", "failed": "was harmed", "undecided": "is undecided"},
    "learned_kept": {"passed": "was kept", "failed": "was partly forgotten", "undecided": "is undecided"},
}


def _reason(found: _Finding, bound: float, words: _Words) -> str:
    limit, sure = f"the limit of {words(bound)}", words.confidence + ("" if found.planned is None else " however often one looks")
    if found.verdict == "passed":
        return f"at worst {words(found.low)} at {sure}, above {limit}"
    if found.verdict == "failed":
        return f"at best {words(found.high)} at {sure}, below {limit}"
    settle = "no number of items would settle it" if found.needed is None else f"about {found.needed:,} items would settle it"
    return f"from {words(found.low)} to {words(found.high)} at {sure} for each end, around {limit}; {settle} at the rates seen"
