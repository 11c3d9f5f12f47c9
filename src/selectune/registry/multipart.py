"""Uploads of large objects to S3 that go on where they were interrupted.

The store itself remembers the parts of an upload that was not finished. A part is taken over only where its ETag is the MD5 of our own
bytes, so neither a stranger's part nor one of other bytes gets in; where a store's ETags are something else, parts are sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any, BinaryIO

from selectune.errors import StorageError

__all__ = ["PART", "Outline", "outline", "upload"]

PART = 16 << 20
"""Bytes of a part; S3 takes at least 5 MiB, and at most 10,000 parts."""
_MOST_PARTS = 10_000
_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """A file as it was when its name was computed."""

    sha256: str
    size: int
    part: int
    """Bytes of each part but the last."""
    parts: tuple[str, ...]
    """MD5 of each part."""


def outline(file: BinaryIO, size: int) -> Outline:
    """Reads a file of about `size` bytes once, from its first byte."""
    part = max(PART, -(-size // _MOST_PARTS))
    whole, parts, total = hashlib.sha256(), [], 0
    while data := file.read(part):
        whole.update(data)
        parts.append(hashlib.md5(data, usedforsecurity=False).hexdigest())
        total += len(data)
    return Outline(sha256=whole.hexdigest(), size=total, part=part, parts=tuple(parts))


def upload(fs: Any, path: str, read: Callable[[int, int], bytes], about: Outline, moved: Callable[[int], None]) -> None:
    """Sends an object in parts and puts it in its place in one step; parts that an interrupted upload left are not sent again.

    `read(start, length)` gives the object's bytes. Raises StorageError where they are no longer those of `about`, and what `fs` raises.
    """
    bucket, key, _ = fs.split_path(path)
    place = {"Bucket": bucket, "Key": key}
    place["UploadId"] = _unfinished(fs, bucket, key) or fs.call_s3("create_multipart_upload", **place)["UploadId"]
    there = _parts(fs, place)

    over = Event()

    def send(number: int) -> dict[str, Any]:
        md5, start = about.parts[number - 1], (number - 1) * about.part
        length = min(about.part, about.size - start)
        etag, size = there.get(number, ("", -1))
        if over.is_set():
            return {}
        try:
            if etag.strip('"') != md5 or size != length:
                data = read(start, length)
                if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
                    raise StorageError("changed while it was read", where=path, then="Leave the file alone until it is stored.")
                etag = _send(fs, place, number, data)
            moved(length)
        except BaseException:
            over.set()
            raise
        return {"PartNumber": number, "ETag": etag}

    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            sent = list(threads.map(send, range(1, len(about.parts) + 1)))
        fs.call_s3("complete_multipart_upload", **place, MultipartUpload={"Parts": sent}, IfNoneMatch="*")
    except FileNotFoundError:
        # Somebody who sent the same object at the same time has finished the upload that both worked on.
        fs.info(path)


def _send(fs: Any, place: dict[str, str], number: int, data: bytes) -> str:
    return str(fs.call_s3("upload_part", **place, PartNumber=number, Body=data)["ETag"])


def _unfinished(fs: Any, bucket: str, key: str) -> str | None:
    """The newest upload of this object that was begun and not finished."""
    found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", [])
    mine = [one for one in found if one["Key"] == key]
    return str(max(mine, key=lambda one: one["Initiated"])["UploadId"]) if mine else None


def _parts(fs: Any, place: dict[str, str]) -> dict[int, tuple[str, int]]:
    """The parts that are there: number to ETag and bytes."""
    found: dict[int, tuple[str, int]] = {}
    marker = 0
    while True:
        answer = fs.call_s3("list_parts", **place, PartNumberMarker=marker)
        found.update({one["PartNumber"]: (one["ETag"], one["Size"]) for one in answer.get("Parts", [])})
        if not answer.get("IsTruncated"):
            return found
        marker = int(answer["NextPartNumberMarker"])
