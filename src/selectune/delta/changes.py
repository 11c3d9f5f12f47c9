"""What changed in a model, put on and taken off, exactly: extract, apply, revert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from selectune.components.slices import Region, region_shape
from selectune.delta.bits import flip, look, outside_digest, put, read, torch_dtype, write
from selectune.delta.encoding import Bytes
from selectune.delta.format import Delta, Part, Touched
from selectune.delta.values import parts_of, touched
from selectune.errors import DeltaError, SelectionViolated, WrongParent
from selectune.hashing import Entry, Manifest, canonical, dtype_name, manifest, manifest_of, tensor_digest, tensor_entry, threads_for
from selectune.network import bare, state
from selectune.threads import each

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model

__all__ = ["Snapshot", "after", "applied", "apply", "check_tensor", "extract", "net_of", "onto", "restore", "revert", "snapshot"]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A model at one moment: the bits of a selection, and digests of everything else."""

    manifest: Manifest
    bits: Mapping[tuple[str, Region | None], Bytes]
    """The selection's raw bytes, one array for each (parameter, region)."""
    outside: Mapping[str, str]
    """For each parameter of which only regions are selected: the digest of the rest."""


def net_of(model: Model | torch.nn.Module) -> torch.nn.Module:
    """The network itself, of a `Model` or as it is, inside what is wrapped around it."""
    return bare(model if isinstance(model, torch.nn.Module) else model.net)


def regions(selection: Selection) -> list[tuple[str, Region | None]]:
    """The selection's (parameter, region) pairs, sorted by parameter: one part of a delta each."""
    return [(name, region) for name, parts in sorted(selection.parameters.items()) for region in ((None,) if parts is None else parts)]


def snapshot(model: Model | torch.nn.Module, selection: Selection, *, known: Manifest | None = None) -> Snapshot:
    """The selection's current bits, with digests of all the rest.

    Reads every tensor unless `known`, the manifest of this very moment, is given. Costs as much memory as the selection. Raises DeltaError
    for a selection that was made on another model.
    """
    tensors = state(net_of(model))
    pairs = regions(selection)
    for name, region in pairs:
        if name not in tensors:
            raise DeltaError(f'the selection has a parameter "{name}" that the model lacks', then="Select from the map of this very model.")
        region_shape(tuple(tensors[name].shape), region)
    return Snapshot(
        manifest=known or manifest(net_of(model)),
        bits={(name, region): read(tensors[name], region) for name, region in pairs},
        outside={
            name: outside_digest(tensors[name], _inside(pairs, name)) for name in {name for name, region in pairs if region is not None}
        },
    )


def _inside(pairs: Sequence[tuple[str, Region | None]], name: str) -> tuple[Region, ...]:
    return tuple(region for other, region in pairs if other == name and region is not None)


def extract(model: Model | torch.nn.Module, before: Snapshot, selection: Selection, *, meta: Mapping[str, Any] | None = None) -> Delta:
    """The delta from `before` to what the network holds now. The network is left as it is.

    Reads every tensor again and so proves that nothing outside the selection moved. Raises SelectionViolated if something did, and
    DeltaError if tensors came, went, or changed dtype or shape: that is another model, not a child.
    """
    canonical(dict(meta or {}))
    tensors = state(net_of(model))
    _same_tensors(tensors, before.manifest)
    pairs = regions(selection)
    now = manifest_of(tensors)
    _refuse_outside(tensors, before, now, pairs)

    def part(pair: tuple[str, Region | None]) -> Part:
        name, region = pair
        shape = region_shape(tuple(tensors[name].shape), region)
        return Part.of(name, region, shape, look(tensors[name], region), old=before.bits[name, region])

    parts = each(part, pairs, threads=threads_for(tensors.values()))
    touched = {
        name: Touched(dtype=now[name].dtype, shape=now[name].shape, old=before.manifest[name].sha256, new=now[name].sha256)
        for name in sorted({name for name, _ in pairs})
    }
    return Delta(
        parent=before.manifest.id, child=now.id, patterns=selection.patterns, tensors=touched, parts=tuple(parts), meta=dict(meta or {})
    )


