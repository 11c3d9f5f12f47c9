"""The whole job in one call: `run` a recipe. Torch is loaded when a name is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from selectune.pipeline.progress import Progress, Silent

if TYPE_CHECKING:
    from selectune.pipeline.checkpoint import save_checkpoint
    from selectune.pipeline.comparing import Comparison, compare
    from selectune.pipeline.planning import Plan, plan, sketch
    from selectune.pipeline.running import resume, run, run_all
    from selectune.pipeline.single import measure, read_numbers, train_skill
    from selectune.pipeline.versions import load_any, load_version, locate_any, map_any, save_full

__all__ = [
    "Comparison",
    "Plan",
    "Progress",
    "Silent",
    "compare",
    "load_any",
    "load_version",
    "locate_any",
    "map_any",
    "measure",
    "plan",
    "read_numbers",
    "resume",
    "run",
    "run_all",
    "save_checkpoint",
    "save_full",
    "sketch",
    "train_skill",
]

_HOMES = {
    "checkpoint": ("save_checkpoint",),
    "comparing": ("Comparison", "compare"),
    "planning": ("Plan", "plan", "sketch"),
    "running": ("resume", "run", "run_all"),
    "single": ("measure", "read_numbers", "train_skill"),
    "versions": ("load_any", "load_version", "locate_any", "map_any", "save_full"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
