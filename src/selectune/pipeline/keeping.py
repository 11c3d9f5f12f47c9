"""What each stage of a recipe is told to keep: the records that `keep` names, and those of the skills before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selectune.delta import snapshot
from selectune.recipe import Data, Keep, Recipe
from selectune.training import Keeping

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model
    from selectune.records import Records


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The records that one stage's `keep` names."""

    keep: Keep
    ewc: Records | None = None
    replay: Records | None = None
    anchors: Records | None = None


def read_kept(recipe: Recipe, recovery: str, read: Callable[[Data, str], Records]) -> tuple[dict[str, Kept], dict[str, Records]]:
    """By stage what its `keep` names (the recovery's under `recovery`), and every source once, by a name for messages.

    `read` is given a source and its place in the recipe. What several stages name alike is read once.
    """
    stages = {skill.name: (f"skills[{index}].keep", recipe.keep_of(skill)) for index, skill in enumerate(recipe.skills)}
    if recipe.recovery is not None:
        stages[recovery] = ("recovery.keep", recipe.recovery.keep)
    known: dict[str, Records] = {}
    sources: dict[str, Records] = {}

    def once(data: Data | None, where: str, name: str) -> Records | None:
        if data is None:
            return None
        key = data.model_dump_json()
        if key not in known:
            known[key] = sources[name] = read(data, where)
        return known[key]

    found = {}
    for stage, (where, keep) in stages.items():
        found[stage] = Kept(
            keep=keep,
            ewc=once(keep.ewc.data if keep.ewc else None, f"{where}.ewc.data", f"{stage} (keep.ewc)"),
            replay=once(keep.replay.data if keep.replay else None, f"{where}.replay.data", f"{stage} (keep.replay)"),
            anchors=once(keep.anchors.data if keep.anchors else None, f"{where}.anchors.data", f"{stage} (keep.anchors)"),
        )
    return found, sources


def keeping(kept: Kept, earlier: Mapping[str, Records]) -> Keeping:
    """What a stage is told to keep, after the skills whose training records are `earlier`."""
    replay: dict[str, Records] = {}
    settings = kept.keep.replay
    if settings is not None and settings.skills:
        replay |= earlier
    if settings is not None and settings.data is not None and kept.replay is not None:
        name = Path(settings.data.named).name
        replay[name if name not in replay else f"{name} (keep.replay)"] = kept.replay
    return Keeping(keep=kept.keep, ewc=kept.ewc, replay=replay, anchors=kept.anchors)


def with_base(model: Model, selection: Selection, stages: Mapping[str, tuple[Keeping, Selection]]) -> dict[str, Keeping]:
    """The same, where a teacher is the base with what it was before the first skill: its own values of `selection`, and of nothing else.

    For the first stage the model is the base. Raises InputError for a stage that could not put the base back.
    """
    found = {name: told for name, (told, _) in stages.items()}
    wanted = [name for name, told in list(found.items())[1:] if _asks_base(told.keep)]
    if wanted:
        base = snapshot(model, selection, known=model.manifest)
        for name in wanted:
            found[name] = replace(found[name], base=base)
            found[name].check(stages[name][1])
    return found


def _asks_base(keep: Keep) -> bool:
    return any(part is not None and part.teacher == "base" for part in (keep.distill, keep.anchors))


def kept_digests(kept: Mapping[str, Kept]) -> dict[str, str]:
    """The digest of every source that a `keep` names, by stage and field."""
    return {
        f"{stage} ({name})": records.digest
        for stage, one in kept.items()
        for name, records in (("keep.ewc", one.ewc), ("keep.replay", one.replay), ("keep.anchors", one.anchors))
        if records is not None
    }
