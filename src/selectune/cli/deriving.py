"""diff, merge, rebase and import: updates made of updates, and of what others trained."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from selectune.cli.options import DEFAULT_REGISTRY, AsJson, RegistryUrl
from selectune.cli.screen import Screen
from selectune.cli.versions import Actor
from selectune.errors import InputError

if TYPE_CHECKING:
    from selectune.delta.merging import Strategy
    from selectune.pipeline.importing import Imported
    from selectune.reporting.difference import DiffPage

First = Annotated[str, typer.Argument(metavar="A", help="An update's id, the beginning of one, or a name.")]
Second = Annotated[str, typer.Argument(metavar="B", help="Another update.")]
Name = Literal["linear", "ties", "dare"]


def diff(
    first: First,
    second: Second,
    *,
    spectra: Annotated[int, typer.Option("--spectra", metavar="N", min=0, help="Of how many components, the farthest first.")] = 8,
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="Singular values whose share of the squared norm is shown.")] = 8,
    everything: Annotated[bool, typer.Option("--all", help="Show every component, not those alone that moved farthest.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Draw a page there, with a picture of the spectra.")] = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """What lies between two updates: components, share of elements, norms, angle, rank; and the scores recorded with each, side by side.

    Which elements differ is read from the deltas; norms need the tensors of the common model that the updates touch, and read no others.
    """
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline import diff_updates
        from selectune.registry import Registry
        from selectune.reporting.difference import DiffPage, write_diff

        found = diff_updates(Registry.open(registry), first, second, spectra=spectra, k=top)
        page = DiffPage.model_validate(found)
        if html is not None:
            write_diff(page, html)
        for note in found.notes:
            screen.say(f"note: {note}")
        document = {
            "a": found.a.to_json(),
            "b": found.b.to_json(),
            "difference": found.difference.to_json(),
            "behaviour": [asdict(row) for row in found.behaviour],
            "notes": list(found.notes),
            "html": str(html) if html else None,
        }
        screen.show(document, lambda console: _print_diff(console, page, html, everything=everything))


def merge(
    first: First,
    second: Second,
    *,
    strategy: Annotated[
        Name | None, typer.Option("--strategy", metavar="linear|ties|dare", help="Needed where elements moved in both.")
    ] = None,
    weights: Annotated[
        tuple[float, float] | None, typer.Option("--weights", metavar="A B", help="Default: 0.5 0.5; with ties 1 1.")
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", metavar="SHARE", help="ties: what stays of each tensor. Default: 0.2.")
    ] = None,
    drop: Annotated[float | None, typer.Option("--drop", metavar="P", help="dare: the probability of dropping. Default: 0.9.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="dare: of the random numbers. Default: 0.")] = None,
    actor: Actor = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Two updates of one parent as a new one without a verdict: exact where no element moved in both, else by a strategy that you name."""
    with Screen(as_json=as_json) as screen:
        chosen = _strategy(strategy, weights, {"density": density, "drop": drop, "seed": seed})
        from selectune.pipeline import merge_updates
        from selectune.registry import Registry

        update = merge_updates(Registry.open(registry), first, second, chosen, actor=actor or getpass.getuser())
        how = update.meta["merged"]["strategy"]
        text = f"{update.id[:12]}: {update.skill}, merged ({how}), model {update.child[:12]}; not judged: measure it before you promote it"
        screen.show(update.to_json(), lambda console: console.print(text, markup=False))


def _strategy(name: Name | None, weights: tuple[float, float] | None, settings: dict[str, float | int | None]) -> Strategy | None:
    from selectune.delta import Dare, Linear, Ties

    given = {key: value for key, value in settings.items() if value is not None}
    known: dict[str | None, set[str]] = {"ties": {"density"}, "dare": {"drop", "seed"}, "linear": set(), None: set()}
    odd = sorted(given.keys() - known[name]) + (["weights"] if name is None and weights is not None else [])
    if odd:
        what = f"--{odd[0]} has no meaning " + (f"with {name}" if name else "without a strategy")
        raise InputError(what, where="merge", then="Name the strategy that it is of: --strategy linear, ties or dare.")
    if weights is not None:
        given["weights"] = weights  # type: ignore[assignment]  # checked by the strategy itself
    kinds: dict[str | None, type[Linear] | type[Ties] | type[Dare]] = {"linear": Linear, "ties": Ties, "dare": Dare}
    return None if name is None else kinds[name](**given)  # type: ignore[arg-type]


