"""Which update somebody means, and those that it stands on."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from selectune.errors import RegistryError
from selectune.registry.update import Update

__all__ = ["ancestry", "resolve"]

_SHORTEST = 4


def resolve(wanted: str, found: Sequence[Update], where: str) -> Update:
    """The update with this name or tag, this id, or this beginning of an id (4 digits or more). Raises RegistryError with near matches."""
    by_name = {name: update for update in found for name in (*update.tags, *update.names)}
    if wanted in by_name:
        return by_name[wanted]
    matches = [update for update in found if len(wanted) >= _SHORTEST and update.id.startswith(wanted.lower())]
    if len(matches) == 1:
        return matches[0]
    if matches:
        shown = ", ".join(f"{update.id[:16]} ({update.skill})" for update in matches[:5])
        raise RegistryError(f'"{wanted}" is the beginning of {len(matches)} ids', where=where, then=f"Give more digits: {shown}.")
    near = get_close_matches(wanted, by_name, n=3, cutoff=0.5)
    near += [id_[:12] for id_ in get_close_matches(wanted, [update.id[: max(len(wanted), 12)] for update in found], n=2, cutoff=0.6)]
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise RegistryError(f'"{wanted[:80]}" is no name and no id of an update', where=where, then=f"{hint}See them all: selectune log")


def ancestry(update: Update, found: Sequence[Update], where: str) -> list[Update]:
    """The update and its ancestors, the oldest first. Raises RegistryError where one is missing."""
    by_id = {one.id: one for one in found}
    line = [update]
    while line[-1].parent is not None:
        parent = by_id.get(line[-1].parent)
        # An id is a digest that covers its parent's, so a circle needs a broken sha256 or an edited log.
        if parent is None or parent in line:
            raise RegistryError(f"the parent of update {line[-1].id[:12]} is missing", where=where, then="See why: selectune verify")
        line.append(parent)
    return line[::-1]
