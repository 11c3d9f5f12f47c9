"""From patterns to a selection: sets combined from left to right, near matches for what matches nothing, ties refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from selectune.components.component import Component, ComponentMap, Selection
from selectune.components.fused import FUSED
from selectune.components.near import near
from selectune.components.patterns import Pattern, Plain, list_lengths, read_pattern
from selectune.components.presets import PRESETS
from selectune.errors import InputError, NoMatch, NotYet, TiedSelection

_SHOWN = 80
"""Characters of a pattern in a message."""


def choose(found: ComponentMap, patterns: tuple[str, ...], *, tie: Literal["forbid", "allow"], where: str) -> Selection:
    """What `ComponentMap.select` promises."""
    if not patterns:
        raise InputError("no pattern is given", where=where, then="Write what may move: a preset such as attention, or a component's name.")
    known = _known_names(found)
    lengths = list_lengths(known)
    fused = {component.name: _fused_names(component) for component in found.components}
    asked: set[str] = set()
    refused: set[str] = set()
    for index, text in enumerate(patterns):
        spot = f"{where}[{index}]"
        names = _with_parts(fused, _names(found, known, lengths, text, spot))
        if text.startswith("!"):
            asked -= names
            refused |= names
        else:
            asked |= names
            refused -= names
    components = _components(found, asked, refused, tie=tie, where=where)
    if not components:
        raise NoMatch(f"nothing is left of {', '.join(patterns)}", where=where, then="Begin with what may move, then remove from it.")
    touched = {component.parameter for component in components}
    return Selection(
        patterns=patterns, components=components, full_shapes={name: shape for name, shape in found.shapes.items() if name in touched}
    )


def _fused_names(component: Component) -> tuple[str, ...]:
    """The names that the parts of a fused tensor would have, where its layout is not known."""
    stem, _, last = component.name.rpartition(".")
    return tuple(f"{stem}.{role}" for role in FUSED.get(last, ()))


def _with_parts(fused: Mapping[str, tuple[str, ...]], names: set[str]) -> set[str]:
    """The names, and for a fused tensor those of its parts: `attn.qkv` is q, k and v, so that `!attn.q` takes from it."""
    return names.union(*(fused.get(name, ()) for name in names))


def _known_names(found: ComponentMap) -> dict[str, None]:
    names: dict[str, None] = {}
    for component in found.components:
        names.update(dict.fromkeys((component.name, *component.tied, *_fused_names(component))))
    return names


def _names(found: ComponentMap, known: Mapping[str, None], lengths: Mapping[str, int], text: str, where: str) -> set[str]:
    """The names that one pattern or preset matches."""
    bare = text.removeprefix("!")
    if bare in PRESETS:
        names = set().union(
            *(_matches(known, lengths, plain, where) for part in PRESETS[bare] for plain in read_pattern(part).alternatives)
        )
        if not names:
            raise NoMatch(f'the preset "{bare}" matches no component of {found.model}', where=where, then=_see(found))
    else:
        pattern = read_pattern(text, where=where, near=lambda: near(found, known, text))
        names = set()
        for plain in pattern.alternatives:
            matched = _matches(known, lengths, plain, where)
            if not matched:
                raise NoMatch(_nothing(pattern, plain), where=where, then=f"{near(found, known, plain.text)}{_see(found)}")
            names |= matched
    return names if text.startswith("!") else _without_nameless(found, names, bare, where)


def _matches(known: Mapping[str, None], lengths: Mapping[str, int], plain: Plain, where: str) -> set[str]:
    if plain.literal:
        return {plain.text} & known.keys()
    return {name for name in known if plain.matches(name, lengths, where)}


def _without_nameless(found: ComponentMap, names: set[str], text: str, where: str) -> set[str]:
    nameless = sorted(name for name in names if name.startswith("other."))
    if nameless and not text.startswith("other."):
        raise InputError(
            f'"{text}" takes in {len(nameless)} parts of {found.model} that have no name of their own, such as {nameless[0]}',
            where=where,
            then='Write "other.*" if they are to move, or "!other.*" after patterns that name the rest.',
        )
    return names


def _nothing(pattern: Pattern, plain: Plain) -> str:
    text, part = (value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…" for value in (pattern.text.removeprefix("!"), plain.text))
    return (
        f'"{text}" matches no component'
        if plain.text == pattern.text.removeprefix("!")
        else f'"{part}", a part of "{text}", matches no component'
    )


def _see(found: ComponentMap) -> str:
    return f"See them all: selectune map {found.model}"


def _components(
    found: ComponentMap, asked: set[str], refused: set[str], *, tie: Literal["forbid", "allow"], where: str
) -> tuple[Component, ...]:
    """The components asked for under any of their names, and under none that was excluded."""
    chosen: list[Component] = []
    for component in found.components:
        parts = _fused_names(component)
        names = {*(parts or (component.name,)), *component.tied}
        wanted = names & asked
        if not wanted:
            continue
        some = [part for part in parts if part in asked]
        if 0 < len(some) < len(parts):
            raise NotYet(
                f"{component.parameter} holds {', '.join(parts)}; its layout is unknown, and only {', '.join(some)} is asked for",
                where=where,
                then=f"Select {component.name} as a whole, or leave it out.",
            )
        if component.tied and not names <= asked and tie == "forbid":
            raise _tied(component, wanted, names - wanted, where)
        if not names & refused:
            chosen.append(component)
    return tuple(chosen)


def _tied(component: Component, wanted: set[str], rest: set[str], where: str) -> TiedSelection:
    one, other = ", ".join(sorted(wanted)), ", ".join(sorted(rest))
    return TiedSelection(
        f'"{one}" is {other}: they are one tensor, {component.parameter} (tied weights)',
        where=where,
        then=f"Write tie: allow to change both, or leave {one} out.",
    )
