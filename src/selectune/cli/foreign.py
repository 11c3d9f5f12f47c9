"""eval-with and import-eval: what other evaluators measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, RegistryUrl
from selectune.cli.screen import Screen
from selectune.errors import InputError

if TYPE_CHECKING:
    from selectune.evaluation import Measurement

LMMS_EVAL = "lmms-eval"

Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="[TASK=]NAME", help="The metric to go by, in 0 to 1, where a task has several; one for each task."),
]
SampleFile = Annotated[Path, typer.Option("--out", metavar="FILE.parquet", help="The measurement, for compare.")]


def eval_with(
    evaluator: Annotated[str, typer.Argument(metavar="EVALUATOR", help="lmms-eval.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id on this disk, or a registry name or id.")],
    *,
    tasks: Annotated[str, typer.Option("--tasks", metavar="NAME,NAME…", help="By the evaluator's own names.")],
    python: Annotated[Path, typer.Option("--python", metavar="FILE", help="The python of the evaluator's environment.")],
    out: SampleFile,
    backend: Annotated[str, typer.Option("--backend", metavar="NAME", help="The evaluator's name for the kind of model.")] = "huggingface",
    model_args: Annotated[
        list[str] | None, typer.Option("--model-arg", metavar="NAME=VALUE", help="For its model, such as device=cpu; give several.")
    ] = None,
    include: Annotated[Path | None, typer.Option("--include", metavar="DIR", help="A folder with tasks of your own.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most N samples of each task.")] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Samples at once.")] = 1,
    metrics: Metrics = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Measure a model with another evaluator, in that one's own environment, sample by sample."""
    with Screen(as_json=as_json) as screen:
        if evaluator != LMMS_EVAL:
            raise InputError(f'"{evaluator}" cannot be run from here', where="eval-with", then="Use lmms-eval, or import-eval for logs.")
        from selectune.evaluation.bridges.lmms import Asked
        from selectune.pipeline import measure_with_lmms_eval

        asked = Asked(
            python=python,
            tasks=tuple(tasks.split(",")),
            backend=backend,
            model_args=tuple(model_args or ()),
            include=include,
            limit=limit,
            batch=batch,
        )
        _keep(screen, measure_with_lmms_eval(model, asked, screen, registry=registry, metrics=metrics or ()), out)


def import_eval(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Samples of lm-eval or lmms-eval, or one Inspect log; or a folder.")],
    *,
    out: SampleFile,
    stage: Annotated[str, typer.Option("--stage", metavar="NAME", help="What to call it; the model's name in the log without.")] = "",
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The model that was evaluated: its weights' id is kept with the scores.")
    ] = None,
    metrics: Metrics = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Make a measurement of what lm-eval, lmms-eval or Inspect logged, for compare and the gates."""
    with Screen(as_json=as_json) as screen:
        from selectune.evaluation.bridges import measured, read_log

        log = read_log(files)
        identity = None
        if model is not None:
            from selectune.pipeline import load_any

            identity = load_any(model, registry).id
        _keep(screen, measured(log, stage=stage or log.model, metrics=metrics or (), model_id=identity), out)


def _keep(screen: Screen, measurement: Measurement, out: Path) -> None:
    """Save a measurement, and show what is in it."""
    measurement.save(out)
    from selectune.reporting.tables import decimal, plain_table

    rows = [
        {
            "task": task,
            "metric": next(iter(measurement.of(task).values())).extra["metric"],
            "score": measurement.score(task),
            "n": measurement.n(task),
            "clusters": len(set(measurement.clusters(task).values())),
        }
        for task in measurement.tasks
    ]
    document = {
        "samples": str(out),
        "stage": measurement.stage,
        "model_id": measurement.model_id,
        "suite": measurement.suite,
        "environment": dict(measurement.environment),
        "tasks": rows,
    }
    table = plain_table("task", "metric", "score", "n", "clusters")
    for row in rows:
        table.add_row(str(row["task"]), str(row["metric"]), decimal(row["score"]), str(row["n"]), str(row["clusters"]))
    screen.show(document, lambda console: console.print(table))


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command("eval-with")(eval_with)
    app.command("import-eval")(import_eval)
