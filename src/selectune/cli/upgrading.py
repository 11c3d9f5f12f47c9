"""registry upgrade: the tables behind a registry."""

from __future__ import annotations

import typer

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, RegistryUrl
from selectune.cli.screen import Screen

registry = typer.Typer(no_args_is_help=True, help="The database behind a registry.")


@registry.callback()
def _group() -> None:
    """The database behind a registry."""


@registry.command("upgrade")
def upgrade(*, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False) -> None:
    """Bring the tables of a registry that an older version made to those of this one. No event changes; nobody writes meanwhile."""
    with Screen(as_json=as_json) as screen:
        from dataclasses import asdict

        from selectune.registry.upgrading import upgrade as bring

        done = bring(registry)
        said = f"revision {done.before} → {done.after}" if done.before != done.after else f"revision {done.after}: nothing to do"
        screen.show(asdict(done), lambda console: console.print(f"{done.where}: {said}", markup=False))


def add_to(app: typer.Typer) -> None:
    """Add the group to the program."""
    app.add_typer(registry, name="registry")
