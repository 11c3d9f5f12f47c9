"""One table of spellings as a file holds it: `families.yaml` and the files of third parties have one form, read and checked here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from selectune.errors import InputError

LARGEST = 1 << 20
"""Bytes in one file."""
_DEEPEST = 8
RULES = ("norms", "layer", "stem", "language_stem")
_WORD = re.compile(r"<(\w+)>")
_NAME = re.compile(r"(?:[A-Za-z0-9_\-]|\\[1-9])+(?:\.(?:[A-Za-z0-9_\-]|\\[1-9])+)*")
_TOWER = re.compile(r"(?!other\Z)[a-z][a-z0-9_]*")
_WANTED = {
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}

Row = Annotated[tuple[str, ...], Field(min_length=2, max_length=3)]
"""`[path, name]` or `[path, name, beside]`."""
Names = tuple[str, ...]
Entries = dict[str, str]


class Part(BaseModel):
    """A frozen piece of a table; unknown keys and wrong types are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Towers(Part):
    """Which config key, module or input means which tower."""

    keys: Entries = Field(default_factory=dict)
    second: Entries = Field(default_factory=dict)
    inputs: Entries = Field(default_factory=dict)
    spelling: Entries = Field(default_factory=dict)


class Fused(Part):
    """By kind of fused tensor and layout: the classes of the modules that split it so."""

    qkv: dict[str, Names] = Field(default_factory=dict)
    gate_up: dict[str, Names] = Field(default_factory=dict)
    experts: dict[str, Names] = Field(default_factory=dict)


class Table(Part):
    """A file's content; the head of `families.yaml` says what each table is for. Every one may be left out."""

    towers: Towers = Towers()
    wrappers: Names = ()
    outside: dict[str, Names] = Field(default_factory=dict)
    plain: Names = ()
    inside: Names = ()
    parallel: Names = ()
    words: Entries = Field(default_factory=dict)
    norms: tuple[Row, ...] = ()
    layer: tuple[Row, ...] = ()
    stem: tuple[Row, ...] = ()
    language_stem: tuple[Row, ...] = ()
    fused: Fused = Fused()

    def rules(self) -> Iterator[tuple[str, int, Names]]:
        """Every rule with its table's name and its place there."""
        for name in RULES:
            rows: tuple[Names, ...] = getattr(self, name)
            yield from ((name, index, row) for index, row in enumerate(rows))


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A table, and what its file is called in messages."""

    where: str
    table: Table


def read_table(file: Traversable, where: str, shipped: Table | None = None) -> Source:
    """The table in a YAML file, checked. A third party's may use the words and the layouts of the `shipped` one.

    Raises InputError with every fault, each with its place in the file, what stands there, and what to do.
    """
    raw = _load(_text(file, where), where)
    if not isinstance(raw, dict):
        raise InputError(f"holds {_shown(raw)}, not tables", where=where, then=f"Begin with one of: {', '.join(Table.model_fields)}.")
    try:
        table = Table.model_validate(raw)
    except ValidationError as error:
        raise faulty([_fault(detail, where) for detail in error.errors()]) from error
    if faults := [f"{where}: {fault}" for fault in _meanings(table, shipped or table, third=shipped is not None)]:
        raise faulty(faults)
    return Source(where=where, table=table)


def faulty(faults: list[str]) -> InputError:
    """One error for all faults of a file."""
    if len(faults) == 1:
        return InputError(faults[0])
    return InputError("\n".join(faults) + "\n", then=f"{len(faults)} faults; docs/how-to/add-a-family.md describes the tables.")


def expression(text: str, words: Mapping[str, str]) -> str:
    """A rule's expression with its words put in."""
    return _WORD.sub(lambda word: f"(?:{words[word[1]]})", text)


def _text(file: Traversable, where: str) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where, then="Give a YAML file of spellings.") from error
    if len(data) > LARGEST:
        raise InputError(f"has more than {LARGEST:,} bytes", where=where, then="Keep to the spellings of your own family.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 ({error.reason} at byte {error.start})", where=where, then="Save it as UTF-8.") from error


def _load(text: str, where: str) -> Any:
    """The YAML's values."""
    try:
        _plain(text, where)
        _once(yaml.compose(text, Loader=yaml.SafeLoader), where)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}: line {_line(mark)}" if mark is not None else where
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(problem, where=place, then="Correct the YAML there; expressions stand in single quotes.") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is no table ({error})", where=where, then="Keep to texts, lists and mappings.") from error


def _line(mark: Any) -> int:
    """The line of a place in YAML, the first being 1."""
    return int(mark.line) + 1


