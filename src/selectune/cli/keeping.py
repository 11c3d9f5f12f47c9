"""tag, retire, hold, export, gc and fsck: what stays, and whether it is whole. None loads torch, none makes a registry."""

from __future__ import annotations

import getpass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, Reason, RegistryUrl, SigningKey
from selectune.cli.screen import Screen
from selectune.cli.versions import Actor, Name, Update
from selectune.errors import InputError

Days = Annotated[int, typer.Option("--keep-days", metavar="N", min=0, help="How long a version stays after it last had a name.")]


def tag(
    update: Update,
    name: Name,
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept with the tag.")] = "",
    actor: Actor = None,
    key: SigningKey = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Give an update a name of its own for good, such as v1. A name that moves is promoted instead."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_registry

        found = open_registry(registry, signing=True, key=key).tag(update, name, reason, actor or getpass.getuser())
        screen.show({"update": found.id, "tag": name}, lambda console: console.print(f"{name} is {found.id[:12]}"))


def retire(
    update: Update,
    *,
    reason: Reason,
    actor: Actor = None,
    key: SigningKey = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Say that an update is not to be promoted any more. It can still be loaded, and that it is retired is said wherever it appears."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_registry

        found = open_registry(registry, signing=True, key=key).retire(update, reason, actor or getpass.getuser())
        screen.show({"update": found.id, "retired": reason}, lambda console: console.print(f"{found.id[:12]} is retired"))


def hold(
    update: Update,
    *,
    reason: Reason,
    until: Annotated[str | None, typer.Option("--until", metavar="YYYY-MM-DD", help="The last day of the hold, in UTC.")] = None,
    release: Annotated[bool, typer.Option("--release", help="End every hold on the update.")] = False,
    actor: Actor = None,
    key: SigningKey = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Keep an update, and what it stands on, from being collected until a day is over; or end that."""
    with Screen(as_json=as_json) as screen:
        if (until is None) != release:
            raise InputError("a hold needs its last day, or its end", where="hold", then="Give --until YYYY-MM-DD or --release, not both.")
        day = _day(until) if until else None
        from selectune.pipeline.witnessing import open_registry

        opened, who = open_registry(registry, signing=True, key=key), actor or getpass.getuser()
        found = opened.release(update, reason, who) if day is None else opened.hold(update, day, reason, who)
        text = f"{found.id[:12]} is held no more" if day is None else f"{found.id[:12]} is held until {day}"
        screen.show({"update": found.id, "until": day.isoformat() if day else None}, lambda console: console.print(text))


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text[:40]!r} is no day", where="hold", then="Write it as 2036-12-31.") from error


def export(
    update: Update,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it, such as v1.selectune.")],
    *,
    oci: Annotated[bool, typer.Option("--oci", help="Write a new folder, an OCI image layout for container registries.")] = False,
    actor: Actor = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Write one version with its ancestors to a single file; `selectune import FILE` records it elsewhere."""
    with Screen(as_json=as_json) as screen:
        from dataclasses import asdict

        from selectune.pipeline.witnessing import open_registry

        if oci:
            _export_layout(screen, update, file, registry, actor or getpass.getuser())
            return
        found = open_registry(registry, signing=True).export(update, file, actor or getpass.getuser())
        text = f"{file}: update {found.update[:12]}, {found.updates} updates, {found.objects} objects, {found.bytes:,} bytes"
        screen.show({**asdict(found), "file": str(file)}, lambda console: console.print(text, markup=False))


def _export_layout(screen: Screen, update: str, folder: Path, url: str, actor: str) -> None:
    from selectune.pipeline.witnessing import open_registry
    from selectune.registry.oci import write_layout

    opened = open_registry(url, signing=True)
    written = write_layout(opened, [update], folder)
    opened.note("export", written[-1].id, {"form": "oci"}, actor)
    document = {"update": written[-1].id, "updates": [one.id for one in written], "folder": str(folder)}
    text = f"{folder}: update {written[-1].id[:12]}, {len(written)} updates as an OCI image layout"
    screen.show(document, lambda console: console.print(text, markup=False))


def gc(
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without this the verb only says what would go.")] = False,
    keep_days: Days = 3650,
    candidate_days: Annotated[
        int, typer.Option("--candidate-days", metavar="N", min=0, help="How long one stays that never had a name.")
    ] = 30,
    actor: Actor = None,
    key: SigningKey = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """What no name, tag, hold or later update needs, and whose time is over: list it, or delete its bytes. The log keeps every event."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_registry
        from selectune.registry.collecting import Keep

        keep = Keep(days=keep_days, candidate_days=candidate_days)
        found = open_registry(registry, signing=delete, key=key).gc(keep=keep, delete=delete, actor=actor or getpass.getuser())

        def human(console: Console) -> None:
            for update in found.updates:
                console.print(f"{update.id[:12]}  {update.created}  {update.skill}", markup=False)
            for item in found.leftovers:
                console.print(f"{item.name[:12]}  leftover, {item.bytes:,} bytes", markup=False)
            files = len(found.objects) + len(found.leftovers)
            what = f"{len(found.updates)} updates, {files} files, {found.bytes:,} bytes"
            console.print(f"{what}: {'gone' if delete else 'would go; --delete removes them'}. {len(found.kept)} updates stay.")
            if found.busy:
                console.print(f"{found.busy} files are being removed by another gc.")

        screen.show(found.to_json(), human)


def fsck(
    *,
    repair: Annotated[
        list[str] | None, typer.Option("--repair", metavar="DIR-or-URL", help="Another registry to fetch damaged or missing objects from.")
    ] = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Look at every event, object and leftover, and mend objects from another registry. Exit code 1 if something stays wrong."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry

        found = Registry.open(registry).fsck(*(Registry.open(one) for one in repair or ()))

        def human(console: Console) -> None:
            for one in found.repairs:
                end = "mended" if one.mended else f"not mended: {one.why}"
                console.print(f"{one.name[:12]} ({one.of}): {one.fault}, {end}", markup=False)
            for problem in found.report.problems:
                console.print(f"{problem.kind} {problem.subject}: {problem.text}", markup=False)
            for name in found.report.leftovers:
                console.print(f"{name}: no update refers to it; gc takes it when it is a day old", markup=False)
            state = "nothing is wrong" if found.ok else f"{len(found.report.problems)} problems"
            console.print(f"{found.report.events} events, {found.report.updates} updates, {found.report.objects} objects: {state}")

        screen.show(found.to_json(), human)
        if not found.ok:
            screen.exit(1)


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    for verb in (tag, retire, hold, export, gc, fsck):
        app.command()(verb)