def rebase(
    update: Annotated[str, typer.Argument(metavar="UPDATE", help="An update's id, the beginning of one, or a name.")],
    base: Annotated[str, typer.Argument(metavar="NEWBASE", help="A model, or an update of the registry.")],
    *,
    as_candidate: Annotated[
        bool, typer.Option("--as-candidate", help="Where touched tensors differ, add the change to what they are now.")
    ] = False,
    actor: Actor = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """An update on a newer base, as a new update without a verdict: exact where the tensors that it touches are the same in both."""
    with Screen(as_json=as_json) as screen:
        from selectune.pipeline import rebase_update
        from selectune.registry import Registry

        found = rebase_update(Registry.open(registry), update, base, as_candidate=as_candidate, actor=actor or getpass.getuser())
        document = {"update": found.update, "model_id": found.delta.child, "exact": not found.differing, "differing": list(found.differing)}

        def human(console: Console) -> None:
            how = f"{len(found.differing)} tensors differ, the change was added to them" if found.differing else "exact, bit for bit"
            console.print(f"{found.update[:12]}: model {found.delta.child[:12]}; {how}; not judged: measure it before you promote it")
            for name in found.differing:
                console.print(f"  {name}", markup=False)

        screen.show(document, human)


def import_(
    folder: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A folder of safetensors or of a LoRA adapter; or a file or layout of `export`."),
    ],
    *,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="What a checkpoint was trained from: a model, or an update."),
    ] = None,
    skill: Annotated[str, typer.Option("--skill", metavar="NAME", help="What it was taught; the folder's name without it.")] = "",
    actor: Actor = None,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Record a fine-tuned checkpoint, or a LoRA adapter, as an update, with a report of what it moved; or a version that was exported.

    Makes the registry in a folder where none is there.
    """
    with Screen(as_json=as_json) as screen:
        from selectune.registry.packing import is_pack

        if (folder / "oci-layout").is_file():
            _import_layout(screen, folder, registry, base, actor or getpass.getuser())
            return
        if is_pack(folder):
            _import_pack(screen, folder, registry, base, actor or getpass.getuser())
            return
        if base is None:
            raise InputError("what the checkpoint was trained from is not said", where="import", then="Give --base BASE.")
        from selectune.pipeline import import_checkpoint
        from selectune.registry import Registry

        opened = Registry.open(registry, create="://" not in registry)
        found = import_checkpoint(folder, base, opened, skill=skill, actor=actor or getpass.getuser())
        for note in found.notes:
            screen.say(f"note: {note}")
        screen.show(found.to_json(), lambda console: _print_import(console, found))


def _import_layout(screen: Screen, folder: Path, registry: str, base: str | None, actor: str) -> None:
    from selectune.registry import Registry
    from selectune.registry.oci import add_layout

    if base is not None:
        raise InputError("a layout says itself what its updates are of", where="import", then="Leave out --base.")
    ids = add_layout(Registry.open(registry, create="://" not in registry), folder, actor)
    text = f"{ids[-1][:12]}: {len(ids)} updates of an OCI image layout; nobody's approval came with them"
    screen.show({"updates": list(ids)}, lambda console: console.print(text, markup=False))


def _import_pack(screen: Screen, file: Path, registry: str, base: str | None, actor: str) -> None:
    from selectune.registry import Registry

    if base is not None:
        raise InputError("an exported version knows what it stands on", where="import", then="Leave out --base.")
    found = Registry.open(registry, create="://" not in registry).import_pack(file, actor)
    for one in found.refused:
        screen.say(f"note: {one}")
    text = f"{found.update[:12]}: {len(found.added)} updates are new here, {found.approvals} approvals count"
    screen.show(asdict(found), lambda console: console.print(text))


def _print_diff(console: Console, page: DiffPage, html: Path | None, *, everything: bool) -> None:
    from selectune.reporting.difference import behaviour_table, component_table, role_table

    console.print(role_table(page))
    console.print(page.tensors, markup=False)
    table = component_table(page, everything=everything)
    console.print(table)
    if (rest := len(page.difference.rows) - table.row_count) > 0:
        console.print(f"{rest:,} more components: --all")
    if page.behaviour:
        console.print(behaviour_table(page))
    if html is not None:
        console.print(f"spectra and all components: {html}", markup=False)


def _print_import(console: Console, found: Imported) -> None:
    from selectune.reporting.tables import plain_table

    table = plain_table("component", "moved", "of", "elements moved", "of", "share")
    for row in found.families:
        if row.moved:
            table.add_row(row.family, f"{row.moved:,}", f"{row.of:,}", f"{row.elements:,}", f"{row.of_elements:,}", f"{row.share:.1%}")
    console.print(table)
    still = [row.family for row in found.families if not row.moved]
    if still:
        console.print(f"untouched: {', '.join(still)}", markup=False)
    console.print(f"selected by {' '.join(found.patterns)}: {found.elements:,} of {found.total:,} elements", markup=False)
    if found.preset is None:
        console.print("no preset has all of it")
    elif (found.preset,) != found.patterns:
        console.print(f"smallest preset that has all of it: {found.preset}, {found.preset_elements:,} elements")
    console.print(f"{found.update[:12]}: model {found.delta.child[:12]}; not judged: measure it before you promote it")


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command("diff")(diff)
    app.command("merge")(merge)
    app.command("rebase")(rebase)
    app.command("import")(import_)
