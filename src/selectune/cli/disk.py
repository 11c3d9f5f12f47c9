"""`map --disk`: each family of components with its names in memory and in the model's files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from selectune.reporting.tables import plain_table

if TYPE_CHECKING:
    from selectune.cli.screen import Screen
    from selectune.components import ComponentMap, Selection
    from selectune.components.disk import Stored

    Places = tuple[tuple[Stored, ...], ...]


def show_disk(screen: Screen, model: str, patterns: list[str], *, tie: str, registry: str) -> None:
    """Shows where a model's components lie on disk; with patterns, those that they select."""
    from selectune.pipeline import locate_any

    found, places = locate_any(model, registry)
    selection = found.select(patterns, tie="allow" if tie == "allow" else "forbid", where="map") if patterns else None
    document: dict[str, Any] = found.to_json(selection)
    for row, place in zip(document["components"], places, strict=True):
        row["disk"] = [stored.name for stored in place]
    screen.show(document, lambda console: _print(console, found, places, selection))


def _print(console: Console, found: ComponentMap, places: Places, selection: Selection | None) -> None:
    from selectune.components.patterns import family

    rows: dict[tuple[str, str], dict[str, None]] = {}
    chosen = None if selection is None else set(selection.components)
    for component, place in zip(found.components, places, strict=True):
        if chosen is None or component in chosen:
            memory = family(component.parameter) + (" (part)" if component.slice is not None else "")
            names = rows.setdefault((family(component.name), memory), {})
            names |= dict.fromkeys(f"{family(stored.name)}{'' if stored.whole else ' (part)'}" for stored in place)
    table = plain_table("component", "in memory", "on disk", others="left")
    for (name, memory), names in rows.items():
        table.add_row(name, memory, "\n".join(names) or "not saved")
    console.print(table)
    console.print(f"{found.model}: {len({stored.name for place in places for stored in place}):,} tensors on disk")
