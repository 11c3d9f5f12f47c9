"""What a selection takes of each tower and of each layer, in counts and shares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from selectune.components.component import ComponentMap, Selection
from selectune.components.patterns import family

_LAYER = re.compile(r"(?P<place>.+?)\.(?P<layer>\d+)(?:\.(?P<part>.+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Portion:
    """How much of a tower is taken; a tower is the first word of its components' names."""

    tower: str
    components: int
    of_components: int
    elements: int
    of_elements: int

    @property
    def share(self) -> float:
        """The share of the tower's elements."""
        return self.elements / self.of_elements


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Layers of one list of which the same parts are taken; or what is taken of a tower outside its layers."""

    place: str
    """The list of layers, such as `language.layers`; outside layers the tower."""
    layers: tuple[int, ...]
    """Which of the list, from below; none outside layers."""
    parts: tuple[str, ...]
    """What is taken of each of the layers, indices as stars: `attn.q`, `moe.experts.*.up`; a tower that is one component has none."""
    components: int
    elements: int
    of_elements: int
    """Of these layers, all parts together; outside layers, of all that lies there."""

    @property
    def share(self) -> float:
        """The share of these layers' elements."""
        return self.elements / self.of_elements


@dataclass(frozen=True, kw_only=True, slots=True)
class Portions:
    """A selection seen from the model: every tower, and the layers that it takes something of."""

    towers: tuple[Portion, ...]
    spans: tuple[Span, ...]
    elements: int
    """The whole model's."""

    def to_json(self) -> dict[str, Any]:
        """What `selectune map --json` prints under `taken`."""
        return {
            "towers": [
                {
                    "tower": tower.tower,
                    "components": tower.components,
                    "of_components": tower.of_components,
                    "elements": tower.elements,
                    "of_elements": tower.of_elements,
                    "share": tower.share,
                    "share_of_model": tower.elements / self.elements,
                }
                for tower in self.towers
            ],
            "spans": [
                {
                    "place": span.place,
                    "layers": list(span.layers),
                    "parts": list(span.parts),
                    "components": span.components,
                    "elements": span.elements,
                    "of_elements": span.of_elements,
                    "share": span.share,
                }
                for span in self.spans
            ],
        }


@dataclass(slots=True)
class _Cell:
    """A tower, a layer, or what lies outside a tower's layers."""

    names: set[str] = field(default_factory=set)
    of_elements: int = 0
    elements: int = 0
    parts: dict[str, None] = field(default_factory=dict)
    """The selected names, below the cell, in the model's order."""


def portions(found: ComponentMap, selection: Selection | None = None) -> Portions:
    """The selection by tower and by layer, in the model's order; without one, nothing is taken.

    Layers are one span where the same components are taken of layers of one size. A tied tensor counts under its first name.
    """
    chosen = {(c.name, c.parameter, c.slice) for c in selection.components} if selection else set()
    towers: dict[str, _Cell] = {}
    places: dict[str, dict[int | None, _Cell]] = {}
    for component in found.components:
        place, layer, part = _place(component.name)
        tower = component.name.partition(".")[0]
        for cell, name in (
            (towers.setdefault(tower, _Cell()), component.name),
            (places.setdefault(place, {}).setdefault(layer, _Cell()), part),
        ):
            cell.names.add(name)
            cell.of_elements += component.elements
            if (component.name, component.parameter, component.slice) in chosen:
                cell.elements += component.elements
                cell.parts[name] = None
    return Portions(
        towers=tuple(
            Portion(
                tower=name,
                components=len(cell.parts),
                of_components=len(cell.names),
                elements=cell.elements,
                of_elements=cell.of_elements,
            )
            for name, cell in towers.items()
        ),
        spans=tuple(span for place, layers in places.items() for span in _spans(place, layers)),
        elements=found.elements,
    )


def _place(name: str) -> tuple[str, int | None, str]:
    """The list of layers, the layer and the part in it; for what lies outside layers the tower, None and the rest."""
    match = _LAYER.fullmatch(name)
    if match is not None:
        return match["place"], int(match["layer"]), match["part"] or ""
    tower, _, rest = name.partition(".")
    return tower, None, rest


def _spans(place: str, layers: dict[int | None, _Cell]) -> Iterator[Span]:
    groups: dict[tuple[bool, tuple[str, ...], int, int], dict[int | None, _Cell]] = {}
    for layer, cell in sorted(layers.items(), key=lambda row: -1 if row[0] is None else row[0]):
        if cell.parts:
            key = (layer is None, tuple(cell.parts), cell.elements, cell.of_elements)
            groups.setdefault(key, {})[layer] = cell
    for (_, parts, _, _), group in groups.items():
        yield Span(
            place=place,
            layers=tuple(layer for layer in group if layer is not None),
            # An index may be the part's first word (`vision.layers.3.0`), and `family` knows indices by the dot before them.
            parts=tuple(dict.fromkeys(family(f".{part}").removeprefix(".") for part in parts if part)),
            components=sum(len(cell.parts) for cell in group.values()),
            elements=sum(cell.elements for cell in group.values()),
            of_elements=sum(cell.of_elements for cell in group.values()),
        )
