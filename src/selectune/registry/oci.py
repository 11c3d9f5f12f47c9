"""Updates as an OCI image layout, a folder that `oras`, `skopeo` and container registries take; and such a folder read back.

An update is one manifest: its config is the update's canonical JSON, whose digest behind a tag is the update's id; its first layer the
delta, the others its attached files by name. Nothing of the registry goes in but what the update itself says: the same update has the same
manifest everywhere, and who added it, what names point to it and who approved it are not part of it. Names are references of the index.
Source: OCI image specification 1.1 (image-layout, index, manifest, descriptor, annotations).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.delta.files import building
from selectune.errors import EventMalformed, InputError, ObjectDamaged, Oversize, RegistryError, StorageError, VerifyFailed
from selectune.hashing import canonical, digest, parse_json
from selectune.registry.events import GENESIS, Event
from selectune.registry.lineage import update_of
from selectune.registry.update import Update, check_attachment

if TYPE_CHECKING:
    from selectune.registry.registry import Registry

__all__ = ["Exported", "add_layout", "read_layout", "write_layout"]

LAYOUT, INDEX = "oci-layout", "index.json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
UPDATE_TYPE = "application/vnd.selectune.update.v1+json"
"""Of a manifest that is an update (`artifactType`), and of its config."""
DELTA_TYPE = "application/vnd.selectune.delta.v1+safetensors"
FILE_TYPE = "application/octet-stream"
"""Of every attached file: what it holds, its name says."""
TITLE, REF = "org.opencontainers.image.title", "org.opencontainers.image.ref.name"
_DELTA = "update.delta"
_VERSION = {"imageLayoutVersion": "1.0.0"}
_REF = re.compile(r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*\Z")
"""What the specification lets `org.opencontainers.image.ref.name` be."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_CHUNK = 1 << 20
_JSON_LIMIT = 16 << 20
"""Bytes of an index, a manifest or an update."""
_MOST = 10_000
"""Manifests of an index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """An update in a layout; every digest on the way to it was recomputed."""

    update: Update
    """With the names that the index gives it, which nobody has signed."""
    delta: Path
    attachments: Mapping[str, Path]


def write_layout(registry: Registry, ids: Sequence[str], folder: Path) -> tuple[Update, ...]:
    """Writes updates, and those that they stand on, as a new folder; which, the oldest of each line first.

    The folder is whole or not there, and its bytes depend on the updates and on the names that point to them alone. Files are copied and
    hashed on the way, never linked: who edits the folder does not edit the registry. Raises what `Registry.admit` raises for an update that
    may not be loaded, StorageError for a folder that is there already or cannot be written, ObjectDamaged for objects that are others.
    """
    found: dict[str, Update] = {}
    for one in ids:
        update = registry.admit(one).update
        found |= {each.id: each for each in reversed(registry.log(update.id))}
    with building(folder) as partial:
        blobs = partial / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        rows = [row for update in found.values() for row in _written(update, registry, blobs)]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": rows}
        (partial / INDEX).write_bytes(canonical(index))
        (partial / LAYOUT).write_bytes(canonical(_VERSION))
    return tuple(found.values())


def _written(update: Update, registry: Registry, blobs: Path) -> Iterator[dict[str, Any]]:
    """Writes an update's objects, config and manifest; its rows of the index, one for its id and one for each name."""
    layers = [_copied(registry.blob(update.delta), update.delta, blobs, DELTA_TYPE, _DELTA)]
    for name, wanted in sorted(update.attachments.items()):
        layers.append(_copied(registry.blob(wanted), wanted, blobs, FILE_TYPE, check_attachment(name)))
    said = {"skill": update.skill, "verdict": update.verdict, "parent": update.parent or "", "base": update.base, "child": update.child}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": UPDATE_TYPE,
        "config": _put(canonical(update.body()), blobs, UPDATE_TYPE),
        "layers": layers,
        "annotations": {"selectune.update": update.id} | {f"selectune.{key}": value for key, value in said.items()},
    }
    row = _put(canonical(manifest), blobs, MANIFEST_TYPE)
    # A reference may not hold everything that a name of ours may, such as two underscores in a row.
    for name in (update.id, *sorted({*update.names, *update.tags})):
        if _REF.match(name):
            yield {**row, "artifactType": UPDATE_TYPE, "annotations": {REF: name}}


