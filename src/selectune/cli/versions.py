"""log, show, apply, promote, revert and verify: what the registry holds. None but `apply` loads torch, and none makes a registry."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, Reason, RegistryUrl, SigningKey
from selectune.cli.screen import Screen
from selectune.errors import InputError

if TYPE_CHECKING:
    from selectune.registry import Move, Registry, Standing
    from selectune.registry import Update as Recorded

Update = Annotated[str, typer.Argument(metavar="ID", help="An update's id, the beginning of one, or a name.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name such as production.")]
Actor = Annotated[str | None, typer.Option("--actor", metavar="WHO", help="Who; the login name without it.")]


def log(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this update and its ancestors.")] = None,
    *,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show at most so many updates; JSON has all.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Show every update.")] = False,
    as_json: AsJson = False,
) -> None:
    """The updates, newest first, and the last recorded verify; of a name that moves, every update that served under it, who moved it, when
    and why."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry

        opened = Registry.open(registry)
        if name or everything or as_json:
            found, signed = opened.signed_log(name)
            count = len(found)
        else:
            found, signed, count = opened.recent(limit)
        history = opened.history(name)[::-1] if name else []
        looked = [] if name else opened.verifications()
        shown = found if everything else found[:limit]

        def human(console: Console) -> None:
            _print_updates(console, opened, shown, signed)
            if count > len(shown):
                console.print(f"{count - len(shown)} more: --all, or --limit N")
            if history:
                _print_history(console, history)
            for one in shown:
                for note in signed.notes(one.id):
                    console.print(f"{one.id[:12]}: {note}", markup=False)
            if looked:
                console.print(str(looked[-1]), markup=False)

        described = [_described(update, signed) for update in found] if as_json else []
        document = {
            "updates": described,
            "history": [move.to_json() for move in history],
            "verified": [one.to_json() for one in looked],
        }
        screen.show(document, human)


def _print_updates(console: Console, opened: Registry, shown: Sequence[Recorded], signed: Standing) -> None:
    from selectune.reporting.history import Entry, log_table

    rows = [
        Entry(
            id=one.id,
            parent=one.parent,
            skill=one.skill,
            verdict=one.verdict,
            names=(*one.names, *one.tags),
            size=0 if one.id in signed.collected else opened.size(one.delta),
            created=one.created,
        )
        for one in shown
    ]
    console.print(log_table(rows))


def _print_history(console: Console, history: Sequence[Move]) -> None:
    from selectune.reporting.tables import plain_table

    table = plain_table("since", history[0].name, "by", "who", "gate", "why")
    for move in history:
        table.add_row(move.created, move.update[:12], move.kind, move.actor, move.verdict or "not judged", move.reason)
    console.print(table)


