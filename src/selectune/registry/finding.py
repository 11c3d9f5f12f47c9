"""Which update somebody means, and those that it stands on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

from selectune.errors import RegistryError
from selectune.registry.update import Update

__all__ = ["ancestry", "back", "find", "resolve"]

_SHORTEST = 4


def resolve(wanted: str, found: Iterable[Update], where: str) -> Update:
    """The update with this name or tag, this id, or this beginning of an id (4 digits or more). Raises RegistryError with near matches."""
    by_id = {update.id: update for update in found}
    return by_id[find(wanted, {name: one.id for one in by_id.values() for name in (*one.tags, *one.names)}, by_id, where)]


def find(wanted: str, names: Mapping[str, str], found: Mapping[str, Update], where: str) -> str:
    """The id that somebody means, by names and tags or as the beginning of one of `found`, updates by id. Raises as `resolve`."""
    if names.get(wanted) in found:
        return names[wanted]
    start = wanted.lower()
    matches = [id_ for id_ in found if id_.startswith(start)] if len(wanted) >= _SHORTEST else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        shown = ", ".join(f"{id_[:16]} ({found[id_].skill})" for id_ in matches[:5])
        raise RegistryError(f'"{wanted}" is the beginning of {len(matches)} ids', where=where, then=f"Give more digits: {shown}.")
    near = get_close_matches(wanted, names, n=3, cutoff=0.5)
    near += [id_[:12] for id_ in get_close_matches(wanted, [id_[: max(len(wanted), 12)] for id_ in found], n=2, cutoff=0.6)]
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise RegistryError(f'"{wanted[:80]}" is no name and no id of an update', where=where, then=f"{hint}See them all: selectune log")


def ancestry(update: Update, found: Iterable[Update], where: str) -> list[Update]:
    """The update and its ancestors, the oldest first. Raises RegistryError where one is missing."""
    return list(back(update, {one.id: one for one in found}, where))[::-1]


def back(update: Update, found: Mapping[str, Update], where: str) -> Iterator[Update]:
    """The update, its parent, that one's parent, to the first, of updates by id. Raises as `ancestry`."""
    yield update
    seen = {update.id}
    while update.parent is not None:
        # An id is a digest that covers its parent's, so a circle needs a broken sha256 or an edited log.
        if update.parent in seen or update.parent not in found:
            raise RegistryError(f"the parent of update {update.id[:12]} is missing", where=where, then="See why: selectune verify")
        update = found[update.parent]
        seen.add(update.id)
        yield update