def _put(data: bytes, blobs: Path, media_type: str) -> dict[str, Any]:
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}


def _copied(source: Path, wanted: str, blobs: Path, media_type: str, title: str) -> dict[str, Any]:
    hasher = hashlib.sha256()
    with source.open("rb") as file, (blobs / wanted).open("wb") as copy:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            copy.write(chunk)
        size = copy.tell()
    if hasher.hexdigest() != wanted:
        raise ObjectDamaged(f"object {wanted[:12]} is damaged", where=str(source), then="See what else is: selectune verify")
    return {"mediaType": media_type, "digest": f"sha256:{wanted}", "size": size, "annotations": {TITLE: title}}


def read_layout(folder: Path) -> tuple[Exported, ...]:
    """The updates in a layout that a stranger may have made, each after those of the layout that it stands on.

    What is no update is passed over, as the specification asks. Raises RegistryError for a folder that is no layout or holds no update,
    ObjectDamaged for bytes that their digest or size does not fit, EventMalformed for a manifest or an update of another form, Oversize for
    what is too large, VerifyFailed for a link. Deltas are hashed and not opened; `Registry.add` reads them.
    """
    if _parsed(_bounded(folder, LAYOUT), LAYOUT).get("imageLayoutVersion") != _VERSION["imageLayoutVersion"]:
        raise RegistryError(f"{LAYOUT} has another version than 1.0.0", where=str(folder), then="Export it again.")
    rows = _parsed(_bounded(folder, INDEX), INDEX).get("manifests")
    if not isinstance(rows, list) or len(rows) > _MOST:
        raise EventMalformed(f"{INDEX} has no list of at most {_MOST:,} manifests", where=str(folder), then="Export it again.")
    names: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for row in rows:
        if isinstance(row, dict) and row.get("mediaType") == MANIFEST_TYPE and row.get("artifactType") == UPDATE_TYPE:
            name, size = _descriptor(row, MANIFEST_TYPE, INDEX)
            sizes.setdefault(name, size)
            names.setdefault(name, []).extend(one for one in _noted(row, REF) if _REF.match(one))
    if not sizes:
        raise RegistryError("the layout holds no update", where=str(folder), then="Give a folder that `selectune export --oci` wrote.")
    blobs = folder / "blobs" / "sha256"
    return _ordered([_exported(blobs, name, size, names[name]) for name, size in sizes.items()])


def _exported(blobs: Path, manifest: str, size: int, names: Iterable[str]) -> Exported:
    where = f"manifest {manifest[:12]}"
    document = _parsed(_object(blobs, manifest, size), where)
    layers = document.get("layers")
    if document.get("schemaVersion") != 2 or document.get("artifactType") != UPDATE_TYPE or not isinstance(layers, list) or not layers:
        raise _malformed("it is no manifest of an update", where)
    config, config_size = _descriptor(document.get("config"), UPDATE_TYPE, where)
    update = _update(_object(blobs, config, config_size), where, names)
    delta, *files = (
        _descriptor(row, kind, where) for row, kind in zip(layers, (DELTA_TYPE, *(FILE_TYPE for _ in layers[1:])), strict=True)
    )
    titles = [title for row in layers[1:] for title in _noted(row, TITLE)]
    # The layers say nothing of their own: they are the objects that the update names, in the order in which they are written.
    attached = {name: hex_ for name, (hex_, _) in zip(titles, files, strict=False)}
    if delta[0] != update.delta or len(titles) != len(files) or titles != sorted(attached) or attached != dict(update.attachments):
        raise _malformed("its layers are not the objects that its update names", where)
    for name, length in (delta, *files):
        _check(blobs, name, length)
    return Exported(update=update, delta=blobs / delta[0], attachments={name: blobs / hex_ for name, hex_ in attached.items()})


def _update(data: bytes, where: str, names: Iterable[str]) -> Update:
    body = _parsed(data, where)
    if canonical(body) != data:
        raise _malformed("its update is not written as canonical JSON", where)
    subject = digest("update", body)
    try:
        event = Event(seq=0, utc="", actor="", kind="add", name=None, subject=subject, body=body, prev=GENESIS, hash="")
        update = update_of(event, tuple(sorted(name for name in names if name != subject)))
        for name in update.attachments:
            check_attachment(name)
    except (TypeError, RegistryError) as error:
        raise _malformed(f"its update is none ({error})", where) from error
    return update