def show(update: Update, *, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False) -> None:
    """One update: where it comes from, what changed, and what the gate said."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry

        opened = Registry.open(registry)
        document = _described(opened.show(update), opened.standing())

        def human(console: Console) -> None:
            import yaml

            console.print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120).rstrip(), markup=False)

        screen.show(document, human)


def _described(update: Recorded, signed: Standing) -> dict[str, Any]:
    """An update with what people signed of it."""
    end = signed.revoked.get(update.id)
    return {
        **update.to_json(),
        "approvals": [one.to_json() for one in signed.signatures(update.id)],
        "revoked": {"reason": end.reason, "actor": end.actor, "created": end.created} if end else None,
        "notes": signed.notes(update.id),
    }


def apply(
    update: Update,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    *,
    sign: Annotated[str | None, typer.Option("--sign", metavar="KEY", help="Sign the folder with this P-256 key: OUT/model.sig.")] = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Write an update as a full checkpoint: weights with the names of its base's files, configuration, processor."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_key, open_registry

        opened, key = open_registry(registry), open_key(sign) if sign else None
        found = opened.show(update)
        from selectune.pipeline import save_full

        path = save_full(opened, update, out, sign=key, progress=screen)
        document = {"update": found.id, "model_id": found.child, "folder": str(path)}
        screen.show(document, lambda console: console.print(f"{path}: update {found.id[:12]}, model {found.child[:12]}"))


def _show_move(screen: Screen, move: Move) -> None:
    line = f"{move.name} → {move.update[:12]} (before: {(move.previous or 'nothing')[:12]})"
    screen.show(move.to_json(), lambda console: console.print(line))


def promote(
    update: Update,
    name: Name,
    *,
    reason: Reason,
    actor: Actor = None,
    key: SigningKey = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Point a name to an update. The reason is kept; so is where the name pointed before."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_registry

        move = open_registry(registry, signing=True, key=key).promote(update, name, reason, actor or getpass.getuser())
        if move.verdict != "passed":
            word = move.verdict or "none, it was not judged"
            screen.say(f"note: the gate's word on {move.update[:12]} was: {word}; the log keeps that beside your reason")
        _show_move(screen, move)


def revert(
    name: Name,
    *,
    reason: Reason,
    actor: Actor = None,
    key: SigningKey = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Point a name back to where it pointed before its last promotion."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_registry

        move = open_registry(registry, signing=True, key=key).revert(name, reason, actor or getpass.getuser())
        _show_move(screen, move)


def verify(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="A checkpoint, with --signature.")] = None,
    *,
    head: Annotated[str | None, typer.Option("--head", metavar="FILE", help="A signed head of the log that was kept elsewhere.")] = None,
    signature: Annotated[Path | None, typer.Option("--signature", metavar="FILE", help="The folder's signature, model.sig.")] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="The public key that is trusted, as PEM; of a head, the policy's without it."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep in the registry's log what was looked at, and how much was wrong.")
    ] = False,
    actor: Actor = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Recompute every hash of the registry, or check a folder's signature. Exit code 1 if something is not what it says."""
    with Screen(as_json=as_json) as screen:
        if folder is not None or signature is not None:
            if record:
                raise InputError("a folder has no log to keep that in", where="verify", then="Leave --record out.")
            _verify_folder(screen, folder, signature, key)
        else:
            _verify_registry(screen, registry, (head, key), (actor or getpass.getuser()) if record else None)


def _verify_folder(screen: Screen, folder: Path | None, signature: Path | None, key: Path | None) -> None:
    from selectune.governance import read_public, verify_folder

    if folder is None or signature is None or key is None:
        raise InputError("a folder, its signature and a key belong together", then="selectune verify FOLDER --signature FILE --key FILE")
    found = verify_folder(folder, signature, read_public(key))
    document = {"ok": True, "folder": str(folder), "signed_as": found.name, "files": found.files, "key": found.key}
    screen.show(document, lambda console: console.print(f"{found.files} files as they were signed with key {found.key[:12]}", markup=False))


def _verify_registry(screen: Screen, url: str, head: tuple[str | None, Path | None], recorder: str | None) -> None:
    """Looks at a registry, with a signed head's place and key; a `recorder` keeps what was found in its log."""
    from dataclasses import asdict

    from selectune.governance import read_public
    from selectune.pipeline.witnessing import open_registry
    from selectune.registry import Registry

    place, key = head
    opened = Registry.open(url) if recorder is None else open_registry(url, signing=True)
    found = opened.verify() if place is None else opened.verify_signed(place, read_public(key) if key else None)

    def human(console: Console) -> None:
        for problem in found.problems:
            console.print(f"{problem.kind} {problem.subject}: {problem.text}", markup=False)
        state = "nothing is wrong" if found.ok else f"{len(found.problems)} problems"
        console.print(f"{found.events} events, {found.updates} updates, {found.objects} objects: {state}")
        if found.policy:
            console.print(f"policy {found.policy[:12]}")
        else:
            console.print("no policy: any update may get any name, and nobody has to approve")

    recorded = recorder is not None and found.continued
    if recorder is not None:
        if recorded:
            opened.keep_report(found, recorder, signed_head=place is not None)
        else:
            screen.say("note: not recorded: nothing is appended to a log that is not what it says")
    screen.show({"ok": found.ok, "recorded": recorded, **asdict(found)}, human)
    if not found.ok:
        screen.exit(1)


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    for verb in (log, show, apply, promote, revert, verify):
        app.command()(verb)
