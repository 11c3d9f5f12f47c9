"""Where a registry lies: a folder with SQLite, PostgreSQL with objects elsewhere, or an object store or a hub's repository with both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from selectune.errors import RegistryError
from selectune.registry.blobs import FolderBlobs
from selectune.registry.database import sqlite_url
from selectune.registry.events import Log
from selectune.registry.hub import KIND, HubBlobs, HubLog, HubRepo
from selectune.registry.objects import ObjectLog
from selectune.registry.remote import RemoteBlobs
from selectune.registry.shelves import KNOWN, FolderShelf, RemoteShelf
from selectune.registry.store import Blobs, EventLog

__all__ = ["Place", "exists", "locate"]

_DATABASE = "registry.sqlite"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a registry is kept in, not opened yet."""

    log: EventLog
    blobs: Blobs
    where: str
    """The place in words, without a password."""


def locate(text: str, *, create: bool) -> Place:
    """The log and the objects of the registry in a folder or at a URL.

    Raises RegistryError where there is no folder and none is to be made, and for what is no URL of a registry; NotYet for another kind;
    MissingPackage where the kind needs a package.
    """
    if "://" not in text:
        return _folder(Path(text), create=create)
    kind = text.partition("://")[0]
    if kind.partition("+")[0] == "postgresql":
        return _team(text)
    if kind == "file":
        folder = Path(text.removeprefix("file://"))
        return Place(log=ObjectLog(FolderShelf(folder / "events")), blobs=FolderBlobs(folder / "blobs"), where=text)
    if kind == KIND:
        repo = HubRepo(text)
        return Place(log=HubLog(repo), blobs=HubBlobs(repo), where=repo.where)
    return Place(log=ObjectLog(RemoteShelf(_inside(text, "events"))), blobs=RemoteBlobs(_inside(text, "blobs")), where=text)


def exists(text: str) -> bool:
    """Whether there is a registry at a place; nothing is made. Raises as `locate`."""
    if "://" not in text and not (Path(text) / _DATABASE).is_file():
        return False
    return locate(text, create=False).log.exists()


def _inside(url: str, folder: str) -> str:
    kind, _, rest = url.partition("://")
    if kind in KNOWN and not rest.strip("/"):
        raise RegistryError("names no bucket", where=url, then="Give s3://bucket/prefix.")
    return f"{kind}://{rest.rstrip('/')}/{folder}"


def _folder(path: Path, *, create: bool) -> Place:
    database = path / _DATABASE
    blobs = FolderBlobs(path / "blobs")
    if not create and not database.is_file():
        raise RegistryError("there is no registry here", where=str(path), then="Record a run first: selectune run RECIPE --registry DIR")
    return Place(log=Log(sqlite_url(database.absolute(), create=create)), blobs=blobs, where=str(path))


def _team(text: str) -> Place:
    try:
        url = sa.make_url(text)
    except ArgumentError as error:
        raise RegistryError(
            f"{text[:80]!r} is no URL of a database", then="Use a folder, or postgresql+psycopg://host/database?blobs=FOLDER"
        ) from error
    blobs = url.query.get("blobs")
    if not isinstance(blobs, str):
        raise RegistryError(
            "the URL does not say where the objects are", where=url.host, then="End it with ?blobs=FOLDER or ?blobs=s3://bucket/prefix"
        )
    return Place(
        log=Log(url.difference_update_query(["blobs"])),
        blobs=RemoteBlobs(_inside(blobs, "blobs")) if "://" in blobs else FolderBlobs(Path(blobs) / "blobs"),
        where=url.render_as_string(hide_password=True),
    )
