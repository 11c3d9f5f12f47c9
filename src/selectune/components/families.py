"""The table of spellings, `families.yaml`, read once and compiled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A path inside a layer or a tower, and the name it gets."""

    path: re.Pattern[str]
    name: str
    beside: re.Pattern[str] | None
    """What has to stand next to the part, for names that mean two things (`mlp.gate` is a router only beside `experts`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Families:
    """`families.yaml`, compiled; the file's head says what each table is for."""

    keys: Mapping[str, str]
    second: Mapping[str, str]
    inputs: Mapping[str, str]
    spelling: Mapping[str, str]
    wrappers: frozenset[str]
    outside: Mapping[str, str]
    """First module name below the wrappers: the component's first word."""
    plain: frozenset[str]
    inside: frozenset[str]
    parallel: frozenset[str]
    norms: tuple[Rule, ...]
    layer: tuple[Rule, ...]
    stem: tuple[Rule, ...]
    language_stem: tuple[Rule, ...]
    fused: Mapping[str, Mapping[str, str]]
    """Kind of fused tensor: class name of the module that splits it: layout."""


def first_match(rules: Sequence[Rule], path: str, beside: Sequence[str] = ()) -> str | None:
    """The name that the first rule gives the whole `path`, or None. `beside` are the names next to the part's own."""
    for rule in rules:
        match = rule.path.fullmatch(path)
        if match and (rule.beside is None or any(rule.beside.fullmatch(name) for name in beside)):
            return match.expand(rule.name) if "\\" in rule.name else rule.name
    return None


def _rules(rows: Sequence[Sequence[str]], words: Mapping[str, str]) -> tuple[Rule, ...]:
    def pattern(text: str) -> re.Pattern[str]:
        return re.compile(re.sub(r"<(\w+)>", lambda word: words[word[1]], text))

    return tuple(Rule(path=pattern(path), name=name, beside=pattern(beside[0]) if beside else None) for path, name, *beside in rows)


@cache
def families() -> Families:
    """The shipped table."""
    text = resources.files("selectune.components").joinpath("families.yaml").read_text("utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    words: dict[str, str] = table["words"]
    towers = table["towers"]
    return Families(
        keys=towers["keys"],
        second=towers["second"],
        inputs=towers["inputs"],
        spelling=towers["spelling"],
        wrappers=frozenset(table["wrappers"]),
        outside={module: word for word, modules in table["outside"].items() for module in modules},
        plain=frozenset(table["plain"]),
        inside=frozenset(table["inside"]),
        parallel=frozenset(table["parallel"]),
        norms=_rules(table["norms"], words),
        layer=_rules(table["layer"], words),
        stem=_rules(table["stem"], words),
        language_stem=_rules(table["language_stem"], words),
        fused={kind: {owner: layout for layout, owners in layouts.items() for owner in owners} for kind, layouts in table["fused"].items()},
    )
