"""bisect: which update of a line broke a task or a sample."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, RegistryUrl, Sets
from selectune.cli.screen import Screen

if TYPE_CHECKING:
    from selectune.pipeline import Bisected
    from selectune.recipe import Recipe
    from selectune.registry import Registry


def bisect(
    good: Annotated[str, typer.Argument(metavar="GOOD", help="An update that still had it, or `base`: the model before its first one.")],
    bad: Annotated[str, typer.Argument(metavar="BAD", help="A later update of the same line that has not.")],
    *,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Compare the samples of this task, paired.")] = None,
    sample: Annotated[str | None, typer.Option("--sample", metavar="ID", help="Go by this sample alone.")] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Where the task is; without it, the recipe recorded with BAD.")
    ] = None,
    sets: Sets = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Which update between two broke a task or a sample. Of n updates about log2 n versions are measured, besides the two ends.

    Exit code 0 also where that stays undecided, as it does with too few samples: then the updates are listed that it is among.
    """
    with Screen(as_json=as_json) as screen:
        from selectune.models import load
        from selectune.pipeline import Question, kept_tasks, recipe_suite
        from selectune.pipeline import bisect as search
        from selectune.pipeline.witnessing import open_registry

        opened = open_registry(registry)
        read = _recipe(opened, bad, recipe, sets or [])
        question = Question.of(recipe_suite(read), task, sample, batch=read.eval_batch)
        found = search(opened, (good, bad), question, load, screen, kept=kept_tasks(screen))
        screen.show(found.to_json(), lambda console: _print(console, found))


def _recipe(registry: Registry, bad: str, given: str | None, sets: list[str]) -> Recipe:
    from selectune.recipe import read_recipe

    if given is not None:
        return read_recipe(given, sets)
    with tempfile.TemporaryDirectory(prefix="selectune-recipe-") as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_bytes(registry.attachment(bad, "recipe.yaml"))
        return read_recipe(file, sets)


def _print(console: Console, found: Bisected) -> None:
    from selectune.reporting.tables import chance, decimal, plain_table

    table = plain_table("version", "score", "p as GOOD", "p as BAD", "word", "skill")
    for one in (found.good, *found.looked, found.bad):
        table.add_row(one.update[:12], decimal(one.score), chance(one.worse), chance(one.better), one.word, one.skill)
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    asked = f"{found.task}, sample {found.sample}" if found.sample else f"{found.task}, {found.n} samples"
    if found.found is not None:
        console.print(f"{found.found.id[:12]} ({found.found.skill}) broke {asked}", markup=False)
    else:
        names = ", ".join(f"{one.id[:12]} ({one.skill})" for one in found.suspects)
        console.print(f"undecided for {asked}; it is among {names}", markup=False)
    console.print(f"{len(found.looked)} of {found.updates} updates were measured, and the two ends")


def add_to(app: typer.Typer) -> None:
    """Add this verb to the program."""
    app.command()(bisect)
