"""What fits into the memory that there is, and what to change where a training does not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selectune.recipe import Adapter
from selectune.training.forecast import Load, Quantised, forecast
from selectune.training.machine import UNKNOWN, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selectune.components import Selection
    from selectune.models import Model
    from selectune.recipe import Optim


@dataclass(frozen=True, kw_only=True)
class Change:
    """One way to need less memory."""

    setting: str
    """As it is written in a recipe."""
    total: int
    """Bytes that the training takes then."""


def free(device: str = "cpu") -> int:
    """Bytes of memory that nobody uses, of the machine or of its accelerator."""
    if device != "cpu":
        import torch

        return int(torch.accelerator.get_memory_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def changes(
    model: Model, selection: Selection, optim: Optim, load: Load, *, machine: Machine = UNKNOWN, quantised: Quantised | None = None
) -> tuple[Change, ...]:
    """Each change that makes a training smaller, from what costs no quality to what trains something else; each by itself."""
    # A tied weight can have no adapter, and then the whole selection has none.
    tied = any(component.tied for component in selection.components)
    return tuple(
        Change(setting=setting, total=forecast(model, selection, one, loaded, machine=machine, quantised=base).memory.total)
        for setting, one, loaded, base in _ways(optim, load, quantised)
        if one.adapter is optim.adapter or not tied
    )


def _ways(optim: Optim, load: Load, quantised: Quantised | None) -> Iterator[tuple[str, Optim, Load, Quantised | None]]:
    rows = load.rows
    while rows > 1:
        rows = max(1, rows // 4)
        share = load.rows / rows
        smaller = Load(
            rows=rows,
            length=load.length,
            labels=max(1, round(load.labels / share)),
            passes=round(load.passes * share),
            picture=load.picture,
            kept=load.kept,
            begins=load.begins,
        )
        yield f"optim.micro_batch={rows}", optim.model_copy(update={"micro_batch": rows}), smaller, quantised
    if not optim.checkpointing:
        yield "optim.checkpointing=true", optim.model_copy(update={"checkpointing": True}), load, quantised
    if quantised is None:
        yield "quantise=nf4", optim, load, "nf4"
    if optim.adapter is None:
        yield "optim.adapter=lora", optim.model_copy(update={"adapter": Adapter()}), load, quantised


def advice(total: int, room: int, found: tuple[Change, ...]) -> str:
    """A sentence: whether it fits, and else what would make it."""
    if total <= room:
        return f"fits: {total / 1e9:.1f} GB of {room / 1e9:.1f} GB that are free"
    begun = f"does not fit: {total / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free"
    enough = [change for change in found if change.total <= room]
    if enough:
        return f"{begun}; {enough[0].setting} makes it {enough[0].total / 1e9:.1f} GB"
    if not found:
        return f"{begun}; take a smaller selection"
    least = min(found, key=lambda change: change.total)
    return f"{begun}; the most that one change does is {least.setting}, {least.total / 1e9:.1f} GB: make several, or a smaller selection"
