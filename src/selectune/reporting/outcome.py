"""What a run came to, in plain words that its numbers bear out, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selectune.reporting import wording
from selectune.reporting.document import Estimate
from selectune.reporting.judged import Verdict
from selectune.reporting.result import RunResult

LEARNING = "target_learning"
HELD_OUT = "held_out_forgetting"

METRICS: dict[str, tuple[str, str]] = {
    LEARNING: ("Target learning", "mean over skills: score right after a skill was taught, less the base's"),
    "target_forgetting": ("Target forgetting", "mean over skills but the last: score at the end, less the score right after it was taught"),
    "backward_transfer": ("Backward transfer", "mean over skills but the last: score at the end, less the score right after it was taught"),
    "forgetting_from_best": ("Forgetting from the best", "mean over skills but the last: score at the end, less the best since"),
    "target_overall": ("Target overall", "mean over skills: score at the end, less the base's"),
    HELD_OUT: ("Held-out forgetting", "mean over held-out tasks: score at the end, less the base's"),
    "worst_stage": ("Worst stage", "the stage with the lowest mean of held-out tasks, less the base's"),
    "worst_task": ("Worst task", "the held-out task that lost most by the end"),
    "held_out_area": ("Held-out area", "mean over the whole sequence of the held-out tasks' change from the base"),
    "held_out_recovered": ("Held-out recovered", "mean over held-out tasks: score after the recovery phase, less the score before it"),
}
"""Label and meaning of each known metric."""


def metric_label(name: str) -> str:
    """A metric's name for people, "Held-out forgetting: text" for `held_out_forgetting.text`; an unknown one is spelled out as it is."""
    kind, _, task = name.partition(".")
    label = METRICS[kind][0] if kind in METRICS else wording.words(kind).capitalize()
    return f"{label}: {task}" if task else label


def metric_meaning(name: str) -> str:
    """What a metric means, or nothing for one that this version does not know."""
    if in_nats(name):
        return "change of the mean log likelihood of a token, in nats; not averaged with shares"
    return METRICS[name][1] if name in METRICS else ""


def in_nats(name: str) -> bool:
    """Whether a metric is of one task whose scores are log likelihoods: those are named METRIC.TASK."""
    return "." in name


def metric_value(name: str, value: float | None) -> str:
    """A metric's value in points, or in nats where it is of log likelihoods."""
    return f"{wording.number(value, 4, signed=True)}{wording.GAP}nats" if in_nats(name) else wording.points(value)


def metric_range(name: str, estimate: Estimate) -> str:
    """The ends of a metric's interval, in the unit of `metric_value`."""
    if not in_nats(name):
        return wording.points_range(estimate.low, estimate.high)
    return f"{wording.number(estimate.low, 4, signed=True)} to {wording.number(estimate.high, 4, signed=True)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """One recipe's part of the outcome."""

    recipe: str
    short: str
    """For the headline: "learned 43.0 points and lost 2.1"."""
    long: str
    """The same with intervals and counts."""


def headline(results: Sequence[RunResult]) -> tuple[Sentence, ...]:
    """A sentence for each recipe."""
    return tuple(_sentence(result) for result in results)


def _sentence(result: RunResult) -> Sentence:
    learned, kept = result.metrics.get(LEARNING), result.metrics.get(HELD_OUT)
    unit = " points" if learned is not None and certain(learned) else ""
    return Sentence(
        recipe=result.name,
        short=f"{_learned(learned)} and {_kept(kept, said=bool(unit))}",
        long=f"Target learning {interval_words(learned)}; held-out forgetting {interval_words(kept)}.",
    )


def certain(estimate: Estimate) -> bool:
    """Whether the interval excludes zero."""
    return estimate.low is not None and estimate.high is not None and (estimate.low > 0 or estimate.high < 0)


def _learned(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "has no measure of learning"
    if not certain(estimate):
        return "shows no sure learning"
    amount = wording.number(abs(100 * estimate.value))
    return f"learned {amount} points" if estimate.value > 0 else f"got {amount} points worse at what it was taught"


def _kept(estimate: Estimate | None, *, said: bool) -> str:
    if estimate is None or estimate.value is None:
        return "has no held-out measure"
    if not certain(estimate):
        return "shows no sure loss"
    amount = wording.number(abs(100 * estimate.value)) + ("" if said else " points")
    return f"lost {amount}" if estimate.value < 0 else f"gained {amount} on what it knew"


def interval_words(estimate: Estimate | None) -> str:
    """ "+43.0 points (95 % interval +34.1 to +51.9, n = 120)", or "not measured"."""
    if estimate is None or estimate.value is None:
        return "not measured"
    ends = wording.points_range(estimate.low, estimate.high)
    return f"{wording.points(estimate.value)} points (95{wording.GAP}% interval {ends}, n = {wording.count(estimate.n)})"


def held_out_mean(result: RunResult, row: str) -> Estimate:
    """Mean share over the held-out tasks after stage `row`, tasks weighted alike, perplexity left out.

    The interval takes the tasks' own intervals as independent: half-width sqrt(sum of squared half-widths) / tasks. `n` sums samples.
    """
    cells = [result.matrix.cell(row, name) for name in held_out_shares(result)]
    known = [cell for cell in cells if cell.value is not None]
    if not known or len(known) < len(cells):
        return Estimate(value=None, n=0)
    value = sum(cell.value or 0.0 for cell in known) / len(known)
    halves = [(cell.high - cell.low) / 2 for cell in known if cell.low is not None and cell.high is not None]
    total = sum(cell.n for cell in known)
    if len(halves) < len(known):
        return Estimate(value=value, n=total)
    half = sum(half * half for half in halves) ** 0.5 / len(known)
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=total)


def held_out_shares(result: RunResult) -> tuple[str, ...]:
    """The held-out columns whose score is a share."""
    return tuple(name for name in result.matrix.columns if result.task(name).role == "held-out" and result.task(name).kind != "perplexity")


def last_row(result: RunResult) -> str:
    """The stage at the end of the last skill: the matrix's last row that is not the recovery's."""
    recovery = result.recovery.phase.name if result.recovery else None
    return [row for row in result.matrix.rows if row != recovery][-1]


def reasons(verdict: Verdict) -> str:
    """Why a verdict is what it is: its deciding rules by task, worst first, in one line."""
    decisive = [rule for rule in verdict.rules if rule.verdict == verdict.verdict]
    if verdict.verdict == "passed":
        return f"all {len(verdict.rules)} rules passed"
    tasks = list(dict.fromkeys(rule.task for rule in sorted(decisive, key=lambda rule: rule.value if rule.value is not None else 0.0)))
    return f"{len(decisive)} of {len(verdict.rules)} rules {verdict.verdict}: {', '.join(tasks)}"
