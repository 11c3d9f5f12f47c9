"""log, show, apply, promote, revert and verify: what the registry holds. None but `apply` loads torch, and none makes a registry."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, Reason, RegistryUrl
from selectune.cli.screen import Screen

Update = Annotated[str, typer.Argument(metavar="ID", help="An update's id, the beginning of one, or a name.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name such as production.")]
Actor = Annotated[str | None, typer.Option("--actor", metavar="WHO", help="Who; the login name without it.")]


def log(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this update and its ancestors.")] = None,
    *,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """The updates, newest first."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry
        from selectune.reporting.result import UpdateInfo

        opened = Registry.open(registry)
        found = opened.log(name)

        def human(console: Console) -> None:
            from selectune.reporting.terminal import log_table

            rows = [
                UpdateInfo.model_validate(
                    {
                        "id": one.id,
                        "parent": one.parent,
                        "base": one.base,
                        "child": one.child,
                        "skill": one.skill,
                        "verdict": one.verdict or None,
                        "names": one.names,
                        "created": one.created,
                        "bytes": opened.blob(one.delta).stat().st_size,
                    }
                )
                for one in found
            ]
            console.print(log_table(rows))

        screen.show({"updates": [update.to_json() for update in found]}, human)


def show(update: Update, *, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False) -> None:
    """One update: where it comes from, what changed, and what the gate said."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry

        found = Registry.open(registry).show(update)

        def human(console: Console) -> None:
            import yaml

            console.print(yaml.safe_dump(found.to_json(), sort_keys=False, allow_unicode=True, width=120).rstrip(), markup=False)

        screen.show(found.to_json(), human)


def apply(
    update: Update,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    *,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Write an update as a full checkpoint: weights with the names of its base's files, configuration, processor."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry

        opened = Registry.open(registry)
        found = opened.show(update)
        from selectune.pipeline import save_full

        path = save_full(opened, found.id, out)
        document = {"update": found.id, "model_id": found.child, "folder": str(path)}
        screen.show(document, lambda console: console.print(f"{path}: update {found.id[:12]}, model {found.child[:12]}"))


def promote(
    update: Update, name: Name, *, reason: Reason, actor: Actor = None, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False
) -> None:
    """Point a name to an update. The reason is kept; so is where the name pointed before."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry

        move = Registry.open(registry).promote(update, name, reason, actor or getpass.getuser())
        if move.verdict != "passed":
            word = move.verdict or "none, it was not judged"
            screen.say(f"note: the gate's word on {move.update[:12]} was: {word}; the log keeps that beside your reason")
        screen.show(
            move.to_json(), lambda console: console.print(f"{move.name} → {move.update[:12]} (before: {(move.previous or 'nothing')[:12]})")
        )


def revert(name: Name, *, reason: Reason, actor: Actor = None, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False) -> None:
    """Point a name back to where it pointed before its last promotion."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry

        move = Registry.open(registry).revert(name, reason, actor or getpass.getuser())
        screen.show(
            move.to_json(), lambda console: console.print(f"{move.name} → {move.update[:12]} (before: {(move.previous or 'nothing')[:12]})")
        )


def verify(*, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False) -> None:
    """Recompute every hash of the registry. Exit code 1 if something is not what it says."""
    with Screen(as_json=as_json) as screen:
        from dataclasses import asdict

        from selectune.registry import Registry

        found = Registry.open(registry).verify()

        def human(console: Console) -> None:
            for problem in found.problems:
                console.print(f"{problem.kind} {problem.subject}: {problem.text}", markup=False)
            state = "nothing is wrong" if found.ok else f"{len(found.problems)} problems"
            console.print(f"{found.events} events, {found.updates} updates, {found.objects} objects: {state}")

        screen.show({"ok": found.ok, **asdict(found)}, human)
        if not found.ok:
            screen.exit(1)


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    for verb in (log, show, apply, promote, revert, verify):
        app.command()(verb)
