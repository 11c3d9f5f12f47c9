"""As much of the Hugging Face Hub's HTTP API as its own client needs to publish and to read back, on a free port of this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import pytest


@dataclass
class Repo:
    """A repository: each commit holds all files. A dataset's is called ``datasets/owner/name``."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)


@dataclass
class Hub:
    """What the stub holds, and what it was asked."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    overtake: bool = False
    """Another writer commits just before the next commit."""
    page: int = 1000
    """Files of a listing that one answer holds."""
    ignored: set[str] = field(default_factory=set)
    """Paths that the repositories' ``.gitignore`` names."""
    ranges: bool = True
    """Whether a part of a file can be asked for."""
    cut: int | None = None
    """The byte of a file before which every connection breaks that would send it."""
    sent: int = 0
    """Bytes of files that were sent."""
    lock: Lock = field(default_factory=Lock)

    def commit(self, repo: Repo, files: dict[str, bytes], gone: Sequence[str] = ()) -> str:
        """Adds a commit with these files over those before, and without those that are gone."""
        whole = {**repo.commits[-1][1], **files} if repo.commits else files
        whole = {path: data for path, data in whole.items() if path not in gone}
        sha = hashlib.sha1(repr((len(repo.commits), sorted(whole.items()))).encode()).hexdigest()
        repo.commits.append((sha, whole))
        return sha


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's word
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_PUT(self) -> None:
        self._answer(self._body())

    def do_POST(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline().strip(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        with self.hub.lock:
            self.hub.asked.append(f"{self.command} {path}")
            status, headers, data = self._handled(path, body)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if "/resolve/" in path:
            data = self._kept(headers, data)
        self.wfile.write(data)

    def _kept(self, headers: dict[str, str], data: bytes) -> bytes:
        """What of a file's bytes gets through."""
        start = int(headers.get("Content-Range", "bytes 0-").split()[1].partition("-")[0])
        if self.hub.cut is not None and start + len(data) > self.hub.cut:
            self.close_connection = True
            data = data[: max(self.hub.cut - start, 0)]
        with self.hub.lock:
            self.hub.sent += len(data)
        return data

    def _handled(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() != match[1]:
                return 400, {}, b""
            self.hub.objects[match[1]] = body
            return 200, {}, b""
        if match := re.fullmatch(r"/(?:api/models/|api/(?=datasets/))?((?:datasets/)?[\w.-]+/[\w.-]+?)(?:\.git/info)?(/.*)?", path):
            repo = self.hub.repos.get(match[1])
            if repo is None:
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            return self._of(repo, match[1], match[2] or "", body)
        return 404, {}, b""

    def _create(self, said: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        name = f"{'datasets/' * (said.get('type') == 'dataset')}{said['organization']}/{said['name']}"
        if name in self.hub.repos:
            return _json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        repo = self.hub.repos[name] = Repo(private=said.get("visibility") == "private" or bool(said.get("private")))
        self.hub.commit(repo, {".gitattributes": b""})
        return _json({"url": f"{self.hub.url}/{name}", "id": name})

    def _of(self, repo: Repo, name: str, rest: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        sha, files = repo.commits[-1]
        commits = {"main": repo.commits[-1], **{commit[0]: commit for commit in repo.commits}}
        if match := re.fullmatch(r"(?:/revision/(.+))?", rest):
            if (match[1] or "main") not in commits:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            sha, files = commits[match[1] or "main"]
            return _json({"id": name, "sha": sha, "private": repo.private, "siblings": [{"rfilename": one} for one in files]})
        if rest == "/preupload/main":
            rows = json.loads(body)["files"]
            kinds = ["lfs" if _is_large(one) else "regular" for one in rows]
            return _json(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": kind, "shouldIgnore": one["path"] in self.hub.ignored}
                        for one, kind in zip(rows, kinds, strict=True)
                    ]
                }
            )
        if rest == "/lfs/objects/batch":
            return _json({"transfer": "basic", "objects": [self._batched(one) for one in json.loads(body)["objects"]]})
        if rest == "/commit/main":
            return self._committed(repo, name, [json.loads(line) for line in body.splitlines()])
        if match := re.fullmatch(r"/(resolve|tree|paths-info)/([^/]+)(?:/(.+))?", rest):
            if match[2] not in commits:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            sha, files = commits[match[2]]
            if match[1] == "tree":
                return self._tree(files, match[3])
            if match[1] == "paths-info":
                said = parse_qs(body.decode())
                return _json([self._info(path, files[path], "true" in said.get("expand", [])) for path in said["paths"] if path in files])
            return self._resolved(sha, files, match[3])
        return 404, {}, b""

    def _resolved(self, sha: str, files: dict[str, bytes], path: str) -> tuple[int, dict[str, str], bytes]:
        if path not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}, b""
        data = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if self.hub.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            start, end = int(match[1]), min(int(match[2]), len(data) - 1)
            return 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1]
        return 200, headers, data

    def _tree(self, files: dict[str, bytes], folder: str) -> tuple[int, dict[str, str], bytes]:
        """One page of a folder: its files, and the folders in it."""
        inside = sorted({"/".join(path.split("/")[: folder.count("/") + 2]) for path in files if path.startswith(f"{folder}/")})
        if not inside:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        start = int(self.query.get("cursor", ["0"])[0])
        status, headers, data = _json([self._info(path, files.get(path)) for path in inside[start : start + self.hub.page]])
        if start + self.hub.page < len(inside):
            place = urlsplit(self.path).path
            headers["Link"] = f'<{self.hub.url}{place}?{urlencode({"cursor": start + self.hub.page})}>; rel="next"'
        return status, headers, data

    def _info(self, path: str, data: bytes | None, expand: bool = False) -> dict[str, Any]:
        """A file or a folder as ``tree`` and ``paths-info`` tell of it."""
        if data is None:
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
        told = {"type": "file", "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), "size": len(data), "path": path}
        if (oid := hashlib.sha256(data).hexdigest()) in self.hub.objects:
            told["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        return told | ({"lastCommit": {"id": "0" * 40, "title": "x", "date": "2026-01-02T03:04:05.000Z"}} if expand else {})

    def _batched(self, said: dict[str, Any]) -> dict[str, Any]:
        kept = {"oid": said["oid"], "size": said["size"]}
        return kept if said["oid"] in self.hub.objects else kept | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{said['oid']}"}}}

    def _committed(self, repo: Repo, name: str, rows: list[dict[str, Any]]) -> tuple[int, dict[str, str], bytes]:
        if self.hub.overtake:
            self.hub.overtake = False
            self.hub.commit(repo, {"other.txt": b"first"})
        header = rows[0]["value"]
        if header.get("parentCommit") not in (None, repo.commits[-1][0]):
            return _json({"error": "the parent is not the head"}, 412)
        files: dict[str, bytes] = {}
        gone: list[str] = []
        for row in rows[1:]:
            value = row["value"]
            if row["key"] == "deletedFile":
                gone.append(value["path"])
                continue
            files[value["path"]] = base64.b64decode(value["content"]) if row["key"] == "file" else self.hub.objects[value["oid"]]
        sha = self.hub.commit(repo, files, gone)
        return _json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})


def _is_large(said: dict[str, Any]) -> bool:
    """Whether the hub wants a file as an LFS object: by the names that a repository's attributes list, and whatever is no text."""
    named = said["path"].endswith((".safetensors", ".delta"))
    return named or said["size"] > 10 << 20 or b"\0" in base64.b64decode(said["sample"])


def _json(value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def reached() -> Iterator[Hub]:
    """A hub that huggingface_hub's client, offline in tests else, may talk to, and to no other, until the block ends."""
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        # Xet is another protocol, which the stub does not speak.
        places = {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}"}
        for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, **places}.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        yield hub


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
