"""What goes wrong in a training, seen from its steps alone: no model, no loop, no clock.

`Watcher.see` is given one step after another and gives back what the recipe's rules find in it. The same steps give the same alarms, so a
training that goes on after an interruption is watched as if it had never stopped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectune.recipe import Watch
    from selectune.training.results import Step

FEWEST = 8
"""Steps that a median needs before a gradient is measured against it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """What one rule found."""

    rule: str
    """The field of `watch`."""
    step: int
    stops: bool
    what: str
    then: str
    """What to do next."""

    def __str__(self) -> str:
        return f"step {self.step}: {self.what}. {self.then}"


class Watcher:
    """The rules of a recipe's `watch`, and what they remember of the steps so far."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._norms: deque[float] = deque(maxlen=watch.spike.window)
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=watch.flat.window)
        self._times: deque[tuple[float, float]] = deque(maxlen=watch.starved.window)
        self._row = 0
        self._said: set[str] = set()

    def see(self, step: Step) -> list[Alarm]:
        """What the rules find in the next step. A state that lasts is said once, and again only after it was over."""
        if step.fault:
            return [self._not_finite(step)]
        self._row = 0
        found = [self._spike(step), self._dead(step), self._flat(step), self._starved(step)]
        return [alarm for alarm in found if alarm is not None]

    def _not_finite(self, step: Step) -> Alarm:
        self._row += 1
        stops = self._watch.not_finite.do == "stop" or self._row >= self._watch.not_finite.row
        what = f"{step.fault}; the step was left out" + (f", {self._row} in a row" if self._row > 1 else "")
        return Alarm(rule="not_finite", step=step.n, stops=stops, what=what, then="Look at these samples, or lower optim.lr.")

    def _spike(self, step: Step) -> Alarm | None:
        rule, before = self._watch.spike, [*self._norms]
        self._norms.append(step.grad_norm)
        if rule.do == "off" or len(before) < FEWEST:
            return None
        usual = median(before)
        if step.grad_norm <= rule.times * usual:
            return None
        return Alarm(
            rule="spike",
            step=step.n,
            stops=rule.do == "stop",
            what=f"the gradient's norm is {step.grad_norm:.3g}, the median of the {len(before)} steps before {usual:.3g}",
            then="Look for odd records in this batch; keep optim.clip at 1, lower optim.lr or lengthen optim.warmup.",
        )

    def _dead(self, step: Step) -> Alarm | None:
        rule = self._watch.dead
        if not self._begins("dead", rule.do != "off" and bool(step.still)):
            return None
        more = " and more" if len(step.still) >= FEWEST else ""
        return Alarm(
            rule="dead",
            step=step.n,
            stops=rule.do == "stop",
            what=f"selected, but no gradient reaches: {', '.join(step.still)}{more}",
            then="Take them out of the selection, or give records that use them.",
        )

    def _flat(self, step: Step) -> Alarm | None:
        rule = self._watch.flat
        if len(self._first) < rule.window:
            self._first.append(step.loss)
            return None
        self._last.append(step.loss)
        then, now = median(self._first), median(self._last)
        if not self._begins("flat", rule.do != "off" and len(self._last) == rule.window and now > then * (1 - rule.fall)):
            return None
        return Alarm(
            rule="flat",
            step=step.n,
            stops=rule.do == "stop",
            what=f"the loss does not fall: its median is {now:.4g} over the last {rule.window} steps, {then:.4g} over the first",
            then="Raise optim.lr, select more, or look at a sample with selectune plan; a loss near 0 has nowhere to fall.",
        )

    def _starved(self, step: Step) -> Alarm | None:
        rule = self._watch.starved
        self._times.append((step.waited, step.seconds))
        waited, seconds = (math.fsum(column) for column in zip(*self._times, strict=True))
        full = len(self._times) == rule.window and rule.do != "off"
        if not self._begins("starved", full and waited > rule.share * seconds):
            return None
        return Alarm(
            rule="starved",
            step=step.n,
            stops=rule.do == "stop",
            what=f"the device waits for data: {waited:.3g} s of the last {seconds:.3g} s went into pictures ({waited / seconds:.0%})",
            then="Keep optim.cache_features on, make the pictures smaller beforehand, or put them on a faster disk.",
        )

    def _begins(self, rule: str, holds: bool) -> bool:
        """Whether a state holds now that did not hold at the step before."""
        begins = holds and rule not in self._said
        if holds:
            self._said.add(rule)
        else:
            self._said.discard(rule)
        return begins


def sentences(alarms: Sequence[Alarm]) -> tuple[str, ...]:
    """A sentence for each rule that found something: the first time in full, and how often it came again."""
    found = []
    for rule in dict.fromkeys(alarm.rule for alarm in alarms):
        first, *more = [alarm for alarm in alarms if alarm.rule == rule]
        again = f" It came {len(more)} more times, last at step {more[-1].step}." if more else ""
        found.append(f"watch.{rule}: {first}{again}")
    return tuple(found)