def restore(model: Model | torch.nn.Module, before: Snapshot) -> None:
    """Puts the selection's bits back to what they were at `before`, in place, whatever they are now."""
    tensors = state(net_of(model))
    with torch.no_grad():
        for (name, region), bits in before.bits.items():
            write(tensors[name], region, bits)


def onto(delta: Delta, parent: Manifest, model: Model | None = None) -> Delta:
    """The same change from another parent: one that has the same bits in every tensor that the delta touches, or the same numbers.

    So an update that was trained beside a quantised base, or in fp32, becomes one of the original, and the other way round. Where dtypes
    differ, `model` is needed, which holds the delta's parent or `parent`; new numbers are then rounded to nearest, once. Raises WrongParent
    where a touched tensor differs.
    """
    same = {name for name, one in delta.tensors.items() if name in parent and parent[name].sha256 == one.old}
    cast: dict[str, Touched] = {}
    parts = list(delta.parts)
    if model is not None:
        tensors = state(model.net)
        for name in delta.tensors.keys() - same:
            found = _recast(delta, name, tensors[name], parent[name]) if name in parent and name in tensors else None
            if found is not None:
                cast[name] = found[0]
                parts = [found[1].get(part.slice, part) if part.parameter == name else part for part in parts]
    other = sorted(delta.tensors.keys() - same - cast.keys())
    if other:
        raise WrongParent(
            f"{len(other)} tensors that the delta touches are others in model {parent.id[:12]}: {', '.join(other[:3])}",
            where="onto",
            then="Give a model whose selected parts are those that were trained.",
        )
    moved = replace(delta, parent=parent.id, tensors={**delta.tensors, **cast}, parts=tuple(parts))
    return replace(moved, child=after(moved, parent).id)


def after(delta: Delta, parent: Manifest) -> Manifest:
    """What the delta makes of its parent's tensors."""
    return touched(parent, delta.tensors)


def _recast(delta: Delta, name: str, tensor: torch.Tensor, wanted: Entry) -> tuple[Touched, dict[Region | None, Part]] | None:
    """One touched tensor in another dtype, with its parts by region; None where it does not hold the same numbers."""
    one = delta.tensors[name]
    old = tensor.detach().to("cpu", torch_dtype(one.dtype), copy=True)
    start = old.to(torch_dtype(wanted.dtype), copy=True)
    if tensor_digest(old) != one.old or tensor_entry(start) != wanted:
        return None
    mine = list(parts_of(delta, name))
    for part in mine:
        flip(old, part.slice, part.bits(delta.itemsize(part)))
    goal = old.to(torch_dtype(wanted.dtype))
    parts = {part.slice: Part.of(name, part.slice, part.shape, look(goal, part.slice), old=look(start, part.slice)) for part in mine}
    return Touched(dtype=wanted.dtype, shape=wanted.shape, old=wanted.sha256, new=tensor_digest(goal)), parts


def _same_tensors(tensors: Mapping[str, torch.Tensor], old: Manifest) -> None:
    """The same names, dtypes and shapes."""
    if tensors.keys() != old.keys():
        odd = sorted(tensors.keys() ^ old.keys())
        raise DeltaError(
            f'the model gained or lost {len(odd)} tensors, "{odd[0]}" for one',
            then="Add tokens, adapters and heads before the delta begins.",
        )
    for name, tensor in tensors.items():
        dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
        if (dtype, shape) != (old[name].dtype, old[name].shape):
            raise DeltaError(
                f'"{name}" was {old[name].dtype} {list(old[name].shape)} and is {dtype} {list(shape)}',
                then="Convert or resize the model before the delta begins: a delta keeps dtypes and shapes.",
            )