def _ordered(found: Sequence[Exported]) -> tuple[Exported, ...]:
    """Each after its parent, if that is there. An id covers its parent's, so there can be no circle."""
    by_id = {one.update.id: one for one in found}
    ordered: dict[str, Exported] = {}
    for one in found:
        line = [one]
        while (parent := by_id.get(line[-1].update.parent or "")) is not None and parent.update.id not in ordered:
            line.append(parent)
        ordered |= {each.update.id: each for each in reversed(line)}
    return tuple(ordered.values())


def add_layout(registry: Registry, folder: Path, actor: str) -> tuple[str, ...]:
    """Records the updates of a layout, and returns their ids; those that are there already change nothing. Their names are not taken over.

    Raises what `read_layout` and `Registry.add` raise, ObjectDamaged where a file was changed after it was checked.
    """
    ids = []
    for one in read_layout(folder):
        body = one.update.body()
        fields = {key: value for key, value in body.items() if key not in ("delta", "attachments")}
        made = registry.add(Update(**fields, actor=actor), one.delta, dict(one.attachments))
        if made != one.update.id:
            raise ObjectDamaged(f"update {one.update.id[:12]} was changed while it was read", where=str(folder), then="Trust neither.")
        ids.append(made)
    return tuple(ids)


def _descriptor(row: Any, media_type: str, where: str) -> tuple[str, int]:
    """The hex digits and the size that a descriptor gives. Raises EventMalformed for one of another form or kind."""
    match row:
        case {"mediaType": str(kind), "digest": str(name), "size": int(size)} if (
            kind == media_type and _DIGEST.match(name) and type(size) is int and size >= 0
        ):
            return name.removeprefix("sha256:"), size
    raise _malformed(f"no descriptor of {media_type}: {str(row)[:80]}", where)


def _noted(row: Any, key: str) -> tuple[str, ...]:
    notes = row.get("annotations")
    value = notes.get(key) if isinstance(notes, dict) else None
    return (value,) if isinstance(value, str) else ()


def _object(blobs: Path, name: str, size: int) -> bytes:
    """A small object, checked."""
    if size > _JSON_LIMIT:
        raise Oversize(f"object {name[:12]} has {size:,} bytes, over the limit of {_JSON_LIMIT:,}", where=str(blobs))
    with _opened(blobs / name) as file:
        data = file.read(size + 1)
    if len(data) != size or hashlib.sha256(data).hexdigest() != name:
        raise ObjectDamaged(f"object {name[:12]} is not what its descriptor says", where=str(blobs), then="Get the layout again.")
    return data


def _check(blobs: Path, name: str, size: int) -> None:
    with _opened(blobs / name) as file:
        if os.fstat(file.fileno()).st_size != size or hashlib.file_digest(file, "sha256").hexdigest() != name:
            raise ObjectDamaged(f"object {name[:12]} is not what its descriptor says", where=str(blobs), then="Get the layout again.")


def _bounded(folder: Path, name: str) -> bytes:
    with _opened(folder / name) as file:
        data = file.read(_JSON_LIMIT + 1)
    if len(data) > _JSON_LIMIT:
        raise Oversize(f"{name} has over {_JSON_LIMIT:,} bytes", where=str(folder))
    return data


def _opened(path: Path) -> BufferedReader:
    """A file of the layout. Raises VerifyFailed for a link, which might lead anywhere, RegistryError where none is."""
    try:
        for part in (path, *path.parents[:2]) if path.parent.name == "sha256" else (path,):
            if part.is_symlink():
                raise VerifyFailed(f"{part.name} is a link", where=str(path), then="Copy what it means into the layout.")
        if not path.is_file():
            raise RegistryError(f"there is no file {path.name[:64]}", where=str(path.parent), then="Give a whole OCI image layout.")
        return path.open("rb")
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot be read ({error.strerror})", where=str(path), then="May you read it?") from error


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = parse_json(data, limit=_JSON_LIMIT)
    except InputError as error:
        raise _malformed(error.what, where) from error
    if not isinstance(found, dict):
        raise _malformed("no JSON object", where)
    return found


def _malformed(what: str, where: str) -> EventMalformed:
    return EventMalformed(what, where=where, then="Get the layout again, or have it exported again.")
