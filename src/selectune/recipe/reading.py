"""A recipe from YAML: every fault at once, each with its path, what stands there, and near matches."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from selectune.errors import RecipeError
from selectune.recipe.parts import Recipe

FOLDER = Path(__file__).parent.parent / "recipes"
"""The shipped presets."""


def presets() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the shipped one of that name, with overrides such as ``skills[0].optim.lr=3e-6``.

    An override's value is read as YAML. Paths in the recipe start at its folder; in a preset, at the current one.
    Raises `RecipeError` with every fault of the file and of the overrides.

    >>> read_recipe("demo-attention", ["seed=7"]).seed
    7
    """
    path, folder, where = _find(str(source))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read ({error})", where=where, then="Give a recipe in UTF-8") from error
    return parse_recipe(text, where=where, folder=folder, overrides=overrides)


def parse_recipe(text: str, *, where: str = "recipe", folder: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """`read_recipe` from a string; `folder` is where its relative paths start (None: they stay as they are)."""
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise RecipeError(f"holds {_shown(raw)}, not a mapping", where=where, then="Start with name:, select: and skills:")
    faults = [fault for override in overrides if (fault := _override(raw, override, where))]
    try:
        recipe = Recipe.model_validate(raw, context=folder)
    except ValidationError as error:
        faults += [fault_of(detail, where) for detail in error.errors()]
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError("\n".join(faults) + "\n", then=f"{count}; every field is described in docs/reference/recipe.md")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe, resolved, as YAML that reads back to the same digest."""
    value = recipe.resolved().model_dump(mode="json")
    # Not `allow_unicode`: PyYAML writes U+0085 and U+2028 as they are and reads them back as line ends.
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)


def _find(source: str) -> tuple[Path, Path, str]:
    """The file, the folder its paths start at, and its name in messages."""
    path = Path(source).expanduser()
    if path.is_file():
        return path, path.parent.absolute(), path.name
    known = presets()
    if source in known:
        return known[source], Path.cwd(), f"{source}.yaml"
    near = difflib.get_close_matches(source, known, n=3)
    then = f"Did you mean {' or '.join(near)}?" if near else f"Shipped recipes: {', '.join(known)}"
    raise RecipeError("is neither a file nor a shipped recipe", where=f'"{source}"', then=then)


class _Loader(yaml.SafeLoader):
    """YAML with the scalars that people mean: ``5e-6`` is a number, ``no`` and ``2024-01-01`` are words, a key stands once."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and kind are PyYAML's
        first: [(tag, pattern) for tag, pattern in entries if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(self.construct_object(key, deep=True))
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f'the key "{name}" is given twice', key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - PyYAML's spelling
        # PyYAML looks at every open bracket again for each token.
        if self.flow_level >= _DEPTH_LIMIT:
            raise yaml.scanner.ScannerError(None, None, "is nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around every word that `_Loader` would take for something else."""


_TEXT_LIMIT = 128 << 10
"""PyYAML reads a tenth of a megabyte in a second."""
_VALUES_LIMIT = 100_000
_DEPTH_LIMIT = 64
_FLOAT = re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """The values in a YAML text, read as a recipe's are. Raises `RecipeError` with the line of the fault.

    A text may be hostile: one that is large, nested deeply, or small only because its aliases repeat, is refused before it takes memory.
    """
    if len(text) > _TEXT_LIMIT:
        what = f"has {len(text):,} characters, over the limit of {_TEXT_LIMIT:,}"
        raise RecipeError(what, where=where, then="Such a file is far smaller: look what it holds.")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > _VALUES_LIMIT:
            raise RecipeError(f"its aliases make more than {_VALUES_LIMIT:,} values", where=where, then="Write out what is repeated.")
        return loader.construct_document(node)
    except RecursionError as error:
        raise RecipeError("is nested too deeply", where=where, then="Correct the YAML there") from error
    except RecipeError:
        raise
    except (ValueError, OverflowError, KeyError, AttributeError) as error:
        # What PyYAML lets through for a tag that the text itself gives: `!!bool maybe`, `!!timestamp never`, thousands of digits.
        raise RecipeError(f"a value cannot be read ({str(error)[:120]})", where=where, then="Correct the YAML there") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f": line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{problem}", where=f"{where}{line}", then="Correct the YAML there") from error


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, with each alias written out; a node inside itself counts as too many."""
    key = id(node)
    if key not in known:
        known[key] = _VALUES_LIMIT + 1
        inside = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[key] = 1 + sum(_values(one, known) for one in inside) if isinstance(node, yaml.CollectionNode) else 1
    return known[key]


def _override(raw: dict[str, Any], override: str, where: str) -> str | None:
    """Set one value in place; the fault as text if that cannot be done."""
    place = f"{where}: --set {override}"
    path, equals, text = override.partition("=")
    steps = re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)
    if not equals or not steps or _joined(steps) != path:
        return f"{place}: is not PATH=VALUE. Write it like skills[0].optim.lr=3e-6"
    try:
        value = parse_yaml(text, place)
    except RecipeError as error:
        return str(error)
    target: Any = raw
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        name, index = step
        if index:
            if not isinstance(target, list) or int(index) >= len(target):
                count = len(target) if isinstance(target, list) else 0
                return f"{place}: [{index}] is beyond the {count} entries of {_joined(steps[:position]) or 'the recipe'}"
            key: Any = int(index)
        else:
            if not isinstance(target, dict):
                return f"{place}: {_joined(steps[:position])} is {_shown(target)} and has no field {name}"
            key = name
        if last:
            target[key] = value
        elif index:
            target = target[key]
        else:
            # A plain string stands for a Data with that source, so that its other fields can be set too.
            inner = target.get(key)
            target[key] = {"source": inner} if isinstance(inner, str) and not steps[position + 1][1] else {} if inner is None else inner
            target = target[key]
    return None


def _joined(steps: Sequence[tuple[str, str]]) -> str:
    return "".join(f"[{index}]" if index else f".{name}" for name, index in steps).removeprefix(".")


def fault_of(detail: ErrorDetails, where: str, root: type[BaseModel] = Recipe) -> str:
    """One fault: the file, the path in it, what is wrong, the value, near matches."""
    loc = detail["loc"]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).removeprefix(".")
    place = f"{where}: {path}" if path else where
    if detail["type"] == "extra_forbidden":
        known = _fields_at(loc[:-1], root)
        near = difflib.get_close_matches(str(loc[-1]), known, n=3)
        then = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}"
        return f"{place}: unknown key. {then}"
    if detail["type"] == "missing":
        return f"{place}: is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: {message[0].lower()}{message[1:]}, not {_shown(detail['input'])}"


def _fields_at(loc: Sequence[int | str], root: type[BaseModel]) -> list[str]:
    """The fields of `root`'s part at this path."""
    part = root
    for step in loc:
        if isinstance(step, str) and step in part.model_fields:
            part = _part_in(part.model_fields[step].annotation) or part
    return list(part.model_fields)


def _part_in(annotation: Any) -> type[BaseModel] | None:
    """The model class inside an annotation such as ``tuple[Skill, ...]`` or ``Optim | None``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (Union, types.UnionType, tuple, Annotated):
        return next((found for inner in get_args(annotation) if (found := _part_in(inner))), None)
    return None


def _shown(value: object) -> str:
    """A value as it may stand in a message: short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
