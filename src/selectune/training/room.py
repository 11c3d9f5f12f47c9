"""What fits into the memory that there is, and what to change where a training does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from selectune.errors import DoesNotFit
from selectune.recipe import Adapter
from selectune.training.forecast import forecast, rough
from selectune.training.load import Load
from selectune.training.machine import UNKNOWN, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selectune.components import Selection
    from selectune.models import Model
    from selectune.quantising import Kind
    from selectune.recipe import Optim

CGROUP = Path("/sys/fs/cgroup")
OFF_BY = 0.15
"""What a forecast may be wrong by (docs/why/speed.md): a training is refused only beyond that."""
PLENTY = 3
"""Where a rough estimate is less than one part in so many of what is free, no pass is traced to know more."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One way to need less memory."""

    setting: str
    """As it is written in a recipe."""
    total: int
    """Bytes that the training takes then."""


def free(device: str = "cpu") -> int:
    """Bytes of memory that can be had without swapping: of the machine and of this process's control group, or of the accelerator."""
    if device != "cpu":
        import torch

        return int(torch.accelerator.get_memory_info()[0])
    found = int(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        found = min(found, max(0, int(most) - int(used.read_text())))
    return found


def recompute(optim: Optim, expected: Callable[[Optim], int], room: int) -> tuple[Optim, str]:
    """The settings with `checkpointing` decided, and why: activations are recomputed where the batch would not fit otherwise.

    `expected` gives the bytes that a training with such settings takes.
    """
    if optim.checkpointing != "auto":
        return optim, f"{'yes' if optim.checkpointing else 'no'}: the recipe says so"
    kept, recomputed = (optim.model_copy(update={"checkpointing": value}) for value in (False, True))
    total = expected(kept)
    if total <= room:
        return kept, f"no: {total / 1e9:.1f} GB are forecast, {room / 1e9:.1f} GB are free"
    if expected(recomputed) >= total:
        return kept, f"no: {total / 1e9:.1f} GB are forecast, {room / 1e9:.1f} GB are free, and recomputing would take no less"
    return recomputed, f"yes: {total / 1e9:.1f} GB are forecast without, and {room / 1e9:.1f} GB are free"


def fitted(model: Model, selection: Selection, optim: Optim, load: Load) -> tuple[Optim, str]:
    """The settings with which a training fits into what is free now, the weights being there already; see `recompute`.

    Raises DoesNotFit where it would not fit even so, by more than a forecast may be wrong. What the recipe itself says is not questioned.
    """
    room = free(model.device.type)
    if optim.checkpointing == "auto" and PLENTY * (about := rough(model, selection, optim, load).above) < room:
        return optim.model_copy(update={"checkpointing": False}), f"no: about {about / 1e9:.2g} GB of {room / 1e9:.1f} GB that are free"

    def expected(settings: Optim) -> int:
        return forecast(model, selection, settings, load).memory.above

    chosen, why = recompute(optim, expected, room)
    if optim.checkpointing == "auto" and (total := expected(chosen)) > (1 + OFF_BY) * room:
        weights = forecast(model, selection, chosen, load).memory.parameters
        found = tuple(Change(setting=one.setting, total=one.total - weights) for one in changes(model, selection, chosen, load))
        raise DoesNotFit(
            f"a batch of {load.rows} {advice(total, room, found)}{', activations recomputed' if chosen.checkpointing else ''}",
            where="optim.batch",
            then="Change that; or set optim.checkpointing yourself, and it is tried whatever the forecast says.",
        )
    return chosen, why


def changes(
    model: Model, selection: Selection, optim: Optim, load: Load, *, machine: Machine = UNKNOWN, quantised: Kind | None = None
) -> tuple[Change, ...]:
    """Each change that makes a training smaller, from what costs no quality to what trains something else; each by itself."""
    # A tied weight can have no adapter, and then the whole selection has none.
    tied = any(component.tied for component in selection.components)
    return tuple(
        Change(setting=setting, total=forecast(model, selection, one, loaded, machine=machine, quantised=base).memory.total)
        for setting, one, loaded, base in _ways(optim, load, quantised)
        if one.adapter is optim.adapter or not tied
    )


def _ways(optim: Optim, load: Load, quantised: Kind | None) -> Iterator[tuple[str, Optim, Load, Kind | None]]:
    rows = load.rows
    while rows > 1:
        rows = max(1, rows // 4)
        share = load.rows / rows
        smaller = replace(load, rows=rows, labels=max(1, round(load.labels / share)), passes=round(load.passes * share))
        yield f"optim.micro_batch={rows}", optim.model_copy(update={"micro_batch": rows}), smaller, quantised
    if optim.checkpointing is not True:
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
