"""Everything that a run needs before its first step: records read and checked, the model loaded, the selection made, the suite built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from selectune.components.spectra import choose_by
from selectune.errors import DataError
from selectune.evaluation import Suite, Task
from selectune.evaluation.scorers import scorer_name
from selectune.evaluation.tasks import find_task, read_task_records
from selectune.pipeline.keeping import read_kept
from selectune.pipeline.leaking import find_leaks, stopped_by
from selectune.precision import choose_dtype, widen
from selectune.quantising import quantise
from selectune.recipe import Data, HeldOut, Recipe, Skill
from selectune.records import read_records
from selectune.reporting.measured import LeakedPair, TaskInfo
from selectune.training.sharding import shard

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.components.spectra import Choice
    from selectune.hashing import Manifest
    from selectune.models import Model
    from selectune.pipeline.keeping import Kept
    from selectune.records import Records

RECOVERY = "recovery"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A recipe's records, read and checked."""

    train: Mapping[str, Records]
    """By skill; the recovery's under ``recovery``."""
    suite: Suite
    """Every skill's test records, then every held-out task."""
    tasks: tuple[TaskInfo, ...]
    """What the suite's tasks are, for the report."""
    validation: Mapping[str, Records]
    """By skill, where the recipe names some."""
    kept: Mapping[str, Kept]
    """By stage: what its `keep` names."""
    pictures: Records | None
    """What the number probe captions."""
    notes: tuple[str, ...]
    """What a reader must know: leaks that the recipe allows, records left out."""
    leaks: tuple[LeakedPair, ...] = ()
    """The first of those leaks, pair by pair, for the report."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe with everything that it names."""

    recipe: Recipe
    """With what `choose` took written into it."""
    model: Model
    selection: Selection
    recovery: Selection | None
    examples: Examples
    dtype: str
    """In which dtype it trains, and why."""
    origin: Manifest | None = None
    """What the model was before it was widened or quantised."""
    choice: Choice | None = None
    """What `choose` measured, where this was done now."""


def prepare(recipe: Recipe, load: Callable[[str], Model]) -> Prepared:
    """Read the recipe's records, load its model by `load`, select. Records come first: their faults show before a model takes its time.

    Raises DataError for records that cannot be used or that are in training and test alike, ModelError, NoMatch and TiedSelection.
    """
    examples = read_examples(recipe)
    original = load(recipe.model)
    dtype, why = choose_dtype(original.net.dtype, original.device, recipe.dtype)
    model = original if dtype == original.net.dtype else widen(original, dtype)
    recipe, choice = _chosen(recipe, model)
    patterns = (*recipe.select, *(recipe.choose.taken if recipe.choose is not None else ()))
    selection = model.map.select(patterns, tie=recipe.tie, where=f"recipe {recipe.name}: select")
    recovery = None
    if recipe.recovery is not None:
        patterns = recipe.recovery.select or patterns
        recovery = model.map.select(patterns, tie=recipe.tie, where=f"recipe {recipe.name}: recovery.select")
    told = [] if model is original else [f"trained and measured in {why}"]
    if recipe.quantise is not None:
        model = quantise(model, [one for one in (selection, recovery) if one is not None], recipe.quantise)
        told.append(f"trained and measured beside a base in {recipe.quantise}")
    origin = original.manifest if told else None
    notes = [f"{one}; every update is exact against the original, {original.id[:12]}" for one in told]
    if recipe.shard:
        model = shard(model)
    if choice is not None:
        notes.append(f"choose took {choice.about}")
    return Prepared(
        recipe=recipe,
        model=model,
        selection=selection,
        recovery=recovery,
        examples=replace(examples, notes=(*examples.notes, *notes)),
        dtype=why,
        origin=origin,
        choice=choice,
    )


def _chosen(recipe: Recipe, model: Model) -> tuple[Recipe, Choice | None]:
    """The recipe with the names that `choose` takes of this model, and the numbers; they are taken once, and written down."""
    wanted = recipe.choose
    if wanted is None or wanted.taken:
        return recipe, None
    where = f"recipe {recipe.name}: choose"
    pool = model.map.select(wanted.within, tie=recipe.tie, where=f"{where}.within")
    choice = choose_by(model.net, pool, wanted.by, wanted.share, each=wanted.each, where=where)
    tied = {component.name: component.tied for component in pool.components}
    taken = tuple(dict.fromkeys(name for one in choice.names for name in (one, *tied[one])))
    return recipe.model_copy(update={"choose": wanted.model_copy(update={"taken": taken})}), choice


