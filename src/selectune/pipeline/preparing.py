"""Everything that a run needs before its first step: records read and checked, the model loaded, the selection made, the suite built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selectune.components.spectra import choose_by
from selectune.errors import DataError
from selectune.evaluation import Suite, Task
from selectune.pipeline.keeping import read_kept
from selectune.quantising import quantise
from selectune.recipe import Data, Recipe
from selectune.records import leakage, read_records
from selectune.reporting.result import TaskInfo
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


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe with everything that it names."""

    recipe: Recipe
    """With what `choose` took written into it."""
    model: Model
    selection: Selection
    recovery: Selection | None
    examples: Examples
    origin: Manifest | None = None
    """With `quantise`: what the model was before."""
    choice: Choice | None = None
    """What `choose` measured, where this was done now."""


def prepare(recipe: Recipe, load: Callable[[str], Model]) -> Prepared:
    """Read the recipe's records, load its model by `load`, select. Records come first: their faults show before a model takes its time.

    Raises DataError for records that cannot be used or that are in training and test alike, ModelError, NoMatch and TiedSelection.
    """
    examples = read_examples(recipe)
    model = load(recipe.model)
    recipe, choice = _chosen(recipe, model)
    patterns = (*recipe.select, *(recipe.choose.taken if recipe.choose is not None else ()))
    selection = model.map.select(patterns, tie=recipe.tie, where=f"recipe {recipe.name}: select")
    recovery = None
    if recipe.recovery is not None:
        patterns = recipe.recovery.select or patterns
        recovery = model.map.select(patterns, tie=recipe.tie, where=f"recipe {recipe.name}: recovery.select")
    origin = None
    if recipe.quantise is not None:
        origin = model.manifest
        model = quantise(model, [one for one in (selection, recovery) if one is not None], recipe.quantise)
        told = f"trained and measured beside a base in {recipe.quantise}; every update is exact against the original, {origin.id[:12]}"
        examples = replace(examples, notes=(*examples.notes, told))
    if recipe.shard:
        model = shard(model)
    if choice is not None:
        examples = replace(examples, notes=(*examples.notes, f"choose took {choice.about}"))
    return Prepared(recipe=recipe, model=model, selection=selection, recovery=recovery, examples=examples, origin=origin, choice=choice)


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
        tasks.append(Task(name=skill.name, records=records, scorer=skill.scorer, max_new_tokens=skill.max_new_tokens, role="target"))
        infos.append(_info(tasks[-1], skill.test, skill.scorer))
    for index, held in enumerate(recipe.held_out):
        tests[held.name] = records = _some(held.test, f"held_out[{index}].test")
        task = Task(
            name=held.name, records=records, kind=held.kind, scorer=held.scorer, max_new_tokens=held.max_new_tokens, role="held-out"
        )
        tasks.append(task)
        infos.append(_info(task, held.test, held.scorer).model_copy(update={"margin": held.margin or recipe.gate.margin}))
    if recipe.recovery is not None:
        optim = recipe.optim.merged(recipe.recovery.optim)
        train[RECOVERY] = _a_batch(_some(recipe.recovery.train, "recovery.train"), optim.batch, "recovery.train")
    kept, sources = read_kept(recipe, RECOVERY, _some)
    pictures = None if recipe.probe.numbers is None else _some(recipe.probe.numbers, "probe.numbers")
    seen = train | {f"{name} (validation)": records for name, records in validation.items()} | sources
    notes = _leaks(recipe, seen, tests)
    return Examples(
        train=train, suite=Suite(tasks=tuple(tasks)), tasks=tuple(infos), validation=validation, kept=kept, pictures=pictures, notes=notes
    )


def is_synthetic(data: Data, records: Records) -> bool:
    """Whether the recipe or every record says that these were rendered."""
    return data.synthetic or all(bool(record.meta.get("synthetic")) for record in records)


def _some(data: Data, where: str) -> Records:
    records = read_records(data, where=where)
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


def _info(task: Task, data: Data, scorer: str) -> TaskInfo:
    synthetic = is_synthetic(data, task.records)
    return TaskInfo(name=task.name, role=task.role, kind=task.kind, scorer=scorer, synthetic=synthetic, about=data.about)


def _leaks(recipe: Recipe, train: Mapping[str, Records], tests: Mapping[str, Records]) -> tuple[str, ...]:
    """A sentence for each pair of training and test records that share something; DataError if the recipe does not allow it."""
    found = []
    for learned, records in train.items():
        for name, test in tests.items():
            leaks = leakage(records, test)
            shared = {identity for leak in leaks for identity in leak.test}
            if shared:
                found.append(
                    f"{len(shared)} of {len(test)} test records of {name} are in the training of {learned} too, such as {leaks[0].test[0]}"
                )
    if found and recipe.leakage == "refuse":
        raise DataError("; ".join(found), where="recipe", then="Take them out of one side, or allow it with leakage: report.")
    return tuple(found)
