"""A checkpoint that somebody fine-tuned, or a LoRA adapter, as a delta of its base, with a report of what it moved.

Both are read tensor by tensor from their files; neither's code is run, and of the checkpoint's folder only its tensors, and for a note its
config.json, are looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from selectune.components import views
from selectune.components.covering import covering, smallest_preset
from selectune.components.patterns import family
from selectune.delta.bits import bit_view
from selectune.delta.values import build
from selectune.errors import ModelError, SameModel
from selectune.hashing import dtype_name, parse_json, tensor_digest
from selectune.pipeline.adapters import CONFIG, FACTORS, AdapterTensors
from selectune.pipeline.deriving import add_delta, open_base
from selectune.pipeline.recording import MODEL
from selectune.pipeline.slots import read_slots, weight_folder
from selectune.pipeline.tensors import FolderTensors, Tensors, outlined
from selectune.registry import Update
from selectune.untrusted import LARGEST_CONFIG, check_folder

if TYPE_CHECKING:
    from selectune.components import Component, ComponentMap
    from selectune.delta import Delta
    from selectune.registry import Registry

_SAID = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"})
"""Settings that a fine-tuning changes and that are not about what the model computes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyMoved:
    """One family of components: what of it moved."""

    family: str
    moved: int
    """Components with a number that moved."""
    of: int
    elements: int
    """Numbers that moved."""
    of_elements: int

    @property
    def share(self) -> float:
        """The share of the family's numbers that moved."""
        return self.elements / self.of_elements


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint as an update."""

    update: str
    delta: Delta
    families: tuple[FamilyMoved, ...]
    """In the model's order, those that did not move too."""
    patterns: tuple[str, ...]
    """What selects exactly the components that moved."""
    preset: str | None
    """The smallest preset that has them all in it; None where none has."""
    preset_elements: int
    """How many elements that one selects."""
    elements: int
    """Of the components that moved."""
    total: int
    """Of the whole model."""
    notes: tuple[str, ...]

    @property
    def moved(self) -> int:
        """Numbers that moved."""
        return sum(row.elements for row in self.families)

    def to_json(self) -> dict[str, Any]:
        """The report."""
        return {
            "update": self.update,
            "parent_model": self.delta.parent,
            "model_id": self.delta.child,
            "moved": self.moved,
            "elements": self.elements,
            "total": self.total,
            "families": [asdict(row) | {"share": row.share} for row in self.families],
            "patterns": list(self.patterns),
            "preset": self.preset,
            "preset_elements": self.preset_elements,
            "notes": list(self.notes),
        }


class _Other(Protocol):
    """The tensors of the checkpoint that may differ from the base's."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names in memory."""

    def read(self, name: str) -> Tensor:
        """One of them."""


def import_checkpoint(folder: Path, base: str, registry: Registry, *, skill: str = "", actor: str = "") -> Imported:
    """Records a checkpoint folder, or an adapter's, as an update of `base`: a model, or an update of the registry.

    Its verdict is empty: nobody measured it here. An adapter's matrices are kept with it, as the attachment `factors.safetensors`. Raises
    ModelError for a hostile folder, for files that are not of the base's architecture, with the names of tensors that came, went, or have
    another shape or dtype; NotYet for an adapter that is not plain LoRA; SameModel where not one bit differs.
    """
    found = open_base(base, registry)
    notes: tuple[str, ...] = ()
    adapter = AdapterTensors(found.tensors, folder) if (folder / CONFIG).is_file() else None
    other: _Other
    if adapter is not None:
        other, kind = adapter, "adapter"
    else:
        check_folder(folder)
        other, kind = _opened(folder, found.tensors), "checkpoint"
        notes = _other_settings(folder, found.model)
    delta, moved = _extracted(found.tensors, other, kind)
    meta = {MODEL: found.model, "imported": delta.meta["imported"]}
    update = Update(parent=found.update, skill=skill or folder.resolve().name, meta=meta, actor=actor)
    preset = smallest_preset(found.tensors.map, moved)
    return Imported(
        update=add_delta(registry, update, delta, found.tensors, {FACTORS: adapter.factors()} if adapter is not None else {}),
        delta=delta,
        families=_families(found.tensors.map, moved),
        patterns=delta.patterns,
        preset=preset[0] if preset else None,
        preset_elements=preset[1].elements if preset else 0,
        elements=delta.elements,
        total=found.tensors.map.elements,
        notes=notes,
    )


