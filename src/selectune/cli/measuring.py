"""eval, probe and compare: one stage of measuring alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, ModelArgument, RecipeArgument, RegistryUrl, Sets
from selectune.cli.screen import Screen
from selectune.errors import InputError

if TYPE_CHECKING:
    from selectune.evaluation import Measurement
    from selectune.pipeline import Comparison
    from selectune.probes import NumberReading
    from selectune.recipe import Recipe

PARQUET = ".parquet"


def eval_(
    model: ModelArgument,
    recipe: RecipeArgument,
    *,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.parquet", help="Write every sample there.")] = None,
    sets: Sets = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Measure a model on every test of a recipe."""
    from selectune.recipe import read_recipe

    with Screen(as_json=as_json) as screen:
        read = read_recipe(recipe, sets or ())
        from selectune.pipeline import load_any, measure

        measurement = measure(read, load_any(model, registry), screen)
        if out is not None:
            measurement.save(out)
        from selectune.evaluation.matrix import matrix

        grid = matrix([measurement])
        rows = [
            {"task": task, "score": grid.scores[0][i], "low": grid.low[0][i], "high": grid.high[0][i], "n": grid.n[0][i]}
            for i, task in enumerate(grid.columns)
        ]
        document = {
            "model": model,
            "model_id": measurement.model_id,
            "suite": measurement.suite,
            "tasks": rows,
            "seconds": measurement.seconds,
            "samples": str(out) if out else None,
        }
        screen.show(document, lambda console: _print_scores(console, rows))


def probe(
    model: ModelArgument, recipe: RecipeArgument, *, sets: Sets = None, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False
) -> None:
    """How likely number words are when a model captions the pictures of a recipe's `probe.numbers`."""
    from selectune.recipe import read_recipe

    with Screen(as_json=as_json) as screen:
        read = read_recipe(recipe, sets or ())
        from selectune.pipeline import load_any, read_numbers

        reading = read_numbers(read, load_any(model, registry), screen)
        from selectune.statistics.intervals import finite_or_none

        low, high = finite_or_none(reading.low), finite_or_none(reading.high)
        captions = [{"id": one.id, "text": one.text, "mean": one.mean, "max": one.max} for one in reading.captions]
        numbers = {"mean": reading.mean, "low": low, "high": high, "max_mean": reading.max_mean, "n": reading.n}
        screen.show({"model": model, "numbers": numbers, "captions": captions}, lambda console: _print_reading(console, reading))


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A measurement (.parquet), or a model.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another of the same kind.")],
    *,
    recipe: Annotated[str | None, typer.Option("--recipe", metavar="RECIPE", help="What to measure two models on.")] = None,
    sets: Sets = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Two measurements, or two models, task by task, paired by sample, with 95 % intervals.

    Exit code 1 if B is worse than A on a task, that is, the whole interval of its change lies below zero.
    """
    from selectune.recipe import read_recipe

    with Screen(as_json=as_json) as screen:
        read = read_recipe(recipe, sets or ()) if recipe else None
        from selectune.pipeline import compare as pair

        rows = pair(_measurement(before, read, registry, screen), _measurement(after, read, registry, screen))
        screen.show({"a": before, "b": after, "tasks": [row.to_json() for row in rows]}, lambda console: _print_comparisons(console, rows))
        if any(row.worse for row in rows):
            screen.exit(1)


def _measurement(name: str, recipe: Recipe | None, registry: str, screen: Screen) -> Measurement:
    """A saved measurement, or one taken now."""
    from selectune.evaluation import Measurement

    if name.endswith(PARQUET):
        return Measurement.load(name)
    if recipe is None:
        raise InputError(f'"{name}" is no measurement, and there is nothing to measure it on', where="compare", then="Add --recipe RECIPE.")
    from selectune.pipeline import load_any, measure

    return measure(recipe, load_any(name, registry), screen)


def _print_scores(console: Console, rows: Sequence[Mapping[str, object]]) -> None:
    table = _table("task", "score", "95 % interval", "n")
    for row in rows:
        table.add_row(str(row["task"]), _number(row["score"]), _range(row["low"], row["high"]), str(row["n"]))
    console.print(table)


def _print_reading(console: Console, reading: NumberReading) -> None:
    console.print(
        f"number words: {reading.mean:.4f} ({_range(reading.low, reading.high)}, n = {reading.n}); largest step {reading.max_mean:.4f}"
    )
    for caption in reading.captions[:8]:
        console.print(f"  {caption.mean:.4f}  {caption.id}: {caption.text}", markup=False)


def _print_comparisons(console: Console, rows: Sequence[Comparison]) -> None:
    table = _table("task", "A", "B", "change", "95 % interval", "gained", "lost", "n")
    for row in rows:
        change = (f"{row.value:+.4f}", _range(row.low, row.high), str(row.gained), str(row.lost), str(row.n))
        table.add_row(row.task, _number(row.before), _number(row.after), *change)
    console.print(table)


def _number(value: object) -> str:
    return "—" if not isinstance(value, float) else f"{value:.4f}"


def _range(low: object, high: object) -> str:
    return f"{_number(low)} to {_number(high)}"


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), show_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    return table


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command("eval")(eval_)
    app.command("probe")(probe)
    app.command("compare")(compare)
