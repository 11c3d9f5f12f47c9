"""How an update is judged: what is measured of it, how far, at which error rate, and the looks that this spends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from selectune import gates
from selectune.evaluation import Measurement, Suite, Task, evaluate
from selectune.evaluation.portions import joined, portions
from selectune.registry.looks import Look, check_budget

if TYPE_CHECKING:
    from selectune.evaluation.asking import Shared
    from selectune.models import Model
    from selectune.recipe import Recipe
    from selectune.registry import Registry
    from selectune.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Case:
    """The update that taught a skill, before it is measured."""

    recipe: Recipe
    suite: Suite
    skill: str
    past: tuple[Measurement, ...]
    """The base's, then one for each skill taught before."""
    noise: Mapping[str, Estimate] = field(default_factory=dict)

    def evidence(self, after: Measurement, more: Measurement | None = None) -> gates.Evidence:
        """What the gate is shown; `more` is what was asked of the model before only now."""
        before = self.past[-1] if more is None else joined(self.past[-1], more)
        learned = {one.stage: one for one in self.past[1:]}
        return gates.Evidence(after=after, before=before, anchor=self.past[0], learned=learned, noise=self.noise)

    def decide(self, after: Measurement, more: Measurement | None = None) -> gates.Verdict:
        """The gate's word."""
        return gates.decide(self.skill, self.evidence(after, more), self.recipe.gate, self.recipe.held_out)


@dataclass(frozen=True, kw_only=True)
class Models:
    """The two models of a stage; they are one net, so that only one is there at a time."""

    after: Callable[[], AbstractContextManager[Model]]
    """The updated model, inside the block."""
    before: Model
    """The one that the update started from, outside of it."""
    shared: Shared | None = None
    """What their measurements have in common."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An update measured as far as its gate needed."""

    measurement: Measurement
    more: Measurement | None
    """The model before, on what had not been asked of it; None where nothing was lacking."""
    verdict: gates.Verdict


def judge_early(case: Case, models: Models, told: Callable[[int, int | None], None]) -> Judged:
    """Measure an update in portions of `gate.early` records until its gate may decide.

    Held-out tasks and skills taught before are asked in an order drawn by the recipe's seed, the same for every model, and no further than
    the gate needs; tasks whose scores are not in 0..1, the skill itself and those still to come are asked whole, as later stages are
    compared with them. What the model before was not asked, because its own gate stopped earlier, is asked of it now.
    """
    recipe, suite, base = case.recipe, case.suite, case.past[0]
    early = gates.guarded_tasks(case.skill, case.evidence(base), recipe.held_out)
    tasks = {task.name: task for task in suite.tasks}
    parts = {
        name: portions(tasks[name].records, base.clusters(name), seed=recipe.seed, size=recipe.gate.early or len(tasks[name].records))
        for name in early
    }
    due = [task for name, task in tasks.items() if name not in parts] + [replace(tasks[name], records=parts[name][0]) for name in parts]
    # Portions are no tasks that anybody would ask again, so none is kept.
    shared = None if models.shared is None else replace(models.shared, kept=None)
    after: Measurement | None = None
    more: Measurement | None = None
    number = 0
    while True:
        with models.after() as model:
            found = evaluate(model, Suite(tasks=tuple(due)), stage=case.skill, batch=recipe.eval_batch, base=base, shared=shared)
        after = found if after is None else joined(after, found)
        told(len(after.samples), None)
        more = _asked_before(case, due, more, replace(models, shared=shared))
        verdict = case.decide(after, more)
        number += 1
        due = [replace(tasks[name], records=parts[name][number]) for name in gates.unsettled(verdict) if number < len(parts.get(name, ()))]
        if not due:
            break
    whole = replace(
        after,
        suite=suite.digest,
        kinds={name: task.kind for name, task in tasks.items()},
        planned={name: len(tasks[name].records) for name in parts},
        environment=dict(after.environment) | {"order": f"random, seed {recipe.seed}"},
    )
    return Judged(measurement=whole, more=more, verdict=verdict)


def _asked_before(case: Case, due: Sequence[Task], more: Measurement | None, models: Models) -> Measurement | None:
    """`more` with what is due now and was never asked of the model before."""
    known = {(sample.task, sample.id) for sample in (*case.past[-1].samples, *(more.samples if more else ()))}
    lacking = []
    for task in due:
        items = tuple(record for record in task.records if (task.name, record.id) not in known)
        if items:
            lacking.append(replace(task, records=replace(task.records, items=items)))
    if not lacking:
        return more
    suite, batch = Suite(tasks=tuple(lacking)), case.recipe.eval_batch
    found = evaluate(models.before, suite, stage=case.past[-1].stage, batch=batch, shared=models.shared)
    return found if more is None else joined(more, found)


def look_of(recipe: Recipe, suite: Suite, model: str, skills: Sequence[str]) -> Look | None:
    """The look that judging `model` spends, after these skills were taught, the last one just now; None where looks are not counted."""
    if recipe.gate.looks is None:
        return None
    judged = {*skills, *(task.name for task in recipe.held_out)}
    sets = {task.name: task.records.digest for task in suite.tasks if task.name in judged}
    return Look(model=model, sets=sets, alpha=recipe.gate.level, total=recipe.gate.alpha, recipe=recipe.digest)


def check_looks(registry: Registry, recipe: Recipe, suite: Suite, skills: Sequence[str]) -> None:
    """Before anything is trained: raises LooksSpent where the test records cannot judge an update for each of `skills` any more.

    A recipe that was run before may be run again: on most machines it makes the same models, which cost nothing; where it does not, the
    look itself is refused.
    """
    wanted = look_of(recipe, suite, "", skills)
    if wanted is None or not skills:
        return
    past = registry.looks()
    if any(look.recipe == recipe.digest for look in past):
        return
    # A skill's own records judge it and every later one; held-out records judge all of them.
    for count, skill in enumerate(reversed(skills), start=1):
        check_budget(past, replace(wanted, sets={skill: wanted.sets[skill]}), times=count)
    held_out = {name: digest for name, digest in wanted.sets.items() if name not in skills}
    check_budget(past, replace(wanted, sets=held_out), times=len(skills))
