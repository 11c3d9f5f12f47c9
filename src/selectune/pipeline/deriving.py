"""Updates made of updates: compared, merged and carried to a newer base. The base is read tensor by tensor, never held whole."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.delta import Delta, onto
from selectune.delta.difference import Difference, difference
from selectune.delta.merging import Strategy, merge
from selectune.delta.rebasing import carry, differing
from selectune.errors import ModelError, RegistryError, WrongParent
from selectune.models import providers
from selectune.pipeline.lineage import said_of
from selectune.pipeline.recording import MODEL
from selectune.pipeline.tensors import Tensors, VersionTensors, open_tensors
from selectune.registry import Update

if TYPE_CHECKING:
    from selectune.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Base:
    """What an update may begin from."""

    model: str
    """The name of the model at the beginning, as updates record it."""
    update: str | None
    """The update that leads to it; None for the model itself."""
    tensors: Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What the gate of one update said of a task."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Behaviour:
    """One number that both updates' measurements gave, or one of them."""

    task: str
    what: str
    """`score`, or the gate's rule: a change of the score against the model that `against` names."""
    against: str
    a: Side | None
    b: Side | None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two updates: their tensors, and what was measured of them."""

    a: Update
    b: Update
    difference: Difference
    behaviour: tuple[Behaviour, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rebased:
    """An update on a newer base."""

    update: str
    delta: Delta
    differing: tuple[str, ...]
    """Touched tensors that are others in the new base; none where the move was exact."""


def open_base(name: str, registry: Registry) -> Base:
    """A model by name, or an update of the registry, with its tensors. Raises ModelError or RegistryError for neither."""
    if name in providers() or Path(name).expanduser().exists() or "/" in name:
        return Base(model=name, update=None, tensors=open_tensors(name))
    found = registry.show(name)
    deltas = registry.chain(found.id)
    return Base(model=model_of(found), update=found.id, tensors=VersionTensors(open_tensors(model_of(found)), deltas))


def diff_updates(registry: Registry, first: str, second: str, *, spectra: int = 8, k: int = 8) -> Compared:
    """What lies between two updates that come from one model. Where that one cannot be read, bits alone, and a note that says so.

    Raises RegistryError for unknown updates, WrongParent for two that have no model in common.
    """
    a, b = registry.show(first), registry.show(second)
    chains = registry.steps(a.id), registry.steps(b.id)
    shared = _shared(*chains)
    notes: list[str] = []
    tensors: Tensors | None = None
    try:
        base = open_tensors(model_of(a))
        tensors = VersionTensors(base, chains[0][: shared[0]]) if shared[0] else base
    except (ModelError, RegistryError) as error:
        notes.append(f"no norms, angles and spectra: {error}")
    found = difference(
        chains[0][shared[0] :],
        chains[1][shared[1] :],
        tensors.read if tensors else None,
        components=tensors.map if tensors else None,
        spectra=spectra,
        k=k,
    )
    if a.records.get("suite") != b.records.get("suite"):
        notes.append("the two were measured on other suites: their scores stand side by side, and are not of the same records")
    notes += said_of(registry.standing(), {"A": a.id, "B": b.id})
    return Compared(a=a, b=b, difference=found, behaviour=_behaviour(a, b), notes=tuple(notes))


def merge_updates(registry: Registry, first: str, second: str, strategy: Strategy | None = None, *, actor: str = "") -> Update:
    """Records the merged update of two of one parent, a candidate without a verdict. Raises what `delta.merging.merge` raises."""
    a, b = registry.show(first), registry.show(second)
    deltas = registry.delta(a.id), registry.delta(b.id)
    if deltas[0].parent != deltas[1].parent:
        raise WrongParent(
            f"{a.id[:12]} is of model {a.base[:12]}, {b.id[:12]} of {b.base[:12]}",
            where="merge",
            then=f"Carry one to the other's parent first: selectune rebase {b.id[:12]} {(a.parent or model_of(a))[:60]}",
        )
    parent = _parent_tensors(registry, a)
    of = sorted((a.id, b.id))
    merged = merge(*deltas, parent.manifest, parent.read, strategy, meta={"updates": of})
    note = {"of": of, "strategy": merged.meta["merged"]["strategy"], "settings": merged.meta["merged"]["settings"]}
    names = sorted({a.skill, b.skill} - {""})
    update = Update(parent=a.parent, skill="+".join(names), meta={MODEL: model_of(a), "merged": note}, actor=actor)
    return registry.show(add_delta(registry, update, merged, parent))


def rebase_update(registry: Registry, wanted: str, base: str, *, as_candidate: bool = False, actor: str = "") -> Rebased:
    """Records an update on another base, a model or an update: exactly where the touched tensors are the same, else only `as_candidate`.

    Raises WrongParent where a touched tensor differs and no candidate is asked for, and what `delta.rebasing.carry` raises.
    """
    update = registry.show(wanted)
    delta = registry.delta(update.id)
    target = open_base(base, registry)
    parent = target.tensors.manifest
    if parent.id == delta.parent:
        raise WrongParent(f"{update.id[:12]} is of model {parent.id[:12]} already", where="rebase", then="Give a newer base.")
    others = differing(delta, parent)
    if others and not as_candidate:
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise WrongParent(
            f"{len(others)} of {len(delta.tensors)} tensors that {update.id[:12]} touches are others in model {parent.id[:12]}: {shown}",
            where="rebase",
            then="With --as-candidate the change is added to what they are now: another model, for a gate to judge.",
        )
    moved = carry(delta, parent, _parent_tensors(registry, update).read, target.tensors.read) if others else onto(delta, parent)
    note = {"of": update.id, "differing": list(others)}
    recorded = Update(parent=target.update, skill=update.skill, meta={MODEL: target.model, "rebased": note}, actor=actor)
    return Rebased(update=add_delta(registry, recorded, moved, target.tensors), delta=moved, differing=others)


def add_delta(registry: Registry, update: Update, delta: Delta, parent: Tensors, attachments: Mapping[str, bytes] | None = None) -> str:
    """Records an update of `parent` whose delta is in no file yet, and returns its id. Raises what `Registry.add` raises."""
    with tempfile.TemporaryDirectory(prefix="selectune-update-") as place:
        file = Path(place) / "update.delta"
        delta.save(file)
        return registry.add(update, file, attachments, values=VersionTensors(parent, [delta]).read)


def model_of(update: Update) -> str:
    """The name of the model at the beginning of an update's line. Raises RegistryError where it was not recorded."""
    name = update.meta.get(MODEL)
    if not isinstance(name, str):
        raise RegistryError(f"update {update.id[:12]} does not say which model it is of", then="Record it with the name of its base.")
    return name