def read_examples(recipe: Recipe) -> Examples:
    """Every record that the recipe names. Raises DataError for unusable ones, an empty split, and a leak that the recipe does not allow."""
    train, validation, tests, tasks, infos = {}, {}, {}, [], []
    for index, skill in enumerate(recipe.skills):
        train[skill.name] = _a_batch(_some(skill.train, f"skills[{index}].train"), recipe.optim_of(skill).batch, f"skills[{index}].train")
        if skill.validation is not None:
            validation[skill.name] = _some(skill.validation, f"skills[{index}].validation")
        tests[skill.name] = records = _some(skill.test, f"skills[{index}].test")
        tasks.append(_task(skill, records, role="target"))
        infos.append(_info(tasks[-1], skill.test))
    for index, held in enumerate(recipe.held_out):
        tests[held.name] = records = _some(held.test, f"held_out[{index}].test")
        task = _task(held, records, role="held-out")
        tasks.append(task)
        infos.append(_info(task, held.test).model_copy(update={"margin": held.margin or recipe.gate.margin}))
    if recipe.recovery is not None:
        optim = recipe.optim.merged(recipe.recovery.optim)
        train[RECOVERY] = _a_batch(_some(recipe.recovery.train, "recovery.train"), optim.batch, "recovery.train")
    kept, sources = read_kept(recipe, RECOVERY, _some)
    pictures = None if recipe.probe.numbers is None else _some(recipe.probe.numbers, "probe.numbers")
    seen = train | {f"{name} (validation)": records for name, records in validation.items()} | sources
    found = find_leaks(seen, tests)
    if found.notes and recipe.leakage == "refuse":
        raise DataError("; ".join(found.notes), where="recipe", then="Take them out of one side, or allow it with leakage: report.")
    return Examples(
        train=train,
        suite=Suite(tasks=tuple(tasks)),
        tasks=tuple(infos),
        validation=validation,
        kept=kept,
        pictures=pictures,
        notes=(*found.notes, *stopped_by(train, validation)),
        leaks=found.pairs,
    )


def is_synthetic(data: Data, records: Records) -> bool:
    """Whether the recipe or every record says that these were rendered."""
    return data.synthetic or all(bool(record.meta.get("synthetic")) for record in records)


def _some(data: Data, where: str) -> Records:
    records = read_records(data, where=where) if data.task is None else read_task_records(find_task(data.task), data, where=where)
    if not len(records):
        split = f" in the split {data.split}" if data.split else ""
        raise DataError(f"{data.source} holds no record{split}", where=where, then="Check the source, the split and the limit.")
    return records


def _a_batch(records: Records, batch: int, where: str) -> Records:
    """The records, of which there is at least a batch; seen before the first skill is taught, not when it is this one's turn."""
    if len(records) < batch:
        then = f"Set optim.batch to at most {len(records)}, or give more records."
        raise DataError(f"{len(records)} records are fewer than one batch of {batch}", where=where, then=then)
    return records


def _task(test: Skill | HeldOut, records: Records, *, role: Literal["target", "held-out"]) -> Task:
    """What is measured: as the recipe says, where it does not as the test's task says, and without one by a task's own defaults."""
    asked = {} if test.test.task is None else find_task(test.test.task).asked
    said = {"scorer": test.scorer, "max_new_tokens": test.max_new_tokens, "likelihoods": test.likelihoods}
    said |= {"kind": test.kind} if isinstance(test, HeldOut) else {}
    return Task(name=test.name, records=records, role=role, **asked | {name: value for name, value in said.items() if value is not None})


def _info(task: Task, data: Data) -> TaskInfo:
    synthetic = is_synthetic(data, task.records)
    about = data.about or ("" if data.task is None else find_task(data.task).about)
    return TaskInfo(name=task.name, role=task.role, kind=task.kind, scorer=scorer_name(task.scorer), synthetic=synthetic, about=about)
