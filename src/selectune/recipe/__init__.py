"""Recipes: what to teach, with which components, and what must not be lost."""

from selectune.recipe.basis import EMBEDDED, Data, Part
from selectune.recipe.keep import EWC, L2SP, Anchors, Choose, Distill, Keep, Replay
from selectune.recipe.parts import Adapter, Gate, HeldOut, Optim, Probe, Recipe, Recovery, Skill
from selectune.recipe.reading import dump_recipe, parse_recipe, presets, read_recipe
from selectune.recipe.watch import Dead, Flat, NotFinite, Spike, Starved, Watch

__all__ = [
    "EMBEDDED",
    "EWC",
    "L2SP",
    "Adapter",
    "Anchors",
    "Choose",
    "Data",
    "Dead",
    "Distill",
    "Flat",
    "Gate",
    "HeldOut",
    "Keep",
    "NotFinite",
    "Optim",
    "Part",
    "Probe",
    "Recipe",
    "Recovery",
    "Replay",
    "Skill",
    "Spike",
    "Starved",
    "Watch",
    "dump_recipe",
    "parse_recipe",
    "presets",
    "read_recipe",
]
