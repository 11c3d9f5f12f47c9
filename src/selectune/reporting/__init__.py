"""What a run found, for people: one HTML file, terminal tables, and the JSON behind both. Imports no torch.

Every name below is imported when it is first used: a verb that prints a table needs neither the page nor its charts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selectune.reporting.page import write_report
    from selectune.reporting.pictures import thumbnail_url
    from selectune.reporting.result import RunResult, load_result, save_result, summary

__all__ = ["RunResult", "load_result", "save_result", "summary", "thumbnail_url", "write_report"]

_HOMES = {
    "RunResult": "result",
    "load_result": "result",
    "save_result": "result",
    "summary": "result",
    "thumbnail_url": "pictures",
    "write_report": "page",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
