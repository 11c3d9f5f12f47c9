"""From components back to patterns: the shortest list of ours that selects exactly these, and the smallest preset that has them all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from selectune.components.choosing import choose
from selectune.components.component import ComponentMap, Selection
from selectune.components.presets import PRESETS
from selectune.errors import InputError

__all__ = ["covering", "smallest_preset", "spans"]

_INDEX = re.compile(r"\.(\d+)(?=\.|\Z)")
_LONGEST = 900
"""Characters of a pattern of ours; a pattern may have 1,000."""


def smallest_preset(found: ComponentMap, names: Iterable[str]) -> tuple[str, Selection] | None:
    """The preset with the fewest elements that has all these components in it, with what it selects; None where none has."""
    wanted, best = set(names), None
    for preset in PRESETS:
        try:
            selection = choose(found, (preset,), tie="allow", where="preset")
        except InputError:  # it matches nothing in this model, or takes in parts that have no name
            continue
        if wanted <= set(selection.names) and (best is None or selection.elements < best[1].elements):
            best = preset, selection
    return best


def covering(found: ComponentMap, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns that select exactly these components of the map, layers written as spans and parts of one place between braces.

    >>> from selectune.components import Component
    >>> names = [f"language.layers.{layer}.attn.{part}" for layer in range(4) for part in "qk"]
    >>> rows = [Component(name=n, parameter=n, slice=None, shape=(1,), elements=1, tied=(), dtype="F32") for n in names]
    >>> covering(ComponentMap(model="tiny", components=tuple(rows), shapes={}), names[4:])
    ('language.layers[2:4].attn.{q,k}',)
    """
    wanted = set(names)
    order = list(dict.fromkeys(component.name for component in found.components))
    chosen = tuple(name for name in order if name in wanted)
    patterns = _braced(_folded(chosen, order))
    try:
        selected = choose(found, patterns, tie="allow", where="covering").names
    except InputError:
        return chosen
    return patterns if selected == chosen else chosen


def _folded(chosen: Sequence[str], order: Sequence[str]) -> list[str]:
    """Names that differ in one index alone become one pattern, index by index."""
    patterns: dict[str, list[int]] = {}
    everything: dict[str, list[int]] = {}
    plain = []
    for name in order:
        match = _INDEX.search(name)
        if match is not None:
            everything.setdefault(_holed(name, match), []).append(int(match[1]))
    for name in chosen:
        match = _INDEX.search(name)
        if match is None:
            plain.append(name)
        else:
            patterns.setdefault(_holed(name, match), []).append(int(match[1]))
    found: dict[tuple[str, str], list[str]] = {}
    for holed, indices in patterns.items():
        place, _, rest = holed.partition("\0")
        found.setdefault((place, "*" if indices == everything[holed] else spans(indices)), []).append(rest)
    for (place, taken), rests in found.items():
        before = f"{place}.*" if taken == "*" else f"{place}[{taken}]"
        under = [rest for holed in everything if holed.startswith(f"{place}\0") for rest in [holed.partition("\0")[2]]]
        plain += [f"{before}{rest}" for rest in _rests(rests, under)]
    return plain


def _rests(rests: Sequence[str], under: Sequence[str]) -> list[str]:
    """What comes behind the first index, folded in the same way."""
    return _folded(rests, under) if any(_INDEX.search(rest) for rest in rests) else list(rests)


def _holed(name: str, match: re.Match[str]) -> str:
    return f"{name[: match.start()]}\0{name[match.end() :]}"


def spans(indices: Sequence[int]) -> str:
    """Indices as a pattern has them between brackets: `8:24` for one span, else single ones and spans with both ends."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    if len(runs) == 1 and len(runs[0]) > 1:
        return f"{runs[0][0]}:{runs[0][-1] + 1}"
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _braced(patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns that differ in their last word alone as one, with braces."""
    stems: dict[str, list[str]] = {}
    for pattern in patterns:
        stem, dot, last = pattern.rpartition(".")
        stems.setdefault(stem + dot if last and not set(last) & set("[]*") else f"\0{pattern}", []).append(last)
    found = []
    for stem, words in stems.items():
        if stem.startswith("\0"):
            found.append(stem[1:])
        elif len(words) == 1 or len(stem) + sum(map(len, words)) > _LONGEST:
            found += [stem + word for word in words]
        else:
            found.append(f"{stem}{{{','.join(words)}}}")
    return tuple(found)
