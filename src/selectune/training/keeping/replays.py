"""Records of earlier skills, encoded so that they stand behind the new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from selectune.training.preparing import Samples, encode

if TYPE_CHECKING:
    from selectune.models import Model
    from selectune.recipe import Optim
    from selectune.records import Encoder
    from selectune.training.keeping.given import Keeping


def replays(keeping: Keeping, model: Model, encoder: Encoder, optim: Optim, new: Samples) -> tuple[Samples, dict[str, int]]:
    """The new samples, then those that may be replayed; and how many these are, source by source.

    Two sources may use the same ids, so a replayed sample has its source's name before its own. Raises DataError as `encode` does.
    """
    if keeping.keep.replay is None:
        return new, {}
    pools: dict[str, int] = {}
    for name, records in keeping.replay.items():
        found = encode(model, encoder, records, optim)
        kept = tuple(replace(sample, record_id=f"{name}: {sample.record_id}") for sample in found.kept)
        skipped = {f"replay of {name}: {reason}": count for reason, count in found.skipped.items()}
        new = new.beside(Samples(kept=kept, skipped=skipped, lengths=found.lengths))
        pools[name] = len(kept)
    return new, pools