def _opened(folder: Path, base: Tensors) -> FolderTensors:
    """The checkpoint's tensors under the base's names; every one is there, with the base's shape and dtype."""
    other = FolderTensors(outlined(base.net), folder, read_slots(folder), str(folder))
    where = f"checkpoint {folder}"
    then = "A delta keeps names, shapes and dtypes: give the base that it was trained from, or convert the checkpoint first."
    if other.lacking:
        shown = ", ".join(other.lacking[:3])
        raise ModelError(f"it lacks {len(other.lacking)} of the base's tensors: {shown}", where=where, then=then)
    theirs = base.slots if isinstance(base, FolderTensors) else {}
    wrong = []
    held = {}
    for name in other.names:
        for spelled, wanted in other.expected(name).items():
            slot, dtype, shape = other.slots[spelled], dtype_name(wanted.dtype), tuple(wanted.shape)
            held[spelled] = name
            dtypes = {dtype, theirs[spelled].dtype} if spelled in theirs else {dtype}
            if slot.shape != shape or slot.dtype not in dtypes:
                wrong.append(f"{spelled[:120]} is {slot.dtype} {list(slot.shape)} and was {dtype} {list(shape)}")
    copies = _copies(other)
    wrong += [
        f"{one[:120]} is another tensor than {first}, and in the base they are tied"
        for one, first in copies.items()
        if tensor_digest(other.raw(one)) != tensor_digest(other.raw(first))
    ]
    wrong += [f"{one[:120]} is not in the base" for one in other.slots if one not in held and one not in copies and one not in theirs]
    if wrong:
        shown = "; ".join(wrong[:3])
        raise ModelError(f"{len(wrong)} of its tensors do not fit the base: {shown}", where=where, then=then)
    return other


def _copies(other: FolderTensors) -> Mapping[str, str]:
    """Copies of tied tensors that the files hold under their other names, by the files' names: which one they are copies of."""
    found: dict[str, str] = {}
    for first in other.plan.aliases:
        held = other.places(first).values()
        for group in other.copies(first):
            found |= dict(zip(other.spelled(group).values(), held, strict=True))
    return found


def _other_settings(folder: Path, base: str) -> tuple[str, ...]:
    """A note for settings of config.json that differ: a delta holds tensors alone."""
    home = weight_folder(base)
    if home is None or not (home / "config.json").is_file():
        return ()
    old, new = (parse_json((one / "config.json").read_bytes(), limit=LARGEST_CONFIG) for one in (home, folder))
    odd = sorted(key for key in (old.keys() | new.keys()) - _SAID if old.get(key) != new.get(key))
    return (f"config.json differs in {', '.join(key[:60] for key in odd[:5])}; a delta holds tensors, so the base's remain",) if odd else ()


Moved = Mapping[str, int]
"""By component: how many of its numbers moved."""


def _extracted(base: Tensors, other: _Other, kind: str) -> tuple[Delta, Moved]:
    """The delta, and what moved. Raises SameModel for none, ModelError for a buffer, which no component has."""
    by_parameter: dict[str, list[Component]] = {}
    for component in base.map.components:
        by_parameter.setdefault(component.parameter, []).append(component)
    moved: dict[str, int] = {}
    touched: set[str] = set()
    digests = hashlib.sha256()
    for name in other.names:
        new = other.read(name)
        sha256 = tensor_digest(new)
        digests.update(f"{name}\n{sha256}\n".encode())
        if sha256 == base.manifest[name].sha256:
            continue
        if name not in by_parameter:
            then = "A delta of selectune holds parameters: give a checkpoint in which running statistics and other buffers stood still."
            raise ModelError(f"the buffer {name} differs from the base's", where="import", then=then)
        bits = bit_view(base.read(name).contiguous()) ^ bit_view(new.contiguous())
        counts = [sum(int((view != 0).sum()) for view in views(bits, one.slice)) for one in by_parameter[name]]
        for one, count in zip(by_parameter[name], counts, strict=True):
            moved[one.name] = moved.get(one.name, 0) + count
        touched.add(name)
    if not touched:
        raise SameModel("not one bit differs from the base", where="import", then="Give the checkpoint after its training.")
    names = {name for name, count in moved.items() if count}
    patterns = _patterns(base.map, names)
    selection = base.map.select(patterns, tie="allow", where="import")
    chosen = {name: parts or (None,) for name, parts in selection.parameters.items()}

    def change(name: str) -> tuple[Tensor, str]:
        new = other.read(name) if name in touched else base.read(name)
        return bit_view(base.read(name).contiguous()) ^ bit_view(new.contiguous()), tensor_digest(new)

    note = {"kind": kind, "sha256": digests.hexdigest()}
    return build(base.manifest, chosen, change, patterns=patterns, meta={"imported": note}), {name: moved[name] for name in names}


def _patterns(found: ComponentMap, names: set[str]) -> tuple[str, ...]:
    """The preset that is exactly these components, else patterns of ours."""
    preset = smallest_preset(found, names)
    return (preset[0],) if preset and set(preset[1].names) == names else covering(found, names)


def _families(found: ComponentMap, moved: Moved) -> tuple[FamilyMoved, ...]:
    components: dict[str, dict[str, None]] = {}
    elements: dict[str, int] = {}
    for component in found.components:
        row = family(component.name)
        components.setdefault(row, {})[component.name] = None
        elements[row] = elements.get(row, 0) + component.elements
    return tuple(
        FamilyMoved(
            family=row,
            moved=sum(name in moved for name in names),
            of=len(names),
            elements=sum(moved.get(name, 0) for name in names),
            of_elements=elements[row],
        )
        for row, names in components.items()
    )
