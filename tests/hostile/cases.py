"""One hostile thing: how it is made, what reads it, and how it must be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance_fixtures import Governed
from selectune.errors import SelectuneError
from selectune.governance import PrivateKey


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a case may use."""

    path: Path
    """An empty folder."""
    keys: dict[str, PrivateKey]
    deltas: list[Path]
    """Three that follow each other; not to be changed."""
    govern: Callable[[Path], Governed]
    """A registry of them under a policy, in this folder."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """`make` prepares and gives what `act` is called with."""

    threat: str
    """T1 to T19, as the threat model numbers them."""
    name: str
    error: type[SelectuneError]
    words: str
    """Of the message: what names the fault."""
    make: Callable[[Room], Any]
    act: Callable[[Any], object]

    @property
    def id(self) -> str:
        """As pytest shows it."""
        return f"{self.threat}-{self.name}".replace(" ", "_")
