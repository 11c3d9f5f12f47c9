"""The command line: one verb for each public function, a few lines of parsing and a printer."""

from __future__ import annotations

import typer

from selectune.cli import measuring, models, running, versions

app = typer.Typer(
    name="selectune",
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
for group in (running, models, measuring, versions):
    group.add_to(app)


def main() -> None:
    """The program `selectune`."""
    app(prog_name="selectune")


__all__ = ["app", "main"]
