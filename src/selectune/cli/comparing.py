"""compare and forgetting: what an update lost, sample by sample, and what several runs of one recipe lost on average."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, RegistryUrl, Sets
from selectune.cli.screen import Screen
from selectune.errors import InputError
from selectune.reporting.tables import decimal, decimals, plain_table

if TYPE_CHECKING:
    from selectune.evaluation import Measurement
    from selectune.pipeline import Comparison
    from selectune.pipeline.seeds import Forgetting
    from selectune.recipe import Recipe

PARQUET = ".parquet"
CORRECTIONS: dict[str, Literal["holm", "benjamini-hochberg"]] = {"holm": "holm", "bh": "benjamini-hochberg"}

On = Annotated[str | None, typer.Option("--recipe", metavar="RECIPE", help="What to measure two models on; gives the page its pictures.")]
Again = Annotated[
    Path | None, typer.Option("--again", metavar="A2.parquet", help="A measured again with another batch: how far it differs from itself.")
]
Corrected = Annotated[
    Literal["holm", "bh"],
    typer.Option("--correction", metavar="holm|bh", help="For several tasks: holm where a loss blocks a release, bh for dashboards."),
]
Page = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Draw a page there of the samples that were lost and gained.")]


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A measurement (.parquet), or a model.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another of the same kind.")],
    *,
    recipe: On = None,
    again: Again = None,
    correction: Corrected = "holm",
    html: Page = None,
    sets: Sets = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Two measurements, or two models, task by task, paired by sample, with 95 % intervals and the samples lost and gained.

    Exit code 1 if B is worse than A on a task: it lost, and the p value corrected for all tasks is at most 0.05. Two models of the same
    weights are an error; a task on which every output is the same is said.
    """
    from selectune.recipe import read_recipe

    with Screen(as_json=as_json) as screen:
        read = read_recipe(recipe, sets or ()) if recipe else None
        from selectune.evaluation import Measurement
        from selectune.pipeline import compare as pair
        from selectune.pipeline.comparing import warnings

        first, second = _measurement(before, read, registry, screen), _measurement(after, read, registry, screen)
        rows = pair(first, second, correction=CORRECTIONS[correction], again=Measurement.load(again) if again else None)
        told = warnings(rows)
        for warning in told:
            screen.say(f"warning: {warning}")
        if html is not None:
            _write_page(html, (first, second), rows, read, registry)
        about = {"a": before, "b": after, "correction": CORRECTIONS[correction]}
        document = {**about, "tasks": [row.to_json() for row in rows], "warnings": told, "html": str(html) if html else None}
        screen.show(document, lambda console: _print_comparisons(console, rows, html))
        if any(row.worse for row in rows):
            screen.exit(1)


def forgetting(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs of one recipe with other seeds.")],
    *,
    as_json: AsJson = False,
) -> None:
    """What runs of one recipe learned and forgot on average, with intervals over seeds, clusters and items, and their common matrix."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.seeds import forgetting_of

        found = forgetting_of(runs)
        screen.show(found.to_json(), lambda console: _print_forgetting(console, found))


def _measurement(name: str, recipe: Recipe | None, registry: str, screen: Screen) -> Measurement:
    """A saved measurement, or one taken now."""
    from selectune.evaluation import Measurement

    if name.endswith(PARQUET):
        return Measurement.load(name)
    if recipe is None:
        raise InputError(f'"{name}" is no measurement, and there is nothing to measure it on', where="compare", then="Add --recipe RECIPE.")
    from selectune.pipeline import load_any, measure

    return measure(recipe, load_any(name, registry), screen)


def _write_page(
    path: Path, pair: tuple[Measurement, Measurement], rows: Sequence[Comparison], recipe: Recipe | None, registry: str
) -> None:
    from selectune.pipeline.comparing import page
    from selectune.pipeline.lineage import said_of_models
    from selectune.pipeline.suites import recipe_suite
    from selectune.reporting.comparison import write_comparison

    notes = said_of_models({one.stage: one.model_id for one in pair}, registry)
    write_comparison(page(*pair, rows, recipe_suite(recipe) if recipe else None, notes=notes), path)


def _print_comparisons(console: Console, rows: Sequence[Comparison], html: Path | None) -> None:
    noisy = any(row.noise is not None for row in rows)
    table = plain_table("task", "A", "B", "change", "95 % interval", "p, adjusted", "gained", "lost", "n", *(["noise"] if noisy else []))
    for row in rows:
        change = (f"{row.value:+.4f}", decimals(row.low, row.high), decimal(row.adjusted))
        counts = (str(len(row.gained)), str(len(row.lost)), str(row.n), *([decimal(row.noise)] if noisy else []))
        table.add_row(row.task, decimal(row.before), decimal(row.after), *change, *counts)
    console.print(table)
    if len(rows) > 1:
        console.print(f"p values of {len(rows)} tasks, adjusted by {rows[0].correction}")
    for row in rows:
        if row.within_noise:
            console.print(f"{row.task}: the loss is within the noise floor of {row.noise:.4f}", markup=False)
        if row.second is not None:
            console.print(str(row.second), markup=False)
    if html is not None:
        console.print(f"lost and gained, sample by sample: {html}", markup=False)


def _print_forgetting(console: Console, found: Forgetting) -> None:
    from selectune.reporting.document import Estimate
    from selectune.reporting.terminal import metrics_table

    matrix = found.matrix
    seeds = ", ".join(map(str, found.seeds))
    console.print(f"{found.recipe}: {len(found.runs)} runs, seeds {seeds}", markup=False)
    table = plain_table("after stage", *matrix.columns)
    for row, values in enumerate(matrix.scores):
        ends = zip(values, matrix.low[row], matrix.high[row], strict=True)
        table.add_row(matrix.rows[row], *(f"{decimal(value)}\n{decimals(low, high)}" for value, low, high in ends))
    console.print(table)
    console.print(metrics_table({name: Estimate.model_validate(metric) for name, metric in found.metrics.items()}))


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command("compare")(compare)
    app.command("forgetting")(forgetting)
