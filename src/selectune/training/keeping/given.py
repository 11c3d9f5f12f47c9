"""What a training is told to keep: the recipe's settings, with the records that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from selectune.errors import InputError
from selectune.recipe import Keep

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.delta import Snapshot
    from selectune.records import Records


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What holds old skills in one training.

    >>> from selectune.recipe import Keep, L2SP
    >>> Keeping(keep=Keep(l2sp=L2SP(weight=0.01))).is_off
    False
    """

    keep: Keep = field(default_factory=Keep)
    ewc: Records | None = None
    """Records for the Fisher information, in place of `keep.ewc.data`."""
    replay: Mapping[str, Records] = field(default_factory=dict)
    """What may be replayed, by the name of where it is from."""
    anchors: Records | None = None
    """Prompts, in place of `keep.anchors.data`."""
    base: Snapshot | None = None
    """The selection before the first skill, for a teacher that is the base; None: the model is the base as it is."""

    @property
    def is_off(self) -> bool:
        """Whether nothing is kept."""
        return self.keep == Keep()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides what it does to a training."""
        if self.is_off:
            return {}
        sources = {"ewc": self.ewc, "anchors": self.anchors, **{f"replay {name}": records for name, records in self.replay.items()}}
        kept = {
            "settings": self.keep.model_dump(mode="json"),
            "records": {name: records.digest for name, records in sources.items() if records is not None},
            "base": None if self.base is None else self.base.manifest.id,
        }
        return {"keep": kept}

    @property
    def share(self) -> Fraction:
        """The share of all that is drawn which is replayed, as it is written: 0.1 is a tenth. 0 where there is nothing to replay."""
        return Fraction(repr(self.keep.replay.share)) if self.keep.replay is not None and self.replay else Fraction(0)

    def replay_words(self, records: Mapping[str, int], times: Mapping[str, int]) -> str:
        """What is replayed, in a sentence: how many records of each source there are, and how often one is drawn."""
        if not records:
            return "nothing: no skill came before, and no data are named"
        sources = ", ".join(f"{name} {times[name]} times of {count} records" for name, count in records.items())
        return f"{float(self.share):.4g} of all that is drawn: {sources}"

    def check(self, selection: Selection) -> None:
        """Raises InputError where records are missing, or where the base is another one than the selection can be put back to."""
        for name, records in (("ewc", self.ewc), ("anchors", self.anchors)):
            if getattr(self.keep, name) is not None and records is None:
                raise InputError("its records are not given", where=f"keep.{name}", then=f"Give them: Keeping({name}=read_records(…)).")
        if self.base is None:
            return
        ranges = {name: (None,) if regions is None else regions for name, regions in selection.parameters.items()}
        inside = {(name, region) for name, regions in ranges.items() for region in regions}
        if beyond := sorted(name for name, region in self.base.bits.keys() - inside):
            raise InputError(
                f"the base differs from the model in {beyond[0]}, which is not selected here",
                where="keep: teacher: base",
                then="Take teacher: start, or the selection of the earlier skills.",
            )
