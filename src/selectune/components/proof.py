from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from selectune.components.component import Selection

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What a proof found: how many components and elements of the selection moved."""

    components: int
    elements: int


class Proof:
    selection: Selection

    @classmethod
    def start(cls, net: nn.Module, selection: Selection) -> Proof:
        raise NotImplementedError

    def check(self, net: nn.Module) -> Moved:
        raise NotImplementedError
