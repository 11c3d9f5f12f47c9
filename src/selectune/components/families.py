"""The table of spellings that the naming goes by: the shipped `families.yaml`, and what third parties put before it.

A package adds its own through the entry-point group `selectune.families`; whoever runs a program adds a file with `add_families`, or with
`selectune --families FILE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from selectune.components.tables import RULES, Fused, Source, Table, Towers, expression, faulty, read_table
from selectune.errors import InputError

ENTRY_POINTS = "selectune.families"
_ADDED: list[Source] = []
"""What `add_families` was given, in that order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A path inside a layer or a tower, and the name it gets."""

    path: re.Pattern[str]
    name: str
    beside: re.Pattern[str] | None
    """What has to stand next to the part, for names that mean two things (`mlp.gate` is a router only beside `experts`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Families:
    """Every table together, compiled; the head of `families.yaml` says what each is for."""

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


@cache
def families() -> Families:
    """The tables in force: added files, then those of installed packages by name, then the shipped one; the first rule that matches wins.

    Raises InputError for the table of an installed package that cannot be used.
    """
    return _joined(_ADDED)


def add_families(path: str | Path) -> ExitStack:
    """Puts the table in a YAML file before the others: from now on, or for a block, as `with add_families("snail.yaml"):`.

    Its rules come after those of files that were added earlier and before all others; its lists and entries are added. A map that was
    made in the block stays as it is, but training and its proof map the model again: do them inside too. Raises InputError with every
    fault of the file, a class that is already split in another way among them.
    """
    source = read_table(Path(path).expanduser(), str(path), _shipped().table)
    _joined([*_ADDED, source])
    _ADDED.append(source)
    families.cache_clear()
    undo = ExitStack()
    undo.callback(_remove, source)
    return undo


def _remove(source: Source) -> None:
    _ADDED[:] = [other for other in _ADDED if other is not source]
    families.cache_clear()


@cache
def _shipped() -> Source:
    return read_table(resources.files("selectune.components").joinpath("families.yaml"), "selectune's families.yaml")


def _installed() -> list[Source]:
    return [_offered(entry) for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)]


def _offered(entry: EntryPoint) -> Source:
    """The table of one package. The entry point is a path, or a function that gives one."""
    where = f"{entry.dist.name if entry.dist else entry.value} (entry point {entry.name} of {ENTRY_POINTS})"
    then = "Correct the package, or uninstall it."
    try:
        value = entry.load()
        file = value() if callable(value) else value
    except (ImportError, AttributeError) as error:
        raise InputError(f'"{entry.value}" cannot be loaded ({error})', where=where, then=then) from error
    file = Path(file) if isinstance(file, str) else file
    if not isinstance(file, Traversable) or (isinstance(file, Path) and not file.is_absolute()):
        what = f'"{entry.value}" gives {str(file)[:80]!r}, which is no absolute path'
        raise InputError(what, where=where, then='Let it give importlib.resources.files("your_package") / "families.yaml".')
    return read_table(file, f"{where}: {file.name}", _shipped().table)


def _joined(added: Sequence[Source]) -> Families:
    packages = _installed()
    entries = _entries([_shipped(), *packages, *added])
    tables = [source.table for source in (*added, *packages, _shipped())]
    return Families(
        keys=entries["towers.keys"],
        second=entries["towers.second"],
        inputs=entries["towers.inputs"],
        spelling=entries["towers.spelling"],
        wrappers=frozenset(name for table in tables for name in table.wrappers),
        outside=entries["outside"],
        plain=frozenset(name for table in tables for name in table.plain),
        inside=frozenset(name for table in tables for name in table.inside),
        parallel=frozenset(name for table in tables for name in table.parallel),
        **_rules(tables),
        fused={kind: entries[f"fused.{kind}"] for kind in Fused.model_fields},
    )


def _rules(tables: Sequence[Table]) -> dict[str, tuple[Rule, ...]]:
    rules: dict[str, list[Rule]] = {name: [] for name in RULES}
    for table in tables:
        words = {**table.words, **_shipped().table.words}
        for name, _, (path, part, *beside) in table.rules():
            found = [re.compile(expression(text, words)) for text in (path, *beside)]
            rules[name].append(Rule(path=found[0], name=part, beside=found[1] if beside else None))
    return {name: tuple(rows) for name, rows in rules.items()}


class _Entry(NamedTuple):
    """One entry of a mapping: the mapping, key, value, and its place in the file."""

    group: str
    key: str
    value: str
    spot: str


def _of(table: Table) -> Iterator[_Entry]:
    for name in Towers.model_fields:
        for key, value in getattr(table.towers, name).items():
            yield _Entry(f"towers.{name}", key, value, f"towers.{name}.{key}")
    for word, modules in table.outside.items():
        for index, module in enumerate(modules):
            yield _Entry("outside", module, word, f"outside.{word}[{index}]")
    for kind in Fused.model_fields:
        for layout, classes in getattr(table.fused, kind).items():
            for index, owner in enumerate(classes):
                yield _Entry(f"fused.{kind}", owner, layout, f"fused.{kind}.{layout}[{index}]")


def _entries(sources: Iterable[Source]) -> dict[str, dict[str, str]]:
    """The mappings of all tables. A table adds entries and changes none: one that says otherwise than an earlier one is a fault."""
    groups = [*(f"towers.{name}" for name in Towers.model_fields), "outside", *(f"fused.{kind}" for kind in Fused.model_fields)]
    found: dict[str, dict[str, tuple[str, str]]] = {group: {} for group in groups}
    faults = []
    for source in sources:
        for group, key, value, spot in _of(source.table):
            before, by = found[group].setdefault(key, (value, source.where))
            if before != value:
                then = (
                    "Give your class a name of its own." if group.startswith("fused") else "Take it out: a table adds and changes nothing."
                )
                faults.append(f'{source.where}: {spot}: {key} is "{before}" already, in {by}, and not "{value}". {then}')
    if faults:
        raise faulty(faults)
    return {group: {key: value for key, (value, _) in entries.items()} for group, entries in found.items()}
