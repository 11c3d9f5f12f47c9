"""One self-contained HTML file about one run or several.

Nothing in it asks for anything from outside: styles, the small script, charts and pictures are inside, and a content security policy
allows exactly that style sheet and that script (by their hashes) and data pictures. Without scripts the page loses its filters and
the light/dark button and nothing else. All text goes through one autoescaping environment and `wording.plain`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from selectune.errors import InputError
from selectune.reporting import figures, outcome, wording
from selectune.reporting.document import PictureUrl, write_whole
from selectune.reporting.measured import CaptionedPicture, Change, StageCaption
from selectune.reporting.result import RunResult, summary

SHOWN = 6
"""Changed samples shown for each recipe, task and way; the counts above them are of all."""

PICTURE_BYTES = 6_000_000
"""Pictures embedded in one report; those beyond it are named as left out."""


def write_report(results: Sequence[RunResult], path: Path) -> Path:
    """Write the report of `results` to `path`, whole or not at all, and return `path`.

    Raises InputError without a result, StorageError if the folder cannot be written.
    """
    return write_whole(path, render(results))


def render(results: Sequence[RunResult]) -> str:
    """The report's HTML."""
    if not results:
        raise InputError("a report needs a result", then="Give the result.json of a finished run.")
    pictures = Pictures(PICTURE_BYTES)
    return render_page(
        "report.html.j2",
        results=results,
        sentences=outcome.headline(results),
        trade_off=figures.trade_off(results),
        changes=figures.change_from_base(results),
        numbers=figures.number_panels(results),
        training=figures.training(results),
        captions=_captions(results, pictures),
        samples=_samples(results, pictures),
        leaks=_leaks(results, pictures),
        pictures=pictures,
        document=readable_json(summary(list(results))),
        recipes=[readable_json(result.recipe) for result in results],
    )


def render_page(template: str, **values: Any) -> str:
    """A template of ours with these values, the style sheet, the script and the policy that allows these two alone."""
    style, script = _asset("style.css"), _asset("page.js")
    # Our own two files, not data, are the only markup that is passed in.
    ours = {"style": Markup(style), "script": Markup(script), "policy": _policy(style, script)}
    return _environment().get_template(template).render(**values, **ours)


def readable_json(document: Any) -> str:
    """`document` as indented JSON whose invisible and control characters are written as escapes; it parses back to the same."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return text if wording.plain(text) == text else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if wording.plain(character) == character else json.dumps(character)[1:-1]


def _policy(style: str, script: str) -> str:
    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {source(script)}; base-uri 'none'; form-action 'none'"


def _asset(name: str) -> str:
    return files("selectune.reporting").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("selectune.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    for one in (
        wording.number, wording.share, wording.share_range, wording.points, wording.points_range, wording.perplexity,
        wording.perplexity_range, wording.probability, wording.count, wording.short, wording.size, wording.duration, wording.identity,
        outcome.metric_label, outcome.metric_meaning, outcome.reasons, wording.words, wording.rate,
    ):  # fmt: skip
        environment.filters[one.__name__] = one
    environment.globals.update(
        level=level, held_out_mean=outcome.held_out_mean, every_phase=figures.every_phase, last_row=outcome.last_row,
        final_difference=figures.final_difference, column_n=column_n, metric_names=metric_names, metric_value=outcome.metric_value,
        metric_range=outcome.metric_range, shown=SHOWN, stages=figures.stages,
    )  # fmt: skip
    return environment


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else wording.plain(value)


def level(value: float | None, steps: int = 10) -> int:
    """A share as one of the style sheet's classes 0 to `steps`."""
    return 0 if value is None else min(steps, max(0, round(value * steps)))


def column_n(result: RunResult, column: str) -> int | None:
    """The count behind a column if it is the same in every row."""
    index = result.matrix.columns.index(column)
    counts = {row[index] for row in result.matrix.n}
    return counts.pop() if len(counts) == 1 else None


def metric_names(results: Sequence[RunResult]) -> list[str]:
    """Every metric of any recipe, known ones first in their order."""
    named = dict.fromkeys(name for result in results for name in result.metrics)
    known = [name for name in outcome.METRICS if name in named]
    return known + [name for name in named if name not in outcome.METRICS]


class Pictures:
    """Embeds pictures until the budget of bytes is spent, and counts what was left out."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.left_out = 0

    def take(self, url: PictureUrl) -> str | None:
        """The picture, or None without one and beyond the budget."""
        if url is None:
            return None
        if len(url) > self.budget:
            self.left_out += 1
            return None
        self.budget -= len(url)
        return url


def _captions(results: Sequence[RunResult], pictures: Pictures) -> list[dict[str, Any]]:
    """Each picture once, with a row a stage and a cell a recipe; equal cells of a row are joined."""
    found: dict[str, list[CaptionedPicture | None]] = {}
    for index, result in enumerate(results):
        for captioned in result.captions:
            found.setdefault(captioned.id, [None] * len(results))[index] = captioned
    cards = []
    for name, column in found.items():
        first = next(one for one in column if one is not None)
        rows: dict[str, list[StageCaption | None]] = {}
        for index, one in enumerate(column):
            for caption in one.captions if one else ():
                rows.setdefault(caption.stage, [None] * len(results))[index] = caption
        lines = [{"stage": stage, "cells": cells, "same": _same(cells)} for stage, cells in rows.items()]
        cards.append({"id": name, "first": first, "picture": pictures.take(first.picture), "rows": lines})
    return cards


def _same(cells: Sequence[StageCaption | None]) -> bool:
    return len(cells) > 1 and all(cell is not None and cell == cells[0] for cell in cells)


def _samples(results: Sequence[RunResult], pictures: Pictures) -> list[dict[str, Any]]:
    """The first changed samples of each recipe, task and way."""
    shown = []
    for style, result in enumerate(results):
        seen: dict[tuple[str, str], int] = {}
        for change in _by_task(result, result.changes):
            group = (change.task, change.way)
            seen[group] = seen.get(group, 0) + 1
            if seen[group] <= SHOWN:
                task = result.task(change.task)
                shown.append(
                    {"style": style, "recipe": result.name, "task": task, "change": change, "picture": pictures.take(change.picture)}
                )
    return shown


def _leaks(results: Sequence[RunResult], pictures: Pictures) -> list[dict[str, Any]]:
    """Every pair once, though recipes of one run may share it."""
    pairs = dict.fromkeys(pair for result in results for pair in result.leaks)
    return [{"pair": pair, "train": pictures.take(pair.train.picture), "test": pictures.take(pair.test.picture)} for pair in pairs]


def _by_task(result: RunResult, changes: Iterable[Change]) -> list[Change]:
    order = {task.name: index for index, task in enumerate(result.tasks)}
    return sorted(changes, key=lambda one: order.get(one.task, len(order)))
