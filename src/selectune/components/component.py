"""Components, the map of a model, and a selection of its components."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from selectune.components.patterns import family
from selectune.components.slices import Region, covers
from selectune.errors import QuantisedSelection

_LAYER = re.compile(r"language\.layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """A named part of a model: one parameter, or a region of it; a weight and its bias are two of these with one name."""

    name: str
    """`language.layers.3.attn.q`; design and reference pages list the words."""
    parameter: str
    """The parameter's first name in memory, as `named_parameters` gives it."""
    slice: Region | None
    """None for the whole parameter, else `(axis, start, stop, step)` ranges: on one axis they add up, on different axes they cross."""
    shape: tuple[int, ...]
    """Of the selected part."""
    elements: int
    tied: tuple[str, ...]
    """Other component names of the same tensor: `("head",)` for a word embedding that is the head too."""
    dtype: str
    """As safetensors writes it: "BF16"."""
    quantised: str | None = None
    """What holds the values in fewer bits, such as `Params4bit`: they cannot be trained. None for plain numbers."""


class Row(NamedTuple):
    """One family of a selection: how many components, and how many elements."""

    family: str
    count: int  # type: ignore[assignment]  # a row is a tuple to be unpacked; nobody counts in it
    elements: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The components that may move, and the patterns that chose them."""

    patterns: tuple[str, ...]
    components: tuple[Component, ...]
    full_shapes: Mapping[str, tuple[int, ...]]
    """The whole shape of every parameter that the selection touches."""

    @property
    def names(self) -> tuple[str, ...]:
        """The components' names, each once, in the model's order."""
        return tuple(dict.fromkeys(component.name for component in self.components))

    @cached_property
    def parameters(self) -> Mapping[str, tuple[Region, ...] | None]:
        """By parameter: None where the whole of it may move, else disjoint regions (`slices.views` turns each into views)."""
        regions: dict[str, list[Region | None]] = {}
        for component in self.components:
            regions.setdefault(component.parameter, []).append(component.slice)
        found: dict[str, tuple[Region, ...] | None] = {}
        for parameter, chosen in regions.items():
            parts = tuple(region for region in chosen if region is not None)
            whole = len(parts) < len(chosen) or covers(self.full_shapes[parameter], parts)
            found[parameter] = None if whole else parts
        return found

    @property
    def elements(self) -> int:
        """How many elements may move."""
        return sum(component.elements for component in self.components)

    @cached_property
    def digest(self) -> str:
        """The identity of what was selected, whatever patterns chose it."""
        from selectune.hashing import digest

        rows = [[c.name, c.parameter, None if c.slice is None else [list(part) for part in c.slice]] for c in self.components]
        return digest("selection", sorted(rows, key=lambda row: (row[0], row[1], str(row[2]))))

    def table(self) -> tuple[Row, ...]:
        """One row a family, in the model's order."""
        names: dict[str, set[str]] = {}
        elements: Counter[str] = Counter()
        for component in self.components:
            row = family(component.name)
            names.setdefault(row, set()).add(component.name)
            elements[row] += component.elements
        return tuple(Row(row, len(found), elements[row]) for row, found in names.items())


@dataclass(frozen=True, kw_only=True)
class ComponentMap:
    """Every component of a model; each parameter element has exactly one."""

    model: str
    components: tuple[Component, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """The whole shape of every parameter."""

    @cached_property
    def elements(self) -> int:
        """The model's parameter elements, a tied tensor counted once."""
        return sum(component.elements for component in self.components)

    @cached_property
    def families(self) -> Mapping[str, int]:
        """Every family of names (indices as stars), with its number of components, in the model's order."""
        names = dict.fromkeys(component.name for component in self.components)
        return Counter(family(name) for name in names)

    def select(self, patterns: Sequence[str], *, tie: Literal["forbid", "allow"] = "forbid", where: str = "select") -> Selection:
        """The components that the patterns choose, in the model's order.

        Patterns and names of presets add to each other from left to right, and `!pattern` removes. `where` begins the messages. Raises
        NoMatch for one that matches nothing, InputError for one that cannot be read or takes in parts without a name, TiedSelection for
        one name of a tied tensor without the others (unless `tie` is "allow"), NotYet for a part of a fused tensor whose layout is not
        known, QuantisedSelection for weights that are held in fewer bits than they would train in.
        """
        from selectune.components.choosing import choose

        selection = choose(self, tuple(patterns), tie=tie, where=where)
        _refuse_quantised(selection, where)
        return selection

    def to_json(self, selection: Selection | None = None) -> dict[str, Any]:
        """The document that `selectune map --json` prints."""
        chosen = {(c.name, c.parameter, c.slice) for c in selection.components} if selection else set()
        return {
            "model": self.model,
            "elements": self.elements,
            "components": [
                {
                    "name": c.name,
                    "parameter": c.parameter,
                    "slice": None if c.slice is None else [list(part) for part in c.slice],
                    "shape": list(c.shape),
                    "elements": c.elements,
                    "tied": list(c.tied),
                    "selected": (c.name, c.parameter, c.slice) in chosen,
                }
                for c in self.components
            ],
            "selected": {
                "patterns": list(selection.patterns) if selection else [],
                "elements": selection.elements if selection else 0,
                "components": len(chosen),
            },
        }


def _refuse_quantised(selection: Selection, where: str) -> None:
    packed = [component for component in selection.components if component.quantised is not None]
    if packed:
        first = packed[0]
        raise QuantisedSelection(
            f"{first.name} is quantised ({first.quantised}), and so are {len(packed) - 1} more of the selected parts",
            where=where,
            then="Quantised weights cannot be trained: keep these parts in bf16 when you quantise the rest, or leave them out.",
        )


def language_layer(name: str) -> int | None:
    """Which layer of the language tower a component's name is of; None for one outside its layers."""
    match = _LAYER.match(name)
    return None if match is None else int(match[1])
