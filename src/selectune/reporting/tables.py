"""The one look of the terminal's tables."""

from __future__ import annotations

from typing import Literal

from rich.table import Table

from selectune.reporting import wording


def plain_table(*headings: str, title: str = "", others: Literal["left", "right"] = "right") -> Table:
    """A table without lines under these headings: the first column to the left, the `others` to one side; long words are folded."""
    shown = wording.plain(title) or None
    table = Table(title=shown, title_justify="left", box=None, header_style="dim", padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify=others if index else "left", overflow="fold")
    return table


def decimal(value: object) -> str:
    """A number with four decimals; a dash for anything that is none."""
    return f"{value:.4f}" if isinstance(value, float) else "—"


def chance(value: object) -> str:
    """A p value; none is nothing, so a small one is said to be below what four decimals show."""
    return "< 0.0001" if isinstance(value, float) and value < 0.0001 else decimal(value)


def decimals(low: object, high: object) -> str:
    """The ends of an interval."""
    return f"{decimal(low)} to {decimal(high)}"
