"""map and plan: what a model is made of, and what a recipe would do."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from selectune.cli.disk import show_disk
from selectune.cli.options import DEFAULT_REGISTRY, AsJson, ModelArgument, RecipeArgument, RegistryUrl, Sets
from selectune.cli.screen import Screen
from selectune.reporting.tables import plain_table

if TYPE_CHECKING:
    from selectune.components import ComponentMap, Portions, Selection, Span
    from selectune.pipeline import Plan
    from selectune.records import Shown


def map_(
    model: ModelArgument,
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[PATTERN]...", help="Select these: presets, globs, `!` to exclude.")
    ] = None,
    *,
    tie: Annotated[
        Literal["forbid", "allow"], typer.Option("--tie", metavar="forbid|allow", help="Whether a tied weight may be selected.")
    ] = "allow",
    disk: Annotated[bool, typer.Option("--disk", help="Show the names in memory and in the model's files.")] = False,
    registry: RegistryUrl = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """The components of a model, and which of them patterns select."""
    with Screen(as_json=as_json) as screen:
        from selectune.components import portions
        from selectune.pipeline import map_any

        if disk:
            show_disk(screen, model, patterns or [], tie=tie, registry=registry)
            return
        found = map_any(model, registry)
        selection = found.select(patterns, tie=tie, where="map") if patterns else None
        taken = portions(found, selection)
        document = {**found.to_json(selection), "taken": taken.to_json()}
        screen.show(document, lambda console: _print_taken(console, taken, selection) if selection else _print_map(console, found))


def plan(recipe: RecipeArgument, *, sets: Sets = None, registry: RegistryUrl = DEFAULT_REGISTRY, as_json: AsJson = False) -> None:
    """What a recipe would train, in how many steps and how much memory, what is judged, and one sample as the model reads it."""
    from selectune.recipe import read_recipe

    with Screen(as_json=as_json) as screen:
        read = read_recipe(recipe, sets or ())
        from selectune.pipeline import load_any, sketch
        from selectune.pipeline import plan as make

        # What `choose` measures is the weights.
        load = load_any if read.choose is not None and not read.choose.taken else sketch
        made = make(read, lambda name: load(name, registry))
        screen.show(made.to_json(), lambda console: _print_plan(console, made))


def _print_map(console: Console, found: ComponentMap) -> None:
    from selectune.components.patterns import family

    elements: Counter[str] = Counter()
    shapes: dict[str, set[tuple[int, ...]]] = {}
    tied: dict[str, set[str]] = {}
    for component in found.components:
        row = family(component.name)
        elements[row] += component.elements
        shapes.setdefault(row, set()).add(component.shape)
        tied.setdefault(row, set()).update(component.tied)
    table = plain_table("component", "count", "shapes", "elements")
    for name, count in found.families.items():
        sizes = sorted(shapes[name])
        shown = ", ".join("x".join(map(str, shape)) or "1" for shape in sizes[:2]) + (" …" if len(sizes) > 2 else "")
        label = f"{name} (also {', '.join(sorted(tied[name]))})" if tied[name] else name
        table.add_row(label, f"{count:,}", shown, f"{elements[name]:,}")
    console.print(table)
    console.print(f"{found.model}: {found.elements:,} elements")


def _print_taken(console: Console, taken: Portions, selection: Selection) -> None:
    table = plain_table("tower", "taken", "of components", "elements", "of the tower", "of the model")
    for row in taken.towers:
        shares = (f"{row.share:.1%}", f"{row.elements / taken.elements:.1%}")
        table.add_row(row.tower, f"{row.components:,}", f"{row.of_components:,}", f"{row.elements:,}", *shares)
    console.print(table)
    table = plain_table("layers", "taken", "elements", "of these layers")
    for span in taken.spans:
        table.add_row(_spoken(span), f"{span.components:,}", f"{span.elements:,}", f"{span.share:.1%}")
    console.print(table)
    share = selection.elements / taken.elements
    text = f"selected by {' '.join(selection.patterns)}: {selection.elements:,} of {taken.elements:,} elements ({share:.1%})"
    console.print(text, markup=False)


def _numbers(layers: tuple[int, ...]) -> str:
    """`8-23`, `0-46 by 2`, or single ones and spans with commas between."""
    steps = {after - before for before, after in pairwise(layers)}
    if len(layers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{layers[0]}-{layers[-1]} by {steps.pop()}"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _spoken(span: Span) -> str:
    """`language.layers 8-23: mlp.{gate,up}`, which but for the numbers is a pattern again."""
    place = f"{span.place} {_numbers(span.layers)}" if span.layers else span.place
    if span.elements == span.of_elements:
        return f"{place}: everything"
    stems: dict[str, list[str]] = {}
    for part in span.parts:
        stem, dot, last = part.rpartition(".")
        stems.setdefault(stem + dot, []).append(last)
    parts = ", ".join(stem + (words[0] if len(words) == 1 else f"{{{','.join(words)}}}") for stem, words in stems.items())
    return f"{place}: {parts}" if parts else place


def _print_plan(console: Console, made: Plan) -> None:
    console.print(
        f"{made.recipe} on {made.model}: {made.selected:,} of {made.elements:,} elements may move ({made.selected / made.elements:.1%})"
    )
    table = plain_table("component", "count", "elements")
    for name, count, elements in made.families:
        table.add_row(name, f"{count:,}", f"{elements:,}")
    console.print(table)
    table = plain_table("phase", "source", "records", "steps", "batch", "rate", "s a step")
    for phase in made.phases:
        seconds = "" if phase.seconds is None else f"{phase.seconds:.2g}"
        table.add_row(phase.name, phase.source, f"{phase.records:,}", f"{phase.steps:,}", str(phase.batch), f"{phase.lr:g}", seconds)
    console.print(table)
    table = plain_table("measured", "role", "kind", "n")
    for task, role, kind, n in made.tests:
        table.add_row(task, role, kind, f"{n:,}")
    console.print(table)
    gate = ", ".join(f"{name} {value}" for name, value in made.gate.items())
    console.print(f"gate: {gate}")
    memory = made.memory
    parts = {"weights": memory.parameters, "masters": memory.masters, "moments": memory.moments, "gradients": memory.gradients}
    parts |= {"activations": memory.activations, "logits": memory.logits, "kept": memory.kept, "keep": memory.keep, "heap": memory.heap}
    shown = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    console.print(f"memory, a forecast: {memory.total / 1e9:.2f} GB at the peak ({shown}; not all of it at once)")
    console.print(made.fits, markup=False)
    for change in made.changes:
        console.print(f"  {change.setting}: {change.total / 1e9:.2f} GB", markup=False)
    if made.sample is not None:
        _print_sample(console, made.sample)
    for note in made.notes:
        console.print(f"note: {note}", markup=False)


def _print_sample(console: Console, sample: Shown) -> None:
    console.print(f"a sample ({sample.record_id}): {sample.tokens} tokens, {sample.supervised} labelled, between ⟦ and ⟧")
    console.print(sample.text, markup=False)
    for name, shape in sample.pixels.items():
        console.print(f"{name}: {list(shape)}", markup=False)


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command("map")(map_)
    app.command("plan")(plan)
