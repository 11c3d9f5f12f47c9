"""A registry's database is brought to the newest revision."""

from __future__ import annotations

import os
from dataclasses import dataclass

from selectune.errors import RegistryError
from selectune.registry.events import Log
from selectune.registry.places import locate

__all__ = ["Upgraded", "upgrade"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Upgraded:
    """What was done."""

    where: str
    before: str
    """The database's revision."""
    after: str


def upgrade(url: str | os.PathLike[str]) -> Upgraded:
    """Brings the tables of the registry in a folder or at a URL to the newest revision, all or nothing; no event changes.

    Nobody can write meanwhile. Raises RegistryError where no registry is, for a revision that this version of the program does not know,
    and for a registry that has no database; MissingPackage without Alembic.
    """
    place = locate(os.fspath(url), create=False)
    if not isinstance(place.log, Log):
        raise RegistryError("its events are objects, not rows of a database", where=place.where, then="There is nothing to upgrade.")
    before, after = place.log.upgrade()
    return Upgraded(where=place.where, before=before, after=after)
