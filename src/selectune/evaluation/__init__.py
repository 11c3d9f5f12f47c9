"""What a model can do: tasks, scorers, and one measured sample for every record.

`Measurement`, `Suite` and the scorers need no torch; `evaluate` imports it when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selectune.evaluation.measurement import Measurement, Sample
from selectune.evaluation.scorers import SCORERS, Reference, Scorer, scorer
from selectune.evaluation.suite import KINDS, Kind, Suite, Task

if TYPE_CHECKING:
    from selectune.evaluation.evaluator import evaluate

__all__ = ["KINDS", "SCORERS", "Kind", "Measurement", "Reference", "Sample", "Scorer", "Suite", "Task", "evaluate", "scorer"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        from selectune.evaluation.evaluator import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
