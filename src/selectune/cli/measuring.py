"""eval, tasks and probe: one stage of measuring alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, ModelArgument, RecipeArgument, RegistryUrl, Sets
from selectune.cli.screen import Screen
from selectune.errors import InputError
from selectune.reporting.tables import decimal, decimals, plain_table

if TYPE_CHECKING:
    from selectune.evaluation import Suite
    from selectune.probes import NumberReading

EVAL_BATCH = 32


def eval_(
    model: ModelArgument,
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A YAML file, or the name of a shipped recipe.")] = None,
    *,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAME,NAME…", help="Tasks in place of a recipe: names of `selectune tasks`, or YAML files."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="DIR", help="With --tasks: a folder that holds a file or folder for each, by name.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="With --tasks: at most N records of each.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.parquet", help="Write every sample there.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    sets: Sets = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Measure a model on every test of a recipe, or on tasks by name.

    Beside a folder ``selectune-runs``, measured tasks are kept in it: those that the very same model was asked before, in the same way on
    the same machine, are read and marked as cached.
    """
    with Screen(as_json=as_json) as screen:
        suite, batch = _suite(recipe, sets, tasks, source, limit)
        from selectune.pipeline import further, kept_tasks, load_any, measure_suite

        measurement = measure_suite(suite, load_any(model, registry), screen, batch=batch, kept=kept_tasks(screen, fresh=fresh))
        if out is not None:
            measurement.save(out)
        from selectune.evaluation.matrix import matrix

        grid = matrix([measurement])
        rows = [
            {"task": task, "score": grid.scores[0][i], "low": grid.low[0][i], "high": grid.high[0][i], "n": grid.n[0][i]}
            for i, task in enumerate(grid.columns)
        ]
        more = [
            {"task": one.task, "scorer": one.scorer, "score": value.value, "low": value.low, "high": value.high, "n": value.n}
            for one in further(measurement, suite)
            for value in [one.estimate]
        ]
        document = {
            "model": model,
            "model_id": measurement.model_id,
            "suite": measurement.suite,
            "tasks": rows,
            "further": more,
            "seconds": measurement.seconds,
            "cached": list(measurement.cached),
            "samples": str(out) if out else None,
        }
        screen.show(document, lambda console: _print_scores(console, [*rows, *more]))


def list_tasks(*, as_json: AsJson = False) -> None:
    """The tasks that a recipe and `eval --tasks` may name: where their records are, how each asks, and how it is scored."""
    with Screen(as_json=as_json) as screen:
        from selectune.evaluation.scorers import scorer_name
        from selectune.evaluation.tasks import all_tasks

        rows = [
            {
                "name": spec.name,
                "title": spec.title,
                "about": spec.about,
                "role": spec.role,
                "kind": spec.kind,
                "scorer": scorer_name(spec.scorer) if spec.kind == "generate" else None,
                "further": list(spec.further),
                "likelihoods": spec.likelihoods,
                "max_new_tokens": spec.max_new_tokens if spec.kind == "generate" else None,
                "prompt": None if spec.kind == "perplexity" else spec.prompt,
                "source": {"hub": spec.source.hub, "config": spec.source.config, "split": spec.source.split},
            }
            for spec in all_tasks().values()
        ]
        screen.show({"tasks": rows}, lambda console: _print_tasks(console, rows))


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


def _suite(recipe: str | None, sets: Sequence[str] | None, tasks: str | None, source: Path | None, limit: int | None) -> tuple[Suite, int]:
    """What to measure, and with how many records at once."""
    from selectune.recipe import read_recipe

    if (recipe is None) == (tasks is None):
        raise InputError("it needs a recipe or --tasks, one of them", where="eval", then="Write selectune eval MODEL --tasks ai2d,chartqa.")
    if recipe is None and sets:
        raise InputError("--set changes a recipe, and there is none", where="eval", then="Leave it out.")
    if tasks is None and (source or limit):
        raise InputError("--source and --limit go with --tasks", where="eval", then="Give a recipe's sources and limits in the recipe.")
    read = read_recipe(recipe, sets or ()) if recipe is not None else None
    from selectune.pipeline import recipe_suite, task_suite

    if read is not None:
        return recipe_suite(read), read.eval_batch
    return task_suite([name for name in str(tasks).split(",") if name], source=source, limit=limit), EVAL_BATCH


def _print_tasks(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        source = row["source"]
        asked = "" if row["prompt"] is None else f"  asks    {row['prompt']!r}\n"
        scored = ", ".join([row["scorer"] or row["kind"], *row["further"]]) + (" and likelihoods" if row["likelihoods"] else "")
        place = " ".join(one for one in (source["hub"], source["config"], source["split"]) if one)
        console.print(f"{row['name']}  ({row['title']})\n  {row['about']}\n{asked}  scored  {scored}\n  from    {place}", markup=False)


def _print_scores(console: Console, rows: Sequence[Mapping[str, object]]) -> None:
    table = plain_table("task", "score", "95 % interval", "n")
    for row in rows:
        name = f"{row['task']}, by {row['scorer']}" if "scorer" in row else str(row["task"])
        table.add_row(name, decimal(row["score"]), decimals(row["low"], row["high"]), str(row["n"]))
    console.print(table)


def _print_reading(console: Console, reading: NumberReading) -> None:
    console.print(
        f"number words: {reading.mean:.4f} ({decimals(reading.low, reading.high)}, n = {reading.n}); largest step {reading.max_mean:.4f}"
    )
    for caption in reading.captions[:8]:
        console.print(f"  {caption.mean:.4f}  {caption.id}: {caption.text}", markup=False)


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command("eval")(eval_)
    app.command("tasks")(list_tasks)
    app.command("probe")(probe)
