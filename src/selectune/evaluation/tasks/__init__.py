"""The field's benchmarks as tasks: each is a short YAML file and a scorer; your own are too. Torch is imported when records are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selectune.evaluation.tasks.finding import all_tasks, find_task, read_task
from selectune.evaluation.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from selectune.evaluation.tasks.loading import read_task_records, task_of

__all__ = ["TaskSpec", "all_tasks", "find_task", "read_task", "read_task_records", "task_of"]


def __getattr__(name: str) -> Any:
    if name in ("read_task_records", "task_of"):
        from selectune.evaluation.tasks import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
