"""The names of a model's parts: a structural map, a pattern language over it, and the proof that only the selection moved.

Nothing here imports torch until a model is mapped, and the tables of families are read when a name that needs them is first used, so that
reading a recipe or a registry stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectune.components.component import Component, ComponentMap, Selection, language_layer
from selectune.components.portions import Portion, Portions, Span, portions
from selectune.components.slices import Region, elements_of, region_shape, views
from selectune.offers import offering

if TYPE_CHECKING:
    from selectune.components.architecture import known_types, map_architecture
    from selectune.components.families import add_families
    from selectune.components.mapping import map_model
    from selectune.components.presets import PRESETS
    from selectune.components.proof import Forecast, Moved, Proof, forecast

__all__ = [
    "PRESETS",
    "Component",
    "ComponentMap",
    "Forecast",
    "Moved",
    "Portion",
    "Portions",
    "Proof",
    "Region",
    "Selection",
    "Span",
    "add_families",
    "elements_of",
    "forecast",
    "known_types",
    "language_layer",
    "map_architecture",
    "map_model",
    "portions",
    "region_shape",
    "views",
]

__getattr__ = offering(
    __name__,
    {
        "architecture": ("known_types", "map_architecture"),
        "families": ("add_families",),
        "mapping": ("map_model",),
        "presets": ("PRESETS",),
        "proof": ("Forecast", "Moved", "Proof", "forecast"),
    },
)
