"""keys, policy, approve, revoke and head: who may do what, and what they sign."""

from __future__ import annotations

import getpass
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, Reason, RegistryUrl
from selectune.cli.screen import Screen
from selectune.cli.versions import Actor, Update

if TYPE_CHECKING:
    from rich.console import Console

    from selectune.governance import PublicKey

keys = typer.Typer(no_args_is_help=True, help="Keys that sign approvals, policies, heads and checkpoints. They lie in SELECTUNE_KEYS.")
policy = typer.Typer(no_args_is_help=True, help="Who may do what in a registry, signed by an admin.")

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The key's name, or the path of its file.")]
Key = Annotated[str, typer.Option("--key", metavar="KEY", help="The private key's name, or the path of its file.")]


@keys.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, `_`, `.` and `-`.")],
    *,
    kind: Annotated[Literal["ed25519", "p256"], typer.Option("--kind", help="p256 for keys that sign checkpoints.")] = "ed25519",
    plain: Annotated[bool, typer.Option("--no-passphrase", help="Do not encrypt the private key.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key. The private half is encrypted with a passphrase: SELECTUNE_PASSPHRASE, or one that is asked for."""
    with Screen(as_json=as_json) as screen:
        from selectune.governance import key_folder, new_key

        made = new_key(name, key_folder(), kind, passphrase=None if plain else _new_passphrase())
        _show_key(screen, name, made.public)


def _new_passphrase() -> bytes:
    from selectune.errors import KeyFileError
    from selectune.pipeline.witnessing import PASSPHRASE

    known = os.environ.get(PASSPHRASE)
    if known is None and sys.stdin.isatty():
        known = getpass.getpass("Passphrase: ")
        if known != getpass.getpass("Again: "):
            raise KeyFileError("the two passphrases differ", then="Begin again.")
    if not known:
        raise KeyFileError("there is no passphrase", then=f"Set {PASSPHRASE}, or say --no-passphrase.")
    return known.encode()


@keys.command("list")
def list_keys(*, as_json: AsJson = False) -> None:
    """The keys in the folder of keys."""
    with Screen(as_json=as_json) as screen:
        from selectune.governance import key_folder, read_public

        folder = key_folder()
        found = {path.name.removesuffix(".pub.pem"): read_public(path) for path in sorted(folder.glob("*.pub.pem"))}

        def human(console: Console) -> None:
            for name, key in found.items():
                console.print(f"{name}  {key.kind}  {key.id[:12]}", markup=False)
            console.print(f"{len(found)} keys in {folder}", markup=False)

        screen.show({"folder": str(folder), "keys": [_key(name, key) for name, key in found.items()]}, human)


@keys.command("show")
def show_key(name: KeyName, *, as_json: AsJson = False) -> None:
    """The public half of a key, to be put into a policy."""
    with Screen(as_json=as_json) as screen:
        from selectune.governance import read_public
        from selectune.pipeline.witnessing import find_public

        _show_key(screen, name, read_public(find_public(name)))


def _show_key(screen: Screen, name: str, key: PublicKey) -> None:
    screen.show(_key(name, key), lambda console: console.print(f"{key.pem}{name}: {key.kind}, id {key.id}", markup=False))


def _key(name: str, key: PublicKey) -> dict[str, Any]:
    return {"name": name, "kind": key.kind, "id": key.id, "pem": key.pem}


@policy.command()
def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy as YAML or JSON; `previous` is filled in.")],
    out: Annotated[Path, typer.Argument(metavar="SIGNED", help="The signed policy is written here.")],
    *,
    key: Key,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Sign a policy that is to follow the one in force, as an admin of that; the first one as an admin of its own."""
    with Screen(as_json=as_json) as screen:
        from selectune.delta.files import replacing
        from selectune.governance import check_successor, seal
        from selectune.pipeline.witnessing import open_key
        from selectune.registry import Registry

        current = Registry.open(registry).standing().policy
        envelope = seal(_policy_of(file, current.digest if current else None), open_key(key))
        found = check_successor(envelope, current, where=str(file))
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(envelope.to_json(), indent=1) + "\n", encoding="utf-8")
        screen.show({"policy": found.digest, "file": str(out)}, lambda console: console.print(f"{out}: policy {found.digest[:12]}"))


def _policy_of(file: Path, previous: str | None) -> Any:
    from selectune.errors import DocumentError, RecipeError
    from selectune.governance import Policy
    from selectune.hashing import canonical
    from selectune.recipe.reading import parse_yaml

    try:
        value = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"cannot be read ({error})", where=str(file), then="Give a file that exists, in UTF-8.") from error
    except RecipeError as error:
        raise DocumentError(f"is no YAML ({error.what})", where=error.where, then=error.then) from error
    if not isinstance(value, dict):
        raise DocumentError("is no mapping", where=str(file), then="See docs/how-to/approve-and-sign.md for one.")
    return Policy.parse(canonical({"previous": previous, **value}), str(file))


@policy.command("set")
def set_policy(
    file: Annotated[Path, typer.Argument(metavar="SIGNED", help="What `selectune policy sign` wrote.")],
    *,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Put a signed policy in force. One that no admin of the policy before it has signed is refused."""
    with Screen(as_json=as_json) as screen:
        from selectune.errors import DocumentError
        from selectune.governance import Envelope
        from selectune.pipeline.witnessing import open_registry

        try:
            data = file.read_bytes()
        except OSError as error:
            raise DocumentError(f"cannot be read ({error.strerror})", where=str(file), then="Give a file that exists.") from error
        found = open_registry(registry, signing=True).set_policy(Envelope.parse(data, str(file)))
        screen.show({"policy": found.digest}, lambda console: console.print(f"policy {found.digest[:12]} is in force"))


@policy.command("show")
def show_policy(*, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False) -> None:
    """The policy in force."""
    with Screen(as_json=as_json) as screen:
        from selectune.registry import Registry

        found = Registry.open(registry).standing().policy
        document = {"policy": found.digest if found else None, "document": found.model_dump(mode="json") if found else None}

        def human(console: Console) -> None:
            import yaml

            text = yaml.safe_dump(document["document"], sort_keys=False, allow_unicode=True).rstrip()
            console.print(text if found else "no policy: any update may get any name, and nobody has to approve", markup=False)

        screen.show(document, human)


def approve(
    update: Update,
    *,
    key: Key,
    name: Annotated[str, typer.Option("--for", metavar="NAME", help="The name that the update may have.")] = "production",
    role: Annotated[Literal["author", "approver"], typer.Option("--role", help="The author signs first.")] = "approver",
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Sign an update: as its approver, or first as its author. The policy says who may; nobody is both."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_key, open_registry

        opened = open_registry(registry, signing=True)
        envelope = opened.approve(update, open_key(key), name=name, role=role)
        found = opened.show(update)
        notes = opened.standing().notes(found.id)

        def human(console: Console) -> None:
            for note in notes:
                console.print(f"{found.id[:12]}: {note}", markup=False)

        screen.show({"update": found.id, "signed": envelope.to_json(), "notes": notes}, human)


def revoke(
    update: Update,
    *,
    reason: Reason,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="Your private key, where there is a policy.")] = None,
    actor: Actor = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """End an update: it is neither loaded nor given a name again. With a policy an approver or an admin signs that."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline.witnessing import open_key, open_registry

        opened = open_registry(registry, signing=True)
        found = opened.show(update)
        opened.revoke(found.id, reason, actor or getpass.getuser(), open_key(key) if key else None)
        if found.names:
            screen.say(f"note: {', '.join(found.names)} still points to it and loads no more; selectune revert, or promote another update")
        screen.show({"update": found.id, "reason": reason}, lambda console: console.print(f"{found.id[:12]} is revoked"))


def head(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="A file, git:FILE in a git work tree, or a URL.")],
    *,
    key: Key,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Sign the end of the log and keep it elsewhere. SELECTUNE_HEAD and SELECTUNE_HEAD_KEY do so after each move."""
    with Screen(as_json=as_json) as screen:
        from selectune.governance import Witness
        from selectune.pipeline.witnessing import open_key
        from selectune.registry import Registry

        found = Registry.open(registry).keep_head(Witness(place=place, key=open_key(key)))
        document = {"count": found.count, "hash": found.hash, "place": place}
        screen.show(document, lambda console: console.print(f"{place}: event {found.count}, {found.hash[:12]}", markup=False))


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    for verb in (approve, revoke, head):
        app.command()(verb)
    app.add_typer(keys, name="keys")
    app.add_typer(policy, name="policy")
