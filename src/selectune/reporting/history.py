"""The terminal's table of updates. Apart from the other tables, since `log` is asked for often and needs nothing of a run's result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from selectune.reporting import wording
from selectune.reporting.tables import plain_table

__all__ = ["Entry", "log_table", "verdict_text"]

_LOOKS = {"passed": ("✓", "green"), "failed": ("✕", "red"), "undecided": ("?", "yellow")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An update as one line shows it."""

    id: str
    parent: str | None
    skill: str
    verdict: str | None
    names: tuple[str, ...]
    size: int
    """The delta's bytes; 0 where they are gone."""
    created: str


def verdict_text(verdict: str | None) -> Text:
    """A verdict as a sign and a word, never colour alone; a registry from elsewhere may hold a word that no gate says."""
    if not verdict:
        return Text("no verdict", style="dim")
    sign, style = _LOOKS.get(verdict, ("·", "dim"))
    return Text(f"{sign} {wording.plain(verdict)}", style=style)


def log_table(updates: Sequence[Entry], *, title: str = "") -> Table:
    """One line an update, in the order given."""
    table = plain_table(title=title)
    for heading in ("update", "parent", "skill", "verdict", "names", "size", "created"):
        table.add_column(heading, no_wrap=heading in ("update", "parent", "verdict"), justify="right" if heading == "size" else "left")
    for update in updates:
        table.add_row(
            Text(wording.plain(wording.identity(update.id)), style="bold"),
            Text(wording.plain(wording.identity(update.parent)) if update.parent else wording.DASH),
            Text(wording.plain(update.skill)),
            verdict_text(update.verdict),
            Text(wording.plain(", ".join(update.names))),
            wording.size(update.size) if update.size else wording.DASH,
            Text(wording.plain(update.created)),
        )
    return table
