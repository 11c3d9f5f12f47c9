"""Pictures from strangers: caps read from the header, damage refused, and what two sets share."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from transformers.image_utils import load_image

import records_fixtures as made
from selectune.errors import DataError
from selectune.records import Leak, Message, Picture, Record, Records, leakage
from selectune.records.picture import MAX_PIXELS


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format=kind, **options)
        return file.getvalue()


def noise(size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_decode_as_transformers_loads_them(kind: str, tmp_path: Path) -> None:
    data = saved(noise(), kind)
    (tmp_path / "picture").write_bytes(data)
    found = Picture(data=data)
    assert found.open().tobytes() == load_image(Image.open(io.BytesIO(data))).tobytes()
    assert found.size == found.open().size == (64, 48)
    assert found.data_url().startswith(f"data:image/{kind.lower()};base64,")
    assert found.digest == Picture(path=tmp_path / "picture").digest


def test_a_turned_photo_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = Picture(data=saved(noise(), "JPEG", exif=exif))
    assert found.size == found.open().size == (48, 64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_truncated_picture_is_refused_whatever_pillow_was_told(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = saved(noise(), kind)
    with pytest.raises(DataError, match=r'set.json: record "3": picture "x.png" (cannot be decoded|is empty)'):
        Picture(data=data[: int(len(data) * share)], name="x.png", where='set.json: record "3"').open()
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(MAX_PIXELS // 8000 + 1, 8000), (40_000, 2), (10_000, 10_000), (60_000, 60_000)])
def test_a_picture_over_the_caps_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"over the limit of 64000000 pixels|is too large"):
        Picture(data=claimed(*size)).check()


def test_other_formats_many_frames_and_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = saved(noise(), "GIF", save_all=True, append_images=[noise()])
    for picture, message in (
        (Picture(data=saved(noise(), "TIFF")), "cannot be decoded as one of PNG, JPEG, WEBP, GIF, BMP"),
        (Picture(data=saved(noise(), "PPM")), "cannot be decoded as one of"),
        (Picture(data=frames), "has 2 frames"),
        (Picture(data=b""), "is empty"),
        (Picture(), "neither bytes nor a path"),
        (Picture(path=tmp_path / "gone.png", name="gone.png"), 'picture "gone.png" cannot be read .No such file'),
    ):
        with pytest.raises(DataError, match=message):
            picture.open()
    monkeypatch.setattr("selectune.records.picture.MAX_BYTES", 10)
    (tmp_path / "big.png").write_bytes(made.png())
    with pytest.raises(DataError, match="over the limit of 10"):
        Picture(path=tmp_path / "big.png").check()


def record(name: str, text: str, *pictures: Picture) -> Record:
    return Record(id=name, messages=(Message(role="user", parts=(*pictures, text)), Message(role="assistant", parts=("yes",))))


def records(*items: Record) -> Records:
    return Records(items=items, name="r")


def test_leaks_are_found_by_bytes_by_pixels_and_by_text() -> None:
    shown = noise()
    as_png, as_bmp, other = Picture(data=saved(shown, "PNG")), Picture(data=saved(shown, "BMP")), Picture(data=saved(noise(), "PNG"))
    red, blue = Picture(data=made.png(), name="a"), Picture(data=made.png((0, 0, 255)))
    train = records(record("t1", "What?", as_png), record("t2", "What?", red), record("t3", "And?", red), record("t4", "What is  LOVE?"))
    test = records(
        record("s1", "What?", as_bmp),
        record("s2", "What?", Picture(data=made.png(), name="b")),
        record("s3", "what is love?"),
        record("s4", "What?", other, blue),
    )
    leaks = leakage(train, test)
    assert [(leak.kind, leak.train, leak.test) for leak in leaks] == [
        ("bytes", ("t2", "t3"), ("s2",)),
        ("pixels", ("t1",), ("s1",)),
        ("text", ("t4",), ("s3",)),
    ]
    assert list(leaks[0].pairs) == [("t2", "s2"), ("t3", "s2")]
    assert isinstance(leaks[0], Leak)


def test_the_same_question_about_other_pictures_is_no_leak() -> None:
    one, two = (Picture(data=saved(noise(), "PNG")) for _ in range(2))
    assert leakage(records(record("a", "What?", one)), records(record("b", "What?", two))) == []
    assert leakage(records(record("a", "What?")), records(record("b", "Why?"))) == []
