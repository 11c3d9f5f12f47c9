"""Recipes: what to teach, with which components, and what must not be lost."""

from selectune.recipe.parts import EMBEDDED, Adapter, Data, Gate, HeldOut, Optim, Part, Probe, Recipe, Recovery, Skill
from selectune.recipe.reading import dump_recipe, parse_recipe, presets, read_recipe

__all__ = [
    "EMBEDDED",
    "Adapter",
    "Data",
    "Gate",
    "HeldOut",
    "Optim",
    "Part",
    "Probe",
    "Recipe",
    "Recovery",
    "Skill",
    "dump_recipe",
    "parse_recipe",
    "presets",
    "read_recipe",
]
