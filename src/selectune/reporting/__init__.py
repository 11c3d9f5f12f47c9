"""What a run found, for people: one HTML file, terminal tables, and the JSON behind both. Imports no torch."""

from __future__ import annotations

from selectune.reporting.page import write_report
from selectune.reporting.pictures import thumbnail_url
from selectune.reporting.result import RunResult, load_result, save_result, summary

__all__ = ["RunResult", "load_result", "save_result", "summary", "thumbnail_url", "write_report"]
