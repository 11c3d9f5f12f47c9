"""What a pattern that matches nothing may have meant: a slip of the pen, a part of a name, a module's name, a regular expression."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from selectune.components.component import ComponentMap
from selectune.components.families import families, first_match
from selectune.components.fused import FUSED
from selectune.components.patterns import family
from selectune.components.presets import PRESETS

_MOST = 3
_LONGEST = 200
"""Characters of a pattern that are looked at: no component has a longer name."""
_LEAVES = {"weight", "bias", "lora_A", "lora_B", "default", "base_layer", "base_model"}
"""Words of parameters, peft's among them, that say nothing of the place."""


def near(found: ComponentMap, known: Iterable[str], text: str) -> str:
    """`Did you mean …?  ` with up to three patterns that match something, or the empty string. `known` are all names of components."""
    counts = Counter(family(name) for name in known)
    close: dict[str, None] = {}
    for piece in _pieces(text.removeprefix("!")[:_LONGEST]):
        if any(letter.isalpha() for letter in piece):
            close.update(dict.fromkeys(_close(found, counts, piece)))
    shown = [f"{name}{_count(counts, name)}" for name in [*close][:_MOST]]
    return f"Did you mean {' or '.join(shown)}?  " if shown else ""


def _pieces(text: str) -> list[str]:
    """The text, or what it lists: `q_proj|k_proj`, `q_proj, k_proj`, `(q|k)_proj`."""
    texts = [text]
    for _ in range(_MOST):
        texts = [choice for one in texts for choice in _choices(one)][:_LONGEST]
    return [piece for one in texts for piece in re.split(r"[|,;\s()]+", one)]


def _choices(text: str) -> list[str]:
    """One text for each choice of the first group of a regular expression."""
    group = re.search(r"\((?:\?:)?([^()]*)\)", text)
    return [text] if group is None else [f"{text[: group.start()]}{choice}{text[group.end() :]}" for choice in group[1].split("|")]


def _count(counts: Mapping[str, int], name: str) -> str:
    below = name.removesuffix("*") if name.endswith(".*") else None
    count = sum(n for known, n in counts.items() if known == name or (below is not None and known.startswith(below)))
    return f" ({count:,} component{'s' * (count != 1)})" if count else ""


def _close(found: ComponentMap, counts: Mapping[str, int], piece: str) -> list[str]:
    """By the first kind of evidence that finds anything, the surest first."""
    words = _words(piece)
    if not words:
        return []
    wanted = family(re.sub(r"\[[^\[\]]*\]", ".*", piece)).replace("..", ".").replace("**", "*")
    candidates = [*counts, *(PRESETS if "." not in wanted else ())]
    stem = wanted.rstrip(".*") + "."
    return (
        _grouped(counts, _by_parameter(found, piece))
        or [f"{stem}*"] * any(name.startswith(stem) for name in counts)
        or _alike(wanted, candidates, 0.85)
        or _grouped(counts, _inside(counts, words))
        or _grouped(counts, _by_words(found, words, len(words)))
        or _grouped(counts, _by_role(counts, _path(piece)))
        or _grouped(counts, _by_words(found, words, 1))
        or _alike(wanted, candidates, 0.6)
    )


def _alike(wanted: str, candidates: Sequence[str], cutoff: float) -> list[str]:
    """The names most like it, without those that are clearly less so: long names are alike for what they all have in common."""
    close = difflib.get_close_matches(wanted, candidates, n=_MOST, cutoff=cutoff)
    ratios = [difflib.SequenceMatcher(a=name, b=wanted).ratio() for name in close]
    return [name for name, ratio in zip(close, ratios, strict=True) if ratio > ratios[0] - 0.03]


def _path(piece: str) -> list[str]:
    """The words between dots without what globs and regular expressions add; what stands for an index is 0."""
    bare = re.sub(r"\\[A-Za-z]|\[[^\[\]]*\]|[\^$+?*{}]", "", piece).replace("\\", "")
    return [word or "0" for word in bare.split(".") if word not in _LEAVES]


def _words(piece: str) -> list[str]:
    """The same without indices."""
    return [word for word in _path(piece) if not word.isdigit()]


def _by_parameter(found: ComponentMap, piece: str) -> list[str]:
    """Families whose parameters are called so, or lie below a module that is."""
    if "[" in piece:
        return []
    return _unique(c.name for c in found.components if fnmatchcase(c.parameter, piece) or fnmatchcase(c.parameter, f"{piece}.*"))


def _inside(counts: Mapping[str, int], words: Sequence[str]) -> list[str]:
    """Families that have the words in a row: `attn.q` in `language.layers.*.attn.q`."""
    return [name for name in counts if f".{'.'.join(words)}." in f".{name.replace('.*', '')}."]


def _by_words(found: ComponentMap, words: Sequence[str], least: int) -> list[str]:
    """Families of the parameters that have the last word and most of the others: names of modules as trainers and files write them."""
    best: list[str] = []
    most = least
    for component in found.components:
        own = set(component.parameter.split("."))
        if words[-1] not in own:
            continue
        shared = len(own.intersection(words))
        if shared > most:
            best, most = [], shared
        if shared == most:
            best.append(component.name)
    return _unique(best)


def _by_role(counts: Mapping[str, int], path: Sequence[str]) -> list[str]:
    """Families of the role that the table of spellings gives such a module: names from another model, or from files."""
    inner = [".".join(path[at:]) for at in range(len(path))]
    for text in (*inner, f"mlp.{path[-1]}", f"self_attn.{path[-1]}"):
        role = family(first_match(families().layer, text) or "")
        stem, _, last = role.rpartition(".")
        roles = tuple(f".{stem}.{part}" for part in FUSED[last]) if last in FUSED else (f".{role}",)
        if role and (ending := [name for name in counts if name.endswith(roles)]):
            return ending
    return []


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(family(name) for name in names))


def _grouped(counts: Mapping[str, int], names: Sequence[str]) -> list[str]:
    """The families, the language tower's first; several become what they have in common, as in `language.layers.*.attn.*`.

    Where that takes in others too, up to three stay as they are, and more become as little as three patterns can say.
    """
    ordered = sorted(names, key=lambda name: not name.startswith("language."))
    deepest = max((name.count(".") for name in ordered), default=0) + 1
    levels = [list(dict.fromkeys(_cut(name, depth) for name in ordered)) for depth in range(1, deepest + 1)]
    fitting = [stems for stems in levels if len(stems) <= _MOST]
    if len(ordered) > 1:
        for stems in fitting:
            starts = tuple(stem.removesuffix("*") for stem in stems if stem.endswith(".*"))
            if all(name in names for name in counts if name.startswith(starts)):
                return stems
    return (fitting or levels or [[]])[-1]


def _cut(name: str, depth: int) -> str:
    words = name.split(".")
    return name if len(words) <= depth else f"{'.'.join(words[:depth]).removesuffix('.*')}.*"