def _refuse_outside(
    tensors: Mapping[str, torch.Tensor], before: Snapshot, now: Manifest, pairs: Sequence[tuple[str, Region | None]]
) -> None:
    selected = {name for name, _ in pairs}
    moved = [name for name in now if name not in selected and now[name] != before.manifest[name]]
    moved += [name for name, old in before.outside.items() if outside_digest(tensors[name], _inside(pairs, name)) != old]
    if moved:
        shown = ", ".join(sorted(moved)[:5]) + (", …" if len(moved) > 5 else "")
        raise SelectionViolated(
            f"{len(moved)} tensors moved outside the selection: {shown}",
            then="Look for weight decay on a frozen slice, batch-norm statistics, or an optimizer built before the selection was set.",
        )


def apply(model: Model, delta: Delta) -> Model:
    """The child: `model`'s network changed in place, tied weights still tied, with its manifest.

    The parent's id is checked before a bit is written, the bytes of every touched tensor once they are: with one wrong bit before, or in
    the delta, they are not the child's. Raises WrongParent, or DeltaError for a damaged delta and for weights that are not what the
    model's id says; the network is then as it was. On as many threads as there are cores.
    """
    _check_parent(model, delta)
    return _move(model, delta, forward=True)


def _check_parent(model: Model, delta: Delta) -> None:
    if model.manifest.id != delta.parent:
        hint = "This delta is already applied." if model.manifest.id == delta.child else "Apply the deltas of the parent's own chain first."
        raise WrongParent(f"the delta is for model {delta.parent[:12]}, this is {model.manifest.id[:12]}", where="apply", then=hint)


def revert(model: Model, delta: Delta) -> Model:
    """The parent again: the inverse of `apply`, with the same checks. Raises WrongParent for a model that is not the delta's child.

    Raises DeltaError for a snapshot that holds new bits: what was there before is not in it.
    """
    if model.manifest.id != delta.child:
        raise WrongParent(
            f"the delta leads to model {delta.child[:12]}, this is {model.manifest.id[:12]}",
            where="revert",
            then="Take later deltas off first, the newest before the older.",
        )
    if any(part.replaces for part in delta.parts):
        raise DeltaError("a snapshot with new bits cannot be taken back", where="revert", then="Revert the updates' own deltas.")
    return _move(model, delta, forward=False)


def _move(model: Model, delta: Delta, *, forward: bool) -> Model:
    tensors = state(model.net)
    verb = "apply" if forward else "revert"
    old, new = {}, {}
    for name, one in delta.tensors.items():
        start, goal = (one.old, one.new) if forward else (one.new, one.old)
        old[name] = Entry(dtype=one.dtype, shape=one.shape, sha256=start)
        new[name] = Entry(dtype=one.dtype, shape=one.shape, sha256=goal)
        _check_form(tensors, name, old[name], verb)
        if model.manifest[name] != old[name]:
            raise DeltaError(f'"{name}" is not what the delta was made on', where=verb, then="Fetch the file again.")
    result = model.manifest.replace(new)
    if result.id != (delta.child if forward else delta.parent):
        raise DeltaError(
            "the tensors that the delta lists do not lead to the model that it names", where=verb, then="Fetch the file again."
        )
    _put_all(tensors, delta, (old, new), verb)
    return model.updated(result)


def check_tensor(tensors: Mapping[str, torch.Tensor], name: str, wanted: Entry, verb: str) -> None:
    """Raises DeltaError where a model's tensor is not the one that is wanted; `verb` is what cannot be done then."""
    _check_form(tensors, name, wanted, verb)
    if (found := tensor_digest(tensors[name])) != wanted.sha256:
        raise _moved_in_memory(name, found, wanted, verb)


