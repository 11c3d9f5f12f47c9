"""The command line: one verb for each public function, a few lines of parsing and a printer."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from selectune.cli import (
    bisecting,
    comparing,
    deriving,
    foreign,
    governing,
    keeping,
    measuring,
    mirroring,
    models,
    remotes,
    running,
    upgrading,
    versions,
)
from selectune.cli.options import FamilyFiles
from selectune.cli.screen import Screen

_AS_JSON = "selectune.as_json"


class Program(TyperGroup):
    """The program, which knows before the verb is read how that one's errors are to be printed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the options before the verb."""
        ctx.meta[_AS_JSON] = "--json" in args
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="selectune",
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Teach a vision-language model new skills by retraining only chosen components, and prove what changed and what was forgotten.",
    epilog=(
        "Exit codes: 0 done (an undecided gate too), 1 a gate, verification or comparison failed, 2 the input is wrong, "
        "3 a bug of ours, 130 stopped."
    ),
)


@app.callback()
def program(context: typer.Context, families: FamilyFiles = None) -> None:
    """Options before the verb."""
    if families:
        with Screen(as_json=context.meta[_AS_JSON]):
            from selectune.components import add_families

            for path in families:
                context.with_resource(add_families(path))


for group in (
    running,
    models,
    measuring,
    foreign,
    comparing,
    versions,
    deriving,
    governing,
    keeping,
    remotes,
    bisecting,
    mirroring,
    upgrading,
):
    group.add_to(app)


def main() -> None:
    """The program `selectune`."""
    app(prog_name="selectune")


__all__ = ["app", "main"]
