"""Where a registry lies: a folder with SQLite, or PostgreSQL with a folder of objects."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from selectune.errors import NotYet, RegistryError
from selectune.registry.blobs import Blobs
from selectune.registry.events import Log, sqlite_url

__all__ = ["folder", "team"]

_DATABASE = "registry.sqlite"


def folder(path: Path, *, create: bool) -> tuple[Log, Path]:
    """The log of a registry in a folder, and that folder. Raises RegistryError where there is none and none is to be made."""
    database = path / _DATABASE
    if create:
        Blobs(path / "blobs").create()
    elif not database.is_file():
        raise RegistryError("there is no registry here", where=str(path), then="Record a run first: selectune run RECIPE --registry DIR")
    return Log(sqlite_url(database.absolute(), create=create)), path


def team(text: str) -> tuple[Log, Path]:
    """The log of a team in PostgreSQL, and the folder of its objects. Raises RegistryError or NotYet for another URL."""
    try:
        url = sa.make_url(text)
    except ArgumentError as error:
        raise RegistryError(
            f"{text[:80]!r} is no URL of a database", then="Use a folder, or postgresql+psycopg://host/database?blobs=FOLDER"
        ) from error
    if url.get_backend_name() != "postgresql":
        raise NotYet(f"a registry at {url.drivername}://", then="Use a folder, or postgresql+psycopg://host/database?blobs=FOLDER")
    blobs = url.query.get("blobs")
    if not isinstance(blobs, str) or "://" in blobs:
        raise RegistryError(
            "the URL does not say in which local or shared folder the objects are", where=url.host, then="End it with ?blobs=FOLDER"
        )
    return Log(url.difference_update_query(["blobs"])), Path(blobs)