def _check_form(tensors: Mapping[str, torch.Tensor], name: str, wanted: Entry, verb: str) -> None:
    if name not in tensors:
        raise DeltaError(f'the model has no tensor "{name[:200]}"', where=verb, then="Apply the delta to the model that it was made on.")
    dtype, shape = dtype_name(tensors[name].dtype), tuple(tensors[name].shape)
    if (dtype, shape) != (wanted.dtype, wanted.shape):
        what = f'"{name}" is {dtype} {list(shape)}, the delta is of {wanted.dtype} {list(wanted.shape)}'
        raise DeltaError(what, where=verb, then="Apply the delta to the model that it was made on.")


def _moved_in_memory(name: str, found: str, wanted: Entry, verb: str) -> DeltaError:
    return DeltaError(
        f'"{name}" is not what the model\'s id says: {found[:12]}, expected {wanted.sha256[:12]}',
        where=verb,
        then="Something changed the weights in memory: load the model again.",
    )


def _put_all(
    tensors: Mapping[str, torch.Tensor], delta: Delta, entries: tuple[Mapping[str, Entry], Mapping[str, Entry]], verb: str
) -> None:
    """Moves every part and checks each tensor; what was moved is moved back if anything is wrong."""
    done: list[tuple[Part, Bytes | None]] = []
    parts: dict[str, list[Part]] = {name: [] for name in entries[1]}
    for part in delta.parts:
        parts[part.parameter].append(part)

    def move(name: str) -> str:
        with torch.no_grad():
            for part in parts[name]:
                # Not hashed by itself: the tensor is, as soon as it has all its parts.
                old = put(tensors[name], part, delta.itemsize(part), checked=False)
                done.append((part, old))
        return tensor_digest(tensors[name])

    wrong: dict[str, str] = {}
    try:
        digests = dict(zip(parts, each(move, parts, threads=threads_for(tensors[name] for name in parts)), strict=True))
        wrong = {name: found for name, found in digests.items() if found != entries[1][name].sha256}
        if wrong:
            raise _Wrong
    except BaseException as error:
        # Also after Ctrl-C: half a delta is no model. Xor is its own inverse, whatever the bits were.
        with torch.no_grad():
            for part, old in reversed(done):
                raw = part.raw(delta.itemsize(part), checked=False) if old is None else old
                (flip if old is None else write)(tensors[part.parameter], part.slice, raw)
        if not isinstance(error, _Wrong):
            raise
    for name, found in wrong.items():
        check_tensor(tensors, name, entries[0][name], verb)
        raise DeltaError(
            f'"{name}" became {found[:12]}, expected {entries[1][name].sha256[:12]}',
            where=verb,
            then="The delta is damaged: fetch it again.",
        )


class _Wrong(Exception):
    """A tensor became another than the delta says."""


@contextmanager
def applied(model: Model, delta: Delta) -> Iterator[Model]:
    """The child inside the block, the parent again after it, also when the block raises.

    Of a snapshot that holds new bits, what they are put in place of is kept meanwhile. Raises DeltaError on leaving if the block changed
    the touched weights: nothing can say then what they were.
    """
    reversible = _reversible(model, delta)
    child = apply(model, reversible)
    try:
        yield child
    finally:
        revert(child, reversible)


def _reversible(model: Model, delta: Delta) -> Delta:
    """The same delta with the xor from the parent's tensors where it holds new bits."""
    if not any(part.replaces for part in delta.parts):
        return delta
    _check_parent(model, delta)
    tensors = state(model.net)

    def part(one: Part) -> Part:
        if not one.replaces:
            return one
        touched = delta.tensors[one.parameter]
        _check_form(tensors, one.parameter, Entry(dtype=touched.dtype, shape=touched.shape, sha256=touched.old), "apply")
        bits = np.bitwise_xor(read(tensors[one.parameter], one.slice), one.raw(delta.itemsize(one)))
        return Part.of(one.parameter, one.slice, one.shape, bits)

    return replace(delta, parts=tuple(each(part, delta.parts, threads=threads_for(tensors.values()))))