def _parent_tensors(registry: Registry, update: Update) -> Tensors:
    """The tensors of the model that an update was made on."""
    base = open_tensors(model_of(update))
    return VersionTensors(base, registry.chain(update.parent)) if update.parent else base


def _shared(first: Sequence[Delta], second: Sequence[Delta]) -> tuple[int, int]:
    """How many deltas of each chain lead to the last model that both pass through."""
    passed = {model: number for number, model in enumerate([first[0].parent, *(delta.child for delta in first)])}
    for number, model in reversed(list(enumerate([second[0].parent, *(delta.child for delta in second)]))):
        if model in passed:
            return passed[model], number
    what = f"they come from models {first[0].parent[:12]} and {second[0].parent[:12]}, and have none in common"
    raise WrongParent(what, where="diff", then="Compare updates of one base, or rebase one of them.")


def _behaviour(a: Update, b: Update) -> tuple[Behaviour, ...]:
    sides = _measured(a), _measured(b)
    return tuple(
        Behaviour(what=key[0], task=key[1], against=key[2], a=sides[0].get(key), b=sides[1].get(key))
        for key in dict.fromkeys([*sides[0], *sides[1]])
    )


def _measured(update: Update) -> Mapping[tuple[str, str, str], Side]:
    """What was recorded with an update: scores, then the gate's rules."""
    found: dict[tuple[str, str, str], Side] = {}
    scores = update.metrics.get("scores")
    for task, score in scores.items() if isinstance(scores, dict) else ():
        found[("score", str(task), "")] = _side(score)
    rules = update.metrics.get("rules")
    for rule in rules if isinstance(rules, list) else ():
        found[(str(rule.get("name")), str(rule.get("task")), str(rule.get("against")))] = _side(rule)
    return found


def _side(row: Mapping[str, Any]) -> Side:
    """The numbers of one row; what is none is left out."""
    value, low, high = (float(one) if isinstance(one := row.get(key), int | float) else None for key in ("value", "low", "high"))
    return Side(value=value, low=low, high=high, n=int(row.get("n") or 0), verdict=str(row.get("verdict") or ""))
