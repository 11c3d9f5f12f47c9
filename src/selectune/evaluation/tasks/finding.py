"""Tasks by name: those that come with the package, and those of installed packages (entry points of the group `selectune.tasks`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from selectune.errors import InputError, NoMatch, RecipeError
from selectune.evaluation.tasks.spec import TaskSpec
from selectune.recipe.basis import is_task_file
from selectune.recipe.reading import fault_of, parse_yaml

ENTRY_POINTS = "selectune.tasks"
"""Each is a `TaskSpec`, the absolute path of a YAML file or of a folder of such, a list of these, or a function that gives one of them."""
LARGEST = 1 << 20
"""Most bytes of a task's file."""


@cache
def all_tasks() -> Mapping[str, TaskSpec]:
    """Every known task by name: the shipped ones, then those of installed packages. Raises InputError for one that cannot be used."""
    found = {spec.name: spec for spec in _shipped()}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        where = f"{entry.dist.name if entry.dist else entry.value} (entry point {entry.name} of {ENTRY_POINTS})"
        for spec in _offered(entry, where):
            if spec.name in found:
                then = "A package adds tasks and changes none: give it a name of its own."
                raise InputError(f'there is a task "{spec.name}" already', where=where, then=then)
            found[spec.name] = spec
    return MappingProxyType(found)


def find_task(name: str) -> TaskSpec:
    """The task of that name, or in that YAML file. Raises NoMatch for an unknown name, with near ones, and InputError for a faulty file."""
    if is_task_file(name):
        return read_task(Path(name).expanduser())
    known = all_tasks()
    if name not in known:
        near = get_close_matches(name, known)
        then = f"Did you mean {near[0]}?" if near else f"Use one of: {', '.join(known)}, or give a YAML file."
        raise NoMatch(f'"{name}" is no task', where="task", then=then)
    return known[name]


def read_task(file: Traversable | Path) -> TaskSpec:
    """The task in a YAML file. Raises InputError with every fault, each with its place in the file."""
    where = file.name
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=str(file), then="Give a task's YAML file, in UTF-8.") from error
    if len(data) > LARGEST:
        raise InputError(f"has more than {LARGEST:,} bytes", where=where, then="A task takes 20 to 60 lines.")
    try:
        raw = parse_yaml(text, where)
    except RecipeError as error:
        raise InputError(error.what, where=error.where, then=error.then) from error
    if not isinstance(raw, dict):
        raise InputError("holds no mapping", where=where, then="Start with name:, title: and source:.")
    try:
        return TaskSpec.model_validate(raw)
    except ValidationError as error:
        faults = [fault_of(detail, where, TaskSpec) for detail in error.errors()]
        raise InputError("\n".join(faults) + "\n", then="Every field is described in docs/how-to/add-a-task.md.") from error


def _shipped() -> Iterator[TaskSpec]:
    folder = resources.files("selectune.evaluation.tasks").joinpath("shipped")
    return _in_folder(folder)


def _in_folder(folder: Traversable) -> Iterator[TaskSpec]:
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if is_task_file(file.name):
            yield read_task(file)


def _offered(entry: EntryPoint, where: str) -> Iterator[TaskSpec]:
    then = "Correct the package, or uninstall it."
    try:
        value = entry.load()
        found = value() if callable(value) else value
    except (ImportError, AttributeError) as error:
        raise InputError(f'"{entry.value}" cannot be loaded ({error})', where=where, then=then) from error
    for one in found if isinstance(found, list | tuple) else [found]:
        place = Path(one) if isinstance(one, str) else one
        if isinstance(place, TaskSpec):
            yield place
        elif isinstance(place, Traversable) and not (isinstance(place, Path) and not place.is_absolute()):
            yield from _in_folder(place) if place.is_dir() else iter([read_task(place)])
        else:
            what = f'"{entry.value}" gives {str(one)[:80]!r}, which is neither a task nor an absolute path'
            raise InputError(what, where=where, then=then)
