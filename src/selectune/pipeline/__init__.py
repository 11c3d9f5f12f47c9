"""The whole job in one call: `run` a recipe. Torch is loaded when a name is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectune.offers import offering
from selectune.pipeline.progress import Progress, Silent

if TYPE_CHECKING:
    from selectune.pipeline.bisecting import Bisected, Question, bisect
    from selectune.pipeline.checkpoint import save_checkpoint
    from selectune.pipeline.comparing import Comparison, compare
    from selectune.pipeline.deriving import diff_updates, merge_updates, rebase_update
    from selectune.pipeline.foreign import measure_with_lmms_eval
    from selectune.pipeline.importing import import_checkpoint
    from selectune.pipeline.planning import Plan, plan, sketch
    from selectune.pipeline.running import resume, run, run_all
    from selectune.pipeline.single import kept_tasks, measure, measure_suite, read_numbers, train_skill
    from selectune.pipeline.suites import Further, further, recipe_suite, task_suite
    from selectune.pipeline.versions import load_any, load_version, locate_any, map_any, save_full

__all__ = [
    "Bisected",
    "Comparison",
    "Further",
    "Plan",
    "Progress",
    "Question",
    "Silent",
    "bisect",
    "compare",
    "diff_updates",
    "further",
    "import_checkpoint",
    "kept_tasks",
    "load_any",
    "load_version",
    "locate_any",
    "map_any",
    "measure",
    "measure_suite",
    "measure_with_lmms_eval",
    "merge_updates",
    "plan",
    "read_numbers",
    "rebase_update",
    "recipe_suite",
    "resume",
    "run",
    "run_all",
    "save_checkpoint",
    "save_full",
    "sketch",
    "task_suite",
    "train_skill",
]

__getattr__ = offering(
    __name__,
    {
        "bisecting": ("Bisected", "Question", "bisect"),
        "checkpoint": ("save_checkpoint",),
        "comparing": ("Comparison", "compare"),
        "deriving": ("diff_updates", "merge_updates", "rebase_update"),
        "foreign": ("measure_with_lmms_eval",),
        "importing": ("import_checkpoint",),
        "planning": ("Plan", "plan", "sketch"),
        "running": ("resume", "run", "run_all"),
        "single": ("kept_tasks", "measure", "measure_suite", "read_numbers", "train_skill"),
        "suites": ("Further", "further", "recipe_suite", "task_suite"),
        "versions": ("load_any", "load_version", "locate_any", "map_any", "save_full"),
    },
)
