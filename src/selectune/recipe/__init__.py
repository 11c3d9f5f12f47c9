"""Recipes: what to teach, with which components, and what must not be lost."""

from selectune.recipe.basis import EMBEDDED, Data, Part
from selectune.recipe.keep import EWC, L2SP, Anchors, Choose, Distill, Keep, Replay
from selectune.recipe.parts import Adapter, Gate, HeldOut, Optim, Probe, Recipe, Recovery, Skill, Watch
from selectune.recipe.reading import dump_recipe, parse_recipe, presets, read_recipe

__all__ = [
    "EMBEDDED",
    "EWC",
    "L2SP",
    "Adapter",
    "Anchors",
    "Choose",
    "Data",
    "Distill",
    "Gate",
    "HeldOut",
    "Keep",
    "Optim",
    "Part",
    "Probe",
    "Recipe",
    "Recovery",
    "Replay",
    "Skill",
    "Watch",
    "dump_recipe",
    "parse_recipe",
    "presets",
    "read_recipe",
]
