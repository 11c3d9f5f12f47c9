"""Teach a vision-language model new skills by retraining only chosen components, and prove what changed and what was forgotten.

Every name below is imported when it is first used, so that `import selectune` is fast and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from selectune.arrivals import when_imported

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.delta import Delta, applied, apply, capture, interpolate, revert
    from selectune.errors import SelectuneError
    from selectune.evaluation import Measurement, Suite, Task, evaluate
    from selectune.models import Model, load
    from selectune.pipeline import run
    from selectune.probes import probe_numbers
    from selectune.recipe import Data, Optim, Recipe, read_recipe
    from selectune.records import read_records
    from selectune.registry import Registry
    from selectune.reporting import write_report
    from selectune.training import fit, train

__version__ = "0.1.0"

_HOMES = {
    "selectune.components": ("Selection",),
    "selectune.delta": ("Delta", "applied", "apply", "capture", "interpolate", "revert"),
    "selectune.errors": ("SelectuneError",),
    "selectune.evaluation": ("Measurement", "Suite", "Task", "evaluate"),
    "selectune.models": ("Model", "load"),
    "selectune.pipeline": ("run",),
    "selectune.probes": ("probe_numbers",),
    "selectune.recipe": ("Data", "Optim", "Recipe", "read_recipe"),
    "selectune.records": ("read_records",),
    "selectune.registry": ("Registry",),
    "selectune.reporting": ("write_report",),
    "selectune.training": ("fit", "train"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Data",
    "Delta",
    "Measurement",
    "Model",
    "Optim",
    "Recipe",
    "Registry",
    "Selection",
    "SelectuneError",
    "Suite",
    "Task",
    "applied",
    "apply",
    "capture",
    "evaluate",
    "fit",
    "interpolate",
    "load",
    "probe_numbers",
    "read_recipe",
    "read_records",
    "revert",
    "run",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'selectune' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _register_configuration() -> None:
    """Makes transformers' `AutoConfig` know the embedded model's vision tower, as soon as it is there."""
    from selectune.embedded.configuration import register

    register()


def _register_tower() -> None:
    """The same for `AutoModel`."""
    from selectune.embedded.tower import register

    register()


when_imported("transformers.models.auto.configuration_auto", _register_configuration)
when_imported("transformers.models.auto.modeling_auto", _register_tower)
