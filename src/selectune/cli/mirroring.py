"""mirror and publish: what a registry holds, shown in another program's store. One way: nothing that stands there is believed."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, RegistryUrl
from selectune.cli.screen import Screen
from selectune.cli.versions import Update

mirror = typer.Typer(help="Show a registry's updates and names in another program's store; nothing that stands there is believed.")


@mirror.command("mlflow")
def mlflow(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this update and its ancestors; without it, all.")] = None,
    *,
    tracking_uri: Annotated[
        str, typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", metavar="URI", help="A server's address, or sqlite:///FILE.")
    ],
    model: Annotated[str, typer.Option("--as", metavar="MODEL", help="The registered model's and the experiment's name.")] = "selectune",
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Show updates as logged models with their metrics and tags, and names as aliases of a registered model. Again, and nothing changes."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.mirroring import mirror_mlflow
        from selectune.pipeline.witnessing import open_registry

        found = mirror_mlflow(open_registry(registry), tracking_uri, name, model=model)
        for note in found.notes:
            screen.say(f"note: {note}")

        def human(console: Console) -> None:
            for alias, update in found.aliases.items():
                console.print(f"{alias} → {update[:12]}", markup=False)
            console.print(f"{len(found.added)} updates added, {len(found.aliases)} names set")

        screen.show({"added": list(found.added), "aliases": dict(found.aliases), "notes": list(found.notes)}, human)


def publish(
    update: Update,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="A model repository of the Hugging Face Hub, owner/name; made if need be.")],
    *,
    delta_only: Annotated[bool, typer.Option("--delta-only", help="The delta and the card, not the whole checkpoint.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a repository that everybody sees; it is private without this.")] = False,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Publish an update on the Hugging Face Hub: its checkpoint with a model card that says what was measured, as one commit."""
    with Screen(as_json=as_json) as screen:
        from dataclasses import asdict

        from selectune.pipeline.publishing import push_to_hub
        from selectune.pipeline.witnessing import open_registry

        done = push_to_hub(open_registry(registry), update, repo, private=not public, delta_only=delta_only)
        seen = "private" if done.private else "public"
        text = f"{done.repo} ({seen}): update {done.update[:12]}, {len(done.files)} files, commit {done.commit[:12]}"
        screen.show(asdict(done), lambda console: console.print(text, markup=False))


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command()(publish)
    app.add_typer(mirror, name="mirror")