def _plain(text: str, where: str) -> None:
    """Refuses aliases, a few of which can stand for gigabytes, and deep nesting, for which the parser takes quadratic time."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        place = f"{where}: line {_line(event.start_mark)}"
        if depth > _DEEPEST:
            raise InputError(f"more than {_DEEPEST} lists or mappings lie in each other", where=place, then="No table is as deep.")
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"*{event.anchor} is an alias, which is not read", where=place, then="Write the value again.")


def _once(node: yaml.Node | None, where: str) -> None:
    """Refuses a key that would hide an earlier one."""
    seen: set[str] = set()
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                place = f"{where}: line {_line(key.start_mark)}"
                raise InputError(f'the key "{key.value}" is given twice', where=place, then="Put what is under it together.")
            seen.add(key.value)
            _once(value, where)


def _fault(detail: ErrorDetails, where: str) -> str:
    """One fault of a table's form."""
    loc = [step for step in detail["loc"] if step != "[key]"]
    place = f"{where}: {_place(loc)}"
    value = _shown(detail["input"])
    if detail["type"] == "extra_forbidden":
        parts: Mapping[str, type[Part]] = {"towers": Towers, "fused": Fused}
        known = list((parts[str(loc[0])] if len(loc) > 1 else Table).model_fields)
        near = get_close_matches(str(loc[-1]), known, n=2)
        then = f"Did you mean {' or '.join(near)}?" if near else f"Tables here: {', '.join(known)}."
        return f"{place}: unknown table. {then}"
    if detail["type"] in {"too_short", "too_long"}:
        return f"{place}: is {value}. A rule is [path, name] or [path, name, beside]."
    wanted = _WANTED.get(detail["type"])
    if wanted is None:
        return f"{place}: is {value} ({detail['msg']}). Write it as in docs/how-to/add-a-family.md."
    then = {"text": "Put it in quotes.", "a list": "Write [one, two].", "a mapping": "Write {key: value}."}[wanted]
    return f"{place}: is {value}, not {wanted}. {then}"


def _place(loc: list[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).removeprefix(".")


def _meanings(table: Table, shipped: Table, *, third: bool) -> Iterator[str]:
    """Faults in what the texts mean: expressions, words, names, towers, layouts."""
    for word, text in table.words.items():
        yield from _word(word, text, shipped.words if third else {})
    words = {**table.words, **shipped.words}
    for name, index, row in table.rules():
        yield from _rule(f"{name}[{index}]", row, words)
    for name in ("keys", "second", "inputs"):
        for key, tower in getattr(table.towers, name).items():
            yield from _tower(f"towers.{name}.{key}", tower)
    for tower in table.outside:
        yield from _tower(f"outside.{tower}", tower)
    for kind in Fused.model_fields:
        known = list(getattr(shipped.fused, kind))
        for layout in getattr(table.fused, kind):
            if layout not in known:
                near = get_close_matches(layout, known, n=1)
                then = f"Did you mean {near[0]}? " if near else ""
                yield f'fused.{kind}.{layout}: "{layout}" is no layout. {then}Layouts of {kind}: {", ".join(known)}.'


def _word(word: str, text: str, taken: Mapping[str, str]) -> Iterator[str]:
    spot = f"words.{word}"
    if re.fullmatch(r"\w+", word) is None:
        yield f'{spot}: "{word}" is no word. Use letters, digits and underscores.'
    elif word in taken:
        yield f"{spot}: <{word}> is a word of selectune's own, which stays as it is. Give yours another name."
    compiled = _compiled(text)
    if isinstance(compiled, str):
        yield f'{spot}: "{text}" is no regular expression ({compiled}). Correct it there.'
    elif compiled.groups:
        yield f'{spot}: "{text}" has a group that catches, which would shift \\1 in the rules. Write (?:…).'


def _rule(spot: str, row: Names, words: Mapping[str, str]) -> Iterator[str]:
    path, name, *_ = row
    groups: int | None = None
    for position in (0, *range(2, len(row))):
        text = row[position]
        unknown = [word for word in _WORD.findall(text) if word not in words]
        for word in unknown:
            near = get_close_matches(word, words, n=1)
            then = f"Did you mean <{near[0]}>?" if near else f"Define it under words, or take one of: {', '.join(words)}."
            yield f'{spot}[{position}]: "{text}" has the unknown word <{word}>. {then}'
        if unknown:
            continue
        compiled = _compiled(expression(text, words))
        if isinstance(compiled, str):
            yield f'{spot}[{position}]: "{text}" is no regular expression ({compiled}). Correct it there.'
        elif position == 0:
            groups = compiled.groups
    if _NAME.fullmatch(name) is None or name.startswith("other."):
        yield f'{spot}[1]: "{name}" is no name for a component. Write words between dots, such as attn.q or mixer.\\1.'
    highest = max((int(digit) for digit in re.findall(r"\\([1-9])", name)), default=0)
    if groups is not None and highest > groups:
        yield f'{spot}[1]: "{name}" uses \\{highest}, and "{path}" has {groups} groups. Put what it stands for in parentheses.'


def _tower(spot: str, tower: str) -> Iterator[str]:
    if _TOWER.fullmatch(tower) is None:
        yield f'{spot}: "{tower}" is no name for a tower. Write one word in small letters, such as vision, projector or vision_high.'


def _compiled(text: str) -> re.Pattern[str] | str:
    """The compiled expression, or why it is none."""
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)


def _shown(value: object) -> str:
    """A value as it may stand in a message: short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
