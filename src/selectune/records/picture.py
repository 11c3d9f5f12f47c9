"""A picture that a stranger made: its bytes, what its header says, and its pixels, with a bound on each.

Nothing is decoded before the header was read and found small enough, a picture that ends too early is refused, and none is ever fetched
from a network.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

from selectune.errors import DataError

FORMATS: dict[str, str] = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
"""Pillow's names of the formats that are read, with their media types."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
MAX_BYTES = 64 << 20
"""Most bytes of one encoded picture."""
MAX_PIXELS = 64_000_000
"""Most pixels of one picture; below the count at which Pillow itself begins to warn."""
MAX_SIDE = 32_768
"""Most pixels on one side."""

# What Pillow is known to raise on damaged or hostile bytes: its own errors are OSErrors and SyntaxErrors, the rest leak out of parsers.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
)
_PHOTO_WITH_PREVIEWS = "MPO"
_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]+)?(;[a-z0-9=_-]+)*;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_AGAIN = "Replace the file with an intact one, or take the record out."


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One encoded picture, in memory (`data`) or on disk (`path`)."""

    data: bytes | None = None
    path: Path | None = None
    name: str = "a picture"
    """What people call it: the path as the source writes it, or its place in the record."""
    where: str | None = field(default=None, compare=False)
    """The source and the record, for messages."""

    @cached_property
    def digest(self) -> str:
        """Plain sha256 of the encoded bytes, 64 hex digits."""
        return hashlib.sha256(self.encoded()).hexdigest()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height as `open` returns them, from the header alone. Raises DataError as `check` does."""
        with self._header() as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)

    def encoded(self) -> bytes:
        """The bytes as they came. Raises DataError where the file cannot be read or is over `MAX_BYTES`."""
        if self.data is not None:
            return self.data
        if self.path is None:
            raise self._error("there are neither bytes nor a path", "Give one of them.")
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise self._error(f"has {self.path.stat().st_size} bytes, over the limit of {MAX_BYTES}", "Save it smaller.")
            return self.path.read_bytes()
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror or error})", "Put the file there, or correct the path.") from error

    def check(self) -> None:
        """Raises DataError unless the header is of a known format and within the caps; decodes no pixel."""
        with self._header():
            pass

    def open(self) -> Image.Image:
        """The decoded picture, in RGB, turned as its EXIF says (as transformers' `load_image` does).

        Raises DataError for an unknown format, damaged or missing bytes, more than one frame, or a size over the caps, which is read from
        the header first.
        """
        with self._header() as image, _strictly():
            try:
                image.load()
                return ImageOps.exif_transpose(image).convert("RGB")
            except _BROKEN as error:
                raise self._error(f"cannot be decoded ({error})", _AGAIN) from error

    def pixels_digest(self) -> str:
        """sha256 over size and decoded pixels: equal for one picture saved in two lossless formats."""
        image = self.open()
        return hashlib.sha256(f"{image.width}x{image.height}\0".encode() + image.tobytes()).hexdigest()

    def data_url(self) -> str:
        """The encoded bytes as a `data:` URL for a page."""
        with self._header() as image:
            kind = FORMATS.get(image.format or "", "image/jpeg")
        return f"data:{kind};base64,{base64.b64encode(self.encoded()).decode()}"

    @contextlib.contextmanager
    def _header(self) -> Iterator[Image.Image]:
        data = self.encoded()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(data), formats=list(FORMATS))
                frames = 1 if image.format == _PHOTO_WITH_PREVIEWS else getattr(image, "n_frames", 1)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise self._error(f"is too large ({error})", "Save it smaller.") from error
        except _BROKEN as error:
            what = "is empty" if not data else f"cannot be decoded as one of {', '.join(FORMATS)}"
            raise self._error(what, _AGAIN) from error
        with image:
            if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
                over = f"is {image.width} x {image.height}, over the limit of {MAX_PIXELS} pixels or {MAX_SIDE} on a side"
                raise self._error(over, "Save it smaller.")
            if frames != 1:
                raise self._error(f"has {frames} frames", "Save the one that is meant as a picture of its own.")
            yield image

    def _error(self, what: str, then: str) -> DataError:
        return DataError(f'picture "{self.name}" {what}', where=self.where, then=then)


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Truncated files are errors here, even where another library told Pillow to fill them up with grey."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def picture(value: object, root: Path, where: str, number: int = 1) -> Picture:
    """A checked picture from what a column holds: bytes, a path, a `data:` URL, `{bytes, path}`, or a Pillow image.

    A path starts at `root` and must stay inside it, symbolic links followed; a web address is refused. `number` counts pictures within the
    record. Raises DataError as `Picture.check` does, and where `value` is none of these.
    """
    found = _found(value, root, where, f"{number}")
    found.check()
    return found


def _found(value: object, root: Path, where: str, number: str) -> Picture:
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if data is not None:
            return _found(data, root, where, path if isinstance(path, str) and path else number)
        if path is not None:
            return _found(path, root, where, number)
    if isinstance(value, bytes | bytearray):
        if len(value) > MAX_BYTES:
            raise DataError(
                f'picture "{number}" has {len(value)} bytes, over the limit of {MAX_BYTES}', where=where, then="Save it smaller."
            )
        return Picture(data=bytes(value), name=number, where=where)
    if isinstance(value, Image.Image):
        return Picture(data=_png(value), name=number, where=where)
    if isinstance(value, Path):
        return _on_disk(str(value), root, where)
    if isinstance(value, str):
        if value[:5].lower() == "data:":
            return Picture(data=_inline(value, where, number), name=number, where=where)
        return _on_disk(value, root, where)
    kind = "nothing" if value is None else f"a {type(value).__name__}"
    raise DataError(f'picture "{number}" is {kind}', where=where, then="Give a path, a data: URL, or bytes and path.")


def _png(image: Image.Image) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format="PNG")
        return file.getvalue()


def _inline(url: str, where: str, number: str) -> bytes:
    head = _DATA_URL.match(url[:256])
    if head is None:
        raise DataError(f'picture "{number}" is no base64 data: URL ("{url[:40]}…")', where=where, then="Write data:image/png;base64,…")
    if len(url) > MAX_BYTES * 4 // 3 + 256:
        raise DataError(f'picture "{number}" is over the limit of {MAX_BYTES} bytes', where=where, then="Save it smaller.")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f'picture "{number}" is no base64 ({error})', where=where, then="Encode the file again.") from error


def _on_disk(text: str, root: Path, where: str) -> Picture:
    if text[:7].lower() == "file://":
        text = text[7:]
    if _ADDRESS.match(text):
        raise DataError(
            f'picture "{text[:200]}" is a web address, and nothing is ever fetched',
            where=where,
            then="Download it and give the file's path.",
        )
    then = f"Put the file under {root}, or name the folder that paths start at with images: FOLDER."
    try:
        base = root.resolve()
        path = (base / text).resolve()
        inside = path.is_relative_to(base)
        there = inside and path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f'picture "{text[:200]}" is no path ({error})', where=where, then=then) from error
    if not inside:
        raise DataError(f'picture "{text[:200]}" lies outside {base}', where=where, then=then)
    if not there:
        raise DataError(f'picture "{text[:200]}" is missing ({path} is no file)', where=where, then=then)
    return Picture(path=path, name=text, where=where)
