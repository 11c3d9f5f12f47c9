"""An update as the registry keeps it, and as the report tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.pipeline.adapters import FACTORS
from selectune.pipeline.keeping import kept_digests
from selectune.recipe import dump_recipe
from selectune.registry import Update
from selectune.reporting.trained import UpdateInfo

if TYPE_CHECKING:
    from selectune.delta import Delta
    from selectune.delta.values import Read
    from selectune.pipeline.folder import StageDocument
    from selectune.pipeline.preparing import Prepared
    from selectune.registry import Registry

MODEL = "model"
"""The key of an update's `meta` that holds the name of the base model, by which `selectune apply` loads it."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage made."""

    document: StageDocument
    delta: Delta
    file: Path
    """The delta, saved."""
    parent: UpdateInfo | None
    scores: Mapping[str, Mapping[str, float | int]]
    """By task: the mean score (`value`) of the model after it, and of how many samples (`n`)."""
    factors: bytes | None = None
    """With LoRA: its matrices, as `pipeline.adapters` writes them."""
    values: Read | None = None
    """Gives tensors of the model that the delta leads to, one at a time; None where no process has them whole."""


def record_update(registry: Registry, prepared: Prepared, made: Made) -> UpdateInfo:
    """Add what a stage made to the registry, whether the gate accepted it or not. The same recipe and records give the same id."""
    examples, recipe, document = prepared.examples, prepared.recipe, made.document
    phase, verdict, records = document.phase, document.verdict, examples.train[document.stage]
    update = Update(
        parent=made.parent.id if made.parent else None,
        skill=document.stage,
        recipe={"name": recipe.name, "digest": recipe.digest, "seed": recipe.seed, "select": list(prepared.selection.patterns)},
        verdict=verdict.verdict if verdict else "",
        metrics={"scores": made.scores} | ({"rules": [_rule(rule.model_dump(mode="json")) for rule in verdict.rules]} if verdict else {}),
        records={
            "train": {"digest": records.digest, "n": len(records)},
            **({"kept": kept} if (kept := kept_digests(examples.kept)) else {}),
            "suite": examples.suite.digest,
            "tests": {task.name: {"digest": task.records.digest, "n": len(task.records)} for task in examples.suite.tasks},
        },
        meta={MODEL: prepared.model.name, "optim": phase.optim if phase else {}, "steps": len(phase.steps) if phase else 0},
    )
    factors = {} if made.factors is None else {FACTORS: made.factors}
    identity = registry.add(update, made.file, {"recipe.yaml": dump_recipe(recipe).encode(), **factors}, values=made.values)
    return describe(registry.show(identity), elements=made.delta.moved(), size=made.file.stat().st_size)


def describe(update: Update, *, elements: int = 0, size: int = 0) -> UpdateInfo:
    """An update for the report: `elements` is how many its delta changed, `size` the bytes of its file."""
    return UpdateInfo(
        id=update.id,
        parent=update.parent,
        base=update.base,
        child=update.child,
        skill=update.skill,
        verdict=update.verdict or None,  # type: ignore[arg-type]
        names=update.names,
        elements=elements,
        bytes=size,
        created=update.created,
    )


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule's numbers, without the sentence that is made from them."""
    return {name: value for name, value in rule.items() if name != "evidence"}
