"""One stage of a recipe alone: train a skill, measure a model, read its number words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from selectune.errors import InputError, NoMatch
from selectune.evaluation import Measurement, evaluate
from selectune.evaluation.asking import Shared
from selectune.evaluation.kept import Kept
from selectune.pipeline.measuring import counting
from selectune.pipeline.preparing import prepare, read_examples
from selectune.pipeline.progress import Progress, bar
from selectune.pipeline.running import MEASUREMENTS, OUT, TASKS
from selectune.pipeline.stages import lessons
from selectune.probes import NumberReading, probe_numbers
from selectune.training import Session, Training, train

if TYPE_CHECKING:
    from selectune.evaluation import Suite
    from selectune.models import Model
    from selectune.recipe import Recipe
    from selectune.training import Step
    from selectune.training.watching import Alarm


def train_skill(recipe: Recipe, skill: str | None, load: Callable[[str], Model], progress: Progress) -> Training:
    """Train one skill of a recipe (the first without a name) on its model as it came; the model is the same afterwards.

    Raises NoMatch for a skill that the recipe does not have, and what `selectune.training.train` raises.
    """
    prepared = prepare(recipe.resolved(), load)
    found = {lesson.name: lesson for lesson in lessons(prepared)}
    name = skill or next(iter(found))
    if name not in found:
        raise NoMatch(f'"{name}" is no skill of it', where=f"recipe {recipe.name}", then=f"It has: {', '.join(found)}.")
    lesson = found[name]
    with bar(progress, f"Teaching {name}") as advance:

        def on_step(step: Step) -> None:
            advance(step.n, step.total)

        def on_alarm(alarm: Alarm) -> None:
            progress.say(f"{name}: {alarm}")

        session = Session(seed=recipe.seed, on_step=on_step, watch=recipe.watch, on_alarm=on_alarm)
        return train(prepared.model, lesson.selection, lesson.records, lesson.optim, keeping=lesson.keeping, session=session)


def measure(recipe: Recipe, model: Model, progress: Progress, *, stage: str = "") -> Measurement:
    """Every test of a recipe on a model."""
    return measure_suite(read_examples(recipe).suite, model, progress, stage=stage, batch=recipe.eval_batch)


def measure_suite(
    suite: Suite, model: Model, progress: Progress, *, stage: str = "", batch: int = 32, kept: Kept | None = None
) -> Measurement:
    """Every task of a suite on a model; those that are `kept` are read."""
    stage = stage or model.name
    with bar(progress, f"Measuring {stage}", sum(len(task.records) for task in suite.tasks)) as advance:
        return evaluate(model, suite, stage=stage, batch=batch, progress=counting(suite, advance), shared=Shared(kept=kept))


def kept_tasks(progress: Progress, *, out: Path = OUT, fresh: bool = False) -> Kept | None:
    """Tasks that were measured in the folder of runs `out`; `fresh` measures them again. None without that folder."""
    return Kept(folder=out / MEASUREMENTS / TASKS, fresh=fresh, say=progress.say) if out.is_dir() else None


def read_numbers(recipe: Recipe, model: Model, progress: Progress) -> NumberReading:
    """The number probe of a recipe on a model. Raises InputError for a recipe that names no pictures."""
    pictures = read_examples(recipe).pictures
    if pictures is None:
        raise InputError(
            "names no pictures to caption", where=f"recipe {recipe.name}: probe.numbers", then="Add --set probe.numbers=SOURCE."
        )
    with bar(progress, "Captions"):
        return probe_numbers(model, pictures, stage=model.name, max_new_tokens=recipe.probe.max_new_tokens, batch=recipe.eval_batch)
