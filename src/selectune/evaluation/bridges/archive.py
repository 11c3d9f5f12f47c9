"""A zip file that a stranger packed: its names, its sizes, and one member at a time in memory. Nothing is ever unpacked to disk."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from selectune.errors import DataError

MAX_MEMBERS = 200_000
MAX_MEMBER = 64 << 20
"""Most bytes of one member, unpacked."""
MAX_TOTAL = 4 << 30
"""Most bytes of all that is read, unpacked."""

ZSTANDARD = 93
"""The compression method of zip's specification 6.3.8, which Python 3.11 does not know and Inspect writes."""
_LOCAL = struct.Struct("<4s22xHH")
_AGAIN = "Take the file from its source again, or evaluate again."


class Archive:
    """The members of an open zip file by name. Raises DataError for what no honest writer makes.

    That is: a name twice, an absolute path, a backslash, ``..``, a link, a password, more than `MAX_MEMBERS`. Sizes that the directory
    tells are not believed: a member is unpacked up to `MAX_MEMBER` and no further.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file, self._where, self._read = file, where, 0
        try:
            self._zip = zipfile.ZipFile(file)
            self._members = self._zip.infolist()
        except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
            raise DataError(f"not a whole zip file ({error})", where=where, then=_AGAIN) from error
        if len(self._members) > MAX_MEMBERS:
            raise self._error(f"has {len(self._members)} members, over the limit of {MAX_MEMBERS}")
        seen: set[str] = set()
        for member in self._members:
            self._check(member, seen)

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, in their order."""
        return tuple(member.filename for member in self._members)

    def read(self, name: str) -> bytes:
        """A member, unpacked. Raises DataError for one that is not there, damaged, or over the limits."""
        member = next((one for one in self._members if one.filename == name), None)
        if member is None:
            raise self._error(f'has no member "{name}"')
        try:
            data = self._zstandard(member) if member.compress_type == ZSTANDARD else self._known(member)
        except (zipfile.BadZipFile, zstandard.ZstdError, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            raise self._error(f'member "{name}" cannot be unpacked ({error})') from error
        self._read += len(data)
        if len(data) > MAX_MEMBER or self._read > MAX_TOTAL:
            raise self._error(f'unpacks to more than the limit of {MAX_MEMBER} bytes at "{name}", or of {MAX_TOTAL} in all')
        if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
            raise self._error(f'member "{name}" is damaged')
        return data

    def _known(self, member: zipfile.ZipInfo) -> bytes:
        with self._zip.open(member) as stream:
            return stream.read(MAX_MEMBER + 1)

    def _zstandard(self, member: zipfile.ZipInfo) -> bytes:
        self._file.seek(member.header_offset)
        head = self._file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("no local header")
        _, name, extra = _LOCAL.unpack(head)
        self._file.seek(name + extra, 1)
        packed = self._file.read(min(member.compress_size, MAX_TOTAL))
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed) as stream:
            return stream.read(MAX_MEMBER + 1)

    def _check(self, member: zipfile.ZipInfo, seen: set[str]) -> None:
        name = member.filename
        # `orig_filename` is what the file says; zipfile cuts a name at its first zero byte.
        odd = name != member.orig_filename or "\\" in name or name.startswith("/") or ":" in name.split("/")[0]
        if odd or any(part in ("", "..", ".") for part in name.removesuffix("/").split("/")):
            raise self._error(f'has a member named "{member.orig_filename[:120]}"')
        if name in seen:
            raise self._error(f'has two members named "{name}"')
        if member.flag_bits & 1 or (member.external_attr >> 16) & 0o170000 == 0o120000:
            raise self._error(f'member "{name}" is a link or needs a password')
        seen.add(name)

    def _error(self, what: str) -> DataError:
        return DataError(what, where=self._where, then=_AGAIN)


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive at `path`. Raises DataError where there is none."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), then="Correct the path.") from error
    with file:
        yield Archive(file, str(path))
