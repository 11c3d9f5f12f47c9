"""What a run found, for people: one HTML file, terminal tables, and the JSON behind both. Imports no torch.

Every name below is imported when it is first used: a verb that prints a table needs neither the page nor its charts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectune.offers import offering

if TYPE_CHECKING:
    from selectune.reporting.page import write_report
    from selectune.reporting.pictures import thumbnail_url
    from selectune.reporting.result import RunResult, load_result, save_result, summary

__all__ = ["RunResult", "load_result", "save_result", "summary", "thumbnail_url", "write_report"]

__getattr__ = offering(
    __name__,
    {
        "result": ("RunResult", "load_result", "save_result", "summary"),
        "pictures": ("thumbnail_url",),
        "page": ("write_report",),
    },
)
