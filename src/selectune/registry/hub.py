"""A registry in a repository of the Hugging Face Hub: ``hf://owner/name``, the same files as of a ``file://`` registry, in commits.

The hub limits how often one commits, so what belongs together is one commit: the objects of a `push`, and the events of a decision. Events
are committed on top of the very commit that they were decided on (`parent_commit`), or not at all. Uploads, LFS or Xet, logging in and
trying again after an overload are huggingface_hub's own.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from selectune.errors import Oversize, Overtaken, RegistryError, SelectuneError, StorageError
from selectune.registry.blobs import check_digest, damaged, opened
from selectune.registry.events import Event
from selectune.registry.objects import ObjectLog, as_object
from selectune.registry.remote import FetchedBlobs
from selectune.registry.store import again, silent

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

__all__ = ["KIND", "HubBlobs", "HubLog", "HubRepo", "HubShelf", "using"]

KIND = "hf"
_ADDRESS = re.compile(
    r"hf://(?:(?P<type>model|dataset)s/)?(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[A-Za-z0-9][\w./-]{0,99}))?/?\Z",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_MOST = 200_000
"""Files of a folder that are listed."""
_AT_ONCE = 500
"""Files that are asked about in one request."""
_SMALL = 10 << 20
"""Bytes up to which the hub may take a file into the commit itself; a larger one is uploaded before, as soon as it is there."""
_WAITING = 64 << 20
"""Bytes of small objects that wait in memory for their commit."""
_WAIT = 60.0
"""Seconds without an answer after which a download is given up."""


@contextmanager
def using(where: str) -> Iterator[None]:
    """The client's errors as errors of ours. Raises Overtaken where somebody else committed in between, else StorageError."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except SelectuneError:
        raise
    except OfflineModeIsEnabled as error:
        raise StorageError("HF_HUB_OFFLINE is set, so the hub is not asked", where=where, then="Unset it, or use another place.") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (409, 412):
            raise Overtaken("somebody else committed in between", where=where, then="Try again.") from error
        raise StorageError(
            f"the hub refused ({' '.join(str(error).split())[:300]})",
            where=where,
            then="Log in with `hf auth login`; is it there, and may you use it?",
        ) from error
    # The last four: answers that are not what the client takes for granted.
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
        raise StorageError(f"the hub cannot be used ({reason})", where=where, then="Is it reachable? HF_ENDPOINT says where.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's own bars of progress, which would be drawn over ours."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were:
            enable_progress_bars()


class _Said(TypedDict):
    repo_id: str
    repo_type: str


class HubRepo:
    """A repository, and the branch, tag or commit that is meant in it."""

    def __init__(self, url: str) -> None:
        match = _ADDRESS.match(url)
        if match is None or ".." in url:
            raise RegistryError(
                f"{url[:120]!r} names no repository of the hub",
                then="Give hf://owner/name or hf://datasets/owner/name, with @branch if need be; the token comes from HF_TOKEN.",
            )
        self.type, self.repo, self.revision = match["type"] or "model", match["repo"], match["revision"] or "main"
        self.where = url.rstrip("/")

    @property
    def api(self) -> HfApi:
        """The client, with the endpoint and the token of now."""
        from huggingface_hub import HfApi

        return HfApi()

    @property
    def said(self) -> _Said:
        """How the client is told which repository is meant."""
        return _Said(repo_id=self.repo, repo_type=self.type)

    def create(self) -> None:
        """Makes the repository, private, where it is not there; one that is there stays as it is."""
        with using(self.where):
            self.api.create_repo(**self.said, private=True, exist_ok=True)

    def head(self) -> str | None:
        """The commit that the revision means now; None where there is no such repository, or nobody may know of it."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            with using(self.where):
                found = self.api.repo_info(**self.said, revision=self.revision).sha
        except StorageError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                return None
            raise
        if found is None or not _COMMIT.match(found):
            raise StorageError(f"the hub names {str(found)[:80]!r} as a commit", where=self.where, then="Is HF_ENDPOINT a hub?")
        return found

    def commit(self, operations: Sequence[Any], message: str, parent: str | None) -> str:
        """One commit, and its name. Raises Overtaken where `parent` is not the newest commit any more."""
        with using(self.where), _quiet():
            done = self.api.create_commit(
                **self.said, operations=operations, commit_message=message, revision=self.revision, parent_commit=parent
            )
        return str(done.oid)


class HubShelf:
    """A folder of a repository. What is read is of the commit that was listed last. A `shelves.Shelf`."""

    def __init__(self, repo: HubRepo, folder: str) -> None:
        self.repo, self.folder = repo, folder
        self.where = f"{repo.where}/{folder}"
        self._commit: str | None = None
        self._listed: dict[str, int] = {}

    def path(self, name: str) -> str:
        """A name's path in the repository."""
        return f"{self.folder}/{name}"

    def prepare(self) -> None:
        """Makes the repository, private, where it is not there."""
        self.repo.create()

    @again
    def create(self, name: str, data: bytes) -> bool:
        """As `Shelf.create`, as a commit of its own on one without that name."""
        if name in self.sizes():
            return False
        self.add([(name, data)])
        return True

    def add(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Commits files on top of the commit that was listed last. Raises Overtaken where that is not the newest any more.

        Raises StorageError where the hub left one out, as it does by a repository's ``.gitignore``.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path_in_repo=self.path(name), path_or_fileobj=data) for name, data in files]
        self._commit = self.repo.commit(operations, f"Add {files[0][0]}", self._commit)
        there = self._infos([name for name, _ in files], self._commit)
        for name, data in files:
            if name not in there or _bytes(there[name], self.where) != len(data):
                raise StorageError(f"the hub did not take {name}", where=self.where, then="Has the repository a .gitignore? Remove it.")

    def get(self, name: str, limit: int, start: int = 0) -> bytes | None:
        """As `Shelf.get`, from byte `start` on."""
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils._headers import build_hf_headers

        revision = (self._commit if name in self._listed else None) or self.repo.revision
        url = hf_hub_url(**self.repo.said, filename=self.path(name), revision=revision, endpoint=self.repo.api.endpoint)
        # As they are sent: nothing is unpacked, so that no few bytes become many.
        headers = build_hf_headers(headers={"Range": f"bytes={start}-{start + limit - 1}", "Accept-Encoding": "identity"})
        with using(self.where), get_session().stream("GET", url, headers=headers, timeout=_WAIT, follow_redirects=True) as answer:
            if answer.status_code == 404:
                return None
            hf_raise_for_status(answer)
            if start and answer.status_code != 206:
                raise StorageError("the hub sends no part of a file", where=self.where, then="Is HF_ENDPOINT a hub?")
            found = bytearray()
            for piece in answer.iter_raw():
                found += piece
                if len(found) >= limit:
                    break
        return bytes(found[:limit])

    def size(self, name: str) -> int | None:
        """The bytes of one, or None where it is not there now."""
        found = self._infos([name], self.repo.revision).get(name)
        return None if found is None else _bytes(found, self.where)

    def modified(self, name: str) -> float | None:
        """When one was last committed, in seconds since 1970 by the hub's clock, or None where it is not there."""
        found = self._infos([name], self.repo.revision, expand=True).get(name)
        if found is None:
            return None
        if not _is_file(found) or found.last_commit is None:
            raise StorageError(f"the hub does not say when {name[:12]} was written", where=self.where, then="Is HF_ENDPOINT a hub?")
        return float(found.last_commit.date.timestamp())

    def _infos(self, names: Sequence[str], revision: str, *, expand: bool = False) -> dict[str, Any]:
        """What the hub says of those that are there."""
        api, paths, rows = self.repo.api, [self.path(name) for name in names], list[Any]()
        with using(self.where):
            for start in range(0, len(paths), _AT_ONCE):
                rows += api.get_paths_info(**self.repo.said, paths=paths[start : start + _AT_ONCE], revision=revision, expand=expand)
        return {row.path.rpartition("/")[2]: row for row in rows if row.path in paths}

    def sizes(self) -> dict[str, int]:
        """As `Shelf.sizes`. Raises Oversize for a folder of more than 200 000 files."""
        from huggingface_hub.errors import EntryNotFoundError

        self._commit, self._listed = self.repo.head(), {}
        if self._commit is None:
            return {}
        found: dict[str, int] = {}
        inside = f"{self.folder}/"
        try:
            with using(self.where):
                rows = self.repo.api.list_repo_tree(**self.repo.said, path_in_repo=self.folder, revision=self._commit)
                for number, row in enumerate(rows):
                    if number >= _MOST:
                        raise Oversize(f"over {_MOST} files", where=self.where, then="Take nothing from there; find out who made them.")
                    name = row.path.removeprefix(inside)
                    if row.path.startswith(inside) and "/" not in name and _is_file(row):
                        found[name] = _bytes(row, self.where)
        except StorageError as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
        self._listed = found
        return dict(found)

    def listed(self) -> dict[str, int]:
        """What `sizes` said last, or says now where it was not asked yet."""
        return self._listed or self.sizes()

    def delete(self, name: str) -> None:
        """Removes one, in a commit of its own; older commits keep it. Nothing happens where it is not there."""
        from huggingface_hub import CommitOperationDelete

        if self.size(name) is not None:
            self.repo.commit([CommitOperationDelete(path_in_repo=self.path(name), is_folder=False)], f"Remove {name[:12]}", None)
            self._listed.pop(name, None)


def _is_file(row: Any) -> bool:
    from huggingface_hub.hf_api import RepoFile

    return isinstance(row, RepoFile)


def _bytes(row: Any, where: str) -> int:
    """A file's bytes as the hub counts them, which is a stranger's word."""
    size = row.size if _is_file(row) else None
    if not isinstance(size, int) or size < 0:
        raise StorageError(f"the hub says a file has {str(size)[:40]!r} bytes", where=where, then="Is HF_ENDPOINT a hub?")
    return size


class HubLog(ObjectLog):
    """The events of a repository: those of one decision are one commit, all or none. A `store.EventLog`."""

    def __init__(self, repo: HubRepo) -> None:
        self._folder = HubShelf(repo, "events")
        super().__init__(self._folder)

    def recall(self) -> list[Event]:
        """As `store.EventLog.recall`; the folder is listed, as what is committed stands on the commit that was listed."""
        return self.read()

    def _write(self, events: Sequence[Event]) -> None:
        if events:
            self._check_room(events[-1])
            self._folder.add([as_object(event) for event in events])
            if len(known := self._known) == events[0].seq - 1:
                self._known = [*known, *events]


class HubBlobs(FetchedBlobs):
    """The objects of a repository. A `store.Blobs`."""

    def __init__(self, repo: HubRepo) -> None:
        self._repo = repo
        self._folder = HubShelf(repo, "blobs/sha256")
        super().__init__(self._folder)
        self._lock = threading.Lock()
        self._open = False
        self._there: dict[str, int] = {}
        self._waiting: dict[str, CommitOperationAdd] = {}
        self._bytes = 0

    def create(self) -> None:
        """Makes the repository, private, where it is not there."""
        self._repo.create()

    @contextmanager
    def together(self) -> Iterator[None]:
        """As `store.Blobs.together`: one commit, or one for each 64 MiB of small objects."""
        self._there, self._waiting, self._bytes, self._open = self._folder.sizes(), {}, 0, True
        try:
            yield
            self._settle()
        finally:
            # What was uploaded and not committed is not uploaded again by the next one.
            self._waiting, self._open = {}, False

    def put(self, source: Path | bytes, *, moved: Callable[[int], None] = silent) -> str:
        """As `store.Blobs.put`; a commit of its own unless it is `together` with others."""
        from huggingface_hub import CommitOperationAdd

        with opened(source) as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
            there = self._there.get(name) if self._open else self._folder.size(name)
            if there is not None:
                if there != size:
                    raise damaged(name, self._folder.where)
                return name
            file.seek(0)
            small = file.read() if size <= _SMALL else None
        add = CommitOperationAdd(path_in_repo=self._folder.path(name), path_or_fileobj=source if small is None else small)
        if add.upload_info.sha256.hex() != name:
            raise StorageError("changed while it was read", where=self._folder.where, then="Leave the file alone until it is stored.")
        if small is None:
            with using(self._folder.where), _quiet():
                self._repo.api.preupload_lfs_files(**self._repo.said, additions=[add], revision=self._repo.revision)
        moved(size)
        with self._lock:
            self._waiting[name] = add
            self._bytes += len(small or b"")
            if not self._open or self._bytes > _WAITING:
                self._settle()
        return name

    @again
    def _settle(self) -> None:
        """Commits what waits, on whatever others have committed: no object is in another's way."""
        if self._waiting:
            many = f"{len(self._waiting)} object{'s' * (len(self._waiting) != 1)}"
            self._repo.commit(list(self._waiting.values()), f"Add {many}", None)
            self._there |= {name: add.upload_info.size for name, add in self._waiting.items()}
            self._waiting, self._bytes = {}, 0

    def size(self, name: str) -> int:
        """As `store.Blobs.size`; one listing answers for all."""
        listed = self._folder.listed()
        return listed[name] if check_digest(name) in listed else super().size(name)

    def delete(self, name: str) -> None:
        """As `store.Blobs.delete`. The repository's older commits keep the bytes."""
        with self._lock:
            if self._waiting.pop(check_digest(name), None) is None:
                super().delete(name)
