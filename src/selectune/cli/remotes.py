"""push and pull: a registry's history and objects to another place, and from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, RegistryUrl
from selectune.cli.screen import Screen

if TYPE_CHECKING:
    from selectune.registry import Carried, Registry

Remote = Annotated[
    str,
    typer.Argument(
        metavar="REMOTE",
        help="A folder, s3://bucket/prefix, hf://owner/name, file://FOLDER, or postgresql+psycopg://host/database?blobs=PLACE.",
    ),
]
One = Annotated[str | None, typer.Option("--update", metavar="ID", help="Only this update and its ancestors, as events of the receiver's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would travel, and send nothing.")]


def push(
    remote: Remote, *, update: One = None, dry_run: DryRun = False, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False
) -> None:
    """Send this registry's history to another place, which becomes a registry if it is none. Only what is missing there travels."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_registry
        from selectune.registry import Registry

        _carry(screen, open_registry(registry), Registry.at(remote), update, dry_run)


def pull(
    remote: Remote, *, update: One = None, dry_run: DryRun = False, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False
) -> None:
    """Take the history of another registry, checked in everything before any of it counts. A registry is made where there is none."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import witness
        from selectune.registry import Registry

        _carry(screen, Registry.open(remote), Registry.at(registry, witness=witness(signing=True)), update, dry_run)


def _carry(screen: Screen, sender: Registry, receiver: Registry, update: str | None, dry_run: bool) -> None:
    screen.start(f"{sender.where} → {receiver.where}, MB", None)
    done = receiver.pull(sender, update=update, dry_run=dry_run, progress=lambda now, all_: screen.advance(now // 10**6, all_ // 10**6))
    screen.show(done.to_json(), lambda console: _print(console, done, sender.where, receiver.where))


def _print(console: Console, done: Carried, sender: str, where: str) -> None:
    would = "" if done.done else "would travel: "
    objects, events = f"{done.objects} object{'s' * (done.objects != 1)}", f"{done.events} event{'s' * (done.events != 1)}"
    console.print(f"{would}{objects}, {done.bytes:,} bytes; {done.skipped} there already; {events}", markup=False)
    for id_ in done.updates:
        console.print(f"new there: update {id_[:12]}", markup=False)
    if done.behind:
        text = f"{done.behind} events of {where} are not in {sender}: send them there, or find out who removed them"
        console.print(text, markup=False)


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    for verb in (push, pull):
        app.command()(verb)
