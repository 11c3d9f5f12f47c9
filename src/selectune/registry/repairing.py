"""`fsck`: everything that a registry keeps, looked at; and what is damaged or missing, fetched from another registry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selectune.errors import RegistryError, StorageError
from selectune.registry.checking import Report, check
from selectune.registry.ledger import Ledger
from selectune.registry.lineage import references
from selectune.registry.store import Blobs

__all__ = ["Examined", "Repair", "examine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """An object that was damaged or missing, and what became of it."""

    name: str
    of: str
    """What it is, such as: the delta of update 0123456789ab."""
    fault: str
    """damaged or missing."""
    mended: bool
    why: str = ""
    """Why it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What was found, and what was mended."""

    report: Report
    """After the repair."""
    repairs: tuple[Repair, ...]
    """Every object that was damaged or missing before."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong now."""
        return self.report.ok

    def to_json(self) -> dict[str, Any]:
        """As `selectune fsck --json` prints it."""
        return {"ok": self.ok, "repairs": [asdict(one) for one in self.repairs], "report": asdict(self.report)}


def examine(ledger: Ledger, blobs: Blobs, sources: Iterable[Blobs] = ()) -> Examined:
    """Looks at every event, object and leftover; `sources` are asked for objects that are damaged or missing, one after the other.

    What a source gives counts only if its bytes have the hash that it was asked for. Events are never mended: a log that was edited or cut
    can only be restored whole.
    """
    events = ledger.log.read(lenient=True)
    needed, others = references(events), list(sources)
    repairs = [_repair(blobs, name, of, fault, others) for name, of in sorted(needed.items()) if (fault := blobs.fault(name)) is not None]
    return Examined(report=check(events, blobs, None), repairs=tuple(repairs))


def _repair(blobs: Blobs, name: str, of: str, fault: str, sources: list[Blobs]) -> Repair:
    why = "no other registry was given"
    for source in sources:
        try:
            with source.open(name) as file:
                if fault == "damaged":
                    blobs.delete(name)  # a store does not write what it believes to have
                blobs.put(Path(file.name))
        except (RegistryError, StorageError) as error:
            why = str(error)
            continue
        if blobs.fault(name) is None:
            return Repair(name=name, of=of, fault=fault, mended=True)
        why = "the other registry gave other bytes"
    return Repair(name=name, of=of, fault=fault, mended=False, why=why)
