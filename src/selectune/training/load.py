"""What a step is given: how many samples, how long, what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from selectune.recipe import Keep

if TYPE_CHECKING:
    from selectune.recipe import Optim

__all__ = ["Load"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a step is given."""

    rows: int
    """Samples that go through the model at once."""
    length: int
    """Tokens of the longest of them."""
    labels: int
    """Labelled positions of all of them together."""
    passes: int = 1
    """Portions that a batch is divided into."""
    picture: int = 0
    """Image tokens of one sample."""
    kept: int = 0
    """Samples whose features, and states at the cut, stay in memory."""
    begins: Literal["cut", "start"] = "start"
    """Where a pass begins: `cut` once the states that enter the first trained layer are kept."""
    records: int = 0
    """Samples in all."""
    keep: Keep = field(default_factory=Keep)
    """What holds old skills."""
    anchors: Load | None = None
    """What a step is given besides, where `keep` has anchors."""

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int, int]], optim: Optim, *, records: int, cut: bool) -> Load:
        """Of samples with so many tokens, labels and image tokens, the longest of which counts; `records` is how many there are in all.

        `cut` says whether passes begin at states that are kept.
        """
        rows = min(optim.micro_batch or optim.batch, optim.batch)
        return cls(
            rows=rows,
            # The last label is a target only: nothing is read at its place.
            length=max(2, max(length for length, _, _ in sizes) - 1),
            labels=max(1, round(rows * sum(labels for _, labels, _ in sizes) / len(sizes))),
            passes=-(-optim.batch // rows),
            picture=max(picture for _, _, picture in sizes),
            kept=records if optim.cache_features else 0,
            begins="cut" if cut else "start",
            records=records,
        )

    def keeping(self, keep: Keep, anchors: Sequence[tuple[int, int, int]], optim: Optim, *, records: int) -> Load:
        """The same beside what holds old skills; `anchors` are sizes of prompts, as for `of`, of which there are `records`."""
        if keep.anchors is None or not anchors:
            return replace(self, keep=keep)
        beside = Load.of(anchors, optim.model_copy(update={"batch": keep.anchors.batch}), records=records, cut=self.begins == "cut")
        return replace(self, keep=keep, anchors=beside)

    @property
    def tokens(self) -> int:
        """Padding counted."""
        return self.rows * self.length
