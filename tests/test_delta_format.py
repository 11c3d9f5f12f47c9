"""The delta as a file: deterministic, whole or not there, and strict towards strangers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from delta_fixtures import model_of, quick_disk, step_of, tied
from selectune.delta import Delta, Part
from selectune.delta.encoding import PLANES, RAW, pack, unpack
from selectune.delta.files import flushed_digest
from selectune.errors import DeltaError, StorageError
from selectune.hashing import canonical, file_digest


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="delta")
def _delta() -> Delta:
    _, delta = step_of(model_of(tied()), {"q.weight": ((0, 0, 4, 1),), "o.weight": None}, 0.01)
    return replace(delta, meta={"skill": "counting", "step": 3})


@given(st.binary(max_size=600), st.sampled_from([1, 2, 4, 8]))
def test_packing_is_lossless_and_never_larger(raw: bytes, itemsize: int) -> None:
    bits = np.frombuffer(raw[: len(raw) // itemsize * itemsize], dtype=np.uint8)
    encoding, data = pack(bits, itemsize)
    assert len(data) <= bits.size
    assert unpack(memoryview(data), encoding, bits.size, itemsize).tobytes() == bits.tobytes()


@given(st.binary(max_size=600), st.sampled_from([1, 2, 4, 8]), st.sampled_from([8, 64, 1 << 20]))
def test_two_sides_pack_as_their_xor_does_and_the_hasher_hears_of_it_once(raw: bytes, itemsize: int, piece: int) -> None:
    half = len(raw) // (2 * itemsize) * itemsize
    old, new = (np.frombuffer(raw[start : start + half], dtype=np.uint8) for start in (0, half))
    xor = np.bitwise_xor(old, new)
    hasher = hashlib.sha256()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selectune.delta.encoding._PIECE", piece)
        name, data = pack(new, itemsize, old=old, hasher=hasher)
        assert (name, unpack(memoryview(data), name, half, itemsize).tobytes()) == (name, xor.tobytes())
    assert (name, data) == pack(xor, itemsize)
    assert hasher.hexdigest() == hashlib.sha256(xor.tobytes()).hexdigest()


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_the_frame_holds_the_planes_one_behind_the_other(itemsize: int) -> None:
    bits = np.repeat(np.arange(64, dtype=np.uint8), 64)
    name, data = pack(bits, itemsize)
    assert name == PLANES
    assert zstandard.decompress(data) == np.ascontiguousarray(bits.reshape(-1, itemsize).T).tobytes()


def test_what_packs_at_all_needs_no_second_copy_of_the_tensor() -> None:
    old, new = np.zeros(8 << 20, dtype=np.uint8), np.ones(8 << 20, dtype=np.uint8)
    tracemalloc.start()
    try:
        Part.of("x", None, (4 << 20,), new, old=old)
        assert tracemalloc.get_traced_memory()[1] < old.nbytes / 2
    finally:
        tracemalloc.stop()


def test_a_small_change_packs_to_a_fraction() -> None:
    random = np.random.default_rng(0)
    old = random.normal(0, 0.02, 100_000).astype(np.float32)
    new = (old + random.normal(0, 1e-6, old.size)).astype(np.float32)
    encoding, data = pack(np.bitwise_xor(old.view(np.uint8), new.view(np.uint8)), 4)
    assert encoding == PLANES
    assert len(data) < 0.5 * old.nbytes


@pytest.mark.parametrize(
    ("data", "encoding", "words"),
    [
        (b"123", RAW, "3 bytes where its shape needs 8"),
        (zstandard.compress(bytes(1 << 20)), PLANES, "unpacks to 1048576 bytes where its shape needs 8"),
        (b"not zstandard", PLANES, "does not unpack"),
        (zstandard.compress(bytes(8)) + b"more", PLANES, "does not unpack"),
        (zstandard.compress(bytes(range(8)))[:-1], PLANES, "does not unpack"),
    ],
)
def test_packed_data_that_lie_are_refused_before_memory_is_reserved(data: bytes, encoding: str, words: str) -> None:
    with pytest.raises(DeltaError, match=words):
        unpack(memoryview(data), encoding, 8, 4)


def test_saving_and_loading_keeps_everything_and_the_same_delta_gives_the_same_bytes(delta: Delta, tmp_path: Path) -> None:
    sha256 = delta.save(tmp_path / "one.delta")
    assert sha256 == file_digest(tmp_path / "one.delta") == delta.save(tmp_path / "two.delta")
    loaded = Delta.load(tmp_path / "one.delta")
    assert loaded == delta
    assert loaded.digest == delta.digest
    assert loaded.save(tmp_path / "three.delta") == sha256


def test_the_file_has_one_metadata_key_with_canonical_json_and_is_plain_safetensors(delta: Delta, tmp_path: Path) -> None:
    delta.save(tmp_path / "x.delta")
    with safe_open(tmp_path / "x.delta", framework="np") as file:
        metadata = file.metadata()
        assert list(file.keys()) == ["000000", "000001"]
    assert list(metadata) == ["selectune"]
    assert canonical(json.loads(metadata["selectune"])).decode() == metadata["selectune"]


def test_the_file_is_to_the_byte_what_safetensors_writes(delta: Delta) -> None:
    odd = replace(delta, meta={"skill": 'zählen \u2028 \x7f "quoted" \\ back', "notes": ["tab\t", "bell\x07", "\U0001f600"]})
    for one in (delta, odd, replace(odd, parts=(), tensors={})):
        payloads = {f"{number:06d}": np.frombuffer(part.data, dtype=np.uint8) for number, part in enumerate(one.parts)}
        with tempfile.TemporaryDirectory() as folder:
            digest = one.save(Path(folder) / "x.delta")
            assert (Path(folder) / "x.delta").read_bytes() == safetensors.numpy.save(payloads, {"selectune": one.header().decode()})
            assert digest == file_digest(Path(folder) / "x.delta")


def test_the_digest_ignores_how_the_bits_are_packed_and_nothing_else(delta: Delta) -> None:
    part = delta.parts[0]
    bits = part.bits(4)
    other = PLANES if part.encoding == RAW else RAW
    data = zstandard.compress(np.ascontiguousarray(bits.reshape(-1, 4).T).tobytes()) if other == PLANES else bits.tobytes()
    repacked = replace(delta, parts=(replace(part, encoding=other, data=memoryview(data)), *delta.parts[1:]))
    assert repacked.digest == delta.digest
    assert repacked.parts[0].bits(4).tobytes() == bits.tobytes()
    for changed in ({"parent": "0" * 64}, {"meta": {}}, {"patterns": ("x",)}, {"parts": delta.parts[:1]}):
        assert replace(delta, **changed).digest != delta.digest


def test_counts_say_what_could_move_and_what_did(delta: Delta) -> None:
    assert delta.elements == 4 * 6 + 8 * 6
    assert 0 < delta.moved() <= delta.elements
    assert replace(delta, parts=(replace(delta.parts[0]),)).elements == delta.parts[0].elements


def _rebuilt(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], *, tail: bytes = b"", text: str | None = None) -> Path:
    """The file with its outer header and its inner one changed."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + size])
    inner = json.loads(outer["__metadata__"]["selectune"])
    change(outer, inner)
    if "__metadata__" in outer and "selectune" in outer["__metadata__"]:
        outer["__metadata__"]["selectune"] = text or canonical(inner).decode()
    header = json.dumps(outer).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :] + tail)
    return path


def _set(where: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Sets `where`, a dotted path from "inner" or "outer"."""

    def change(outer: dict[str, Any], inner: dict[str, Any]) -> None:
        first, *path = where.split(".")
        at: Any = {"outer": outer, "inner": inner}[first]
        for key in path[:-1]:
            at = at[int(key)] if key.isdigit() and isinstance(at, list) else at[key]
        at[int(path[-1]) if isinstance(at, list) else path[-1]] = value

    return change


HOSTILE: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], None], str]] = [
    ("no metadata", lambda outer, _: outer.pop("__metadata__"), "exactly one key"),
    ("a second key", lambda outer, _: outer["__metadata__"].update(format="pt"), "exactly one key"),
    ("another format", _set("inner.format", 3), "delta format '3', this version reads 1 and 2"),
    ("an unknown field", _set("inner.delta.extra", 1), "delta.extra: Extra inputs"),
    ("a bad id", _set("inner.delta.parent", "x" * 64), "delta.parent"),
    (
        "a path as a name",
        lambda _, inner: inner["delta"]["tensors"].update({"../../x": inner["delta"]["tensors"].pop("q.weight")}),
        "tensors",
    ),
    ("a tag as a name", _set("inner.delta.parts.0.parameter", "<img onerror=x>"), "parts.0.parameter"),
    ("an unknown dtype", _set("inner.delta.tensors.1.dtype", "F31"), "unknown dtype 'F31'"),
    ("four bits a number", _set("inner.delta.tensors.1.dtype", "F4"), "unknown dtype 'F4'"),
    ("six bits a number", _set("inner.delta.tensors.1.dtype", "F6_E2M3"), "unknown dtype 'F6_E2M3'"),
    ("a huge shape", _set("inner.delta.tensors.1.shape", [1 << 40, 1 << 40]), "larger than any tensor"),
    ("a negative shape", _set("inner.delta.tensors.1.shape", [-1, 6]), "greater than or equal to 0"),
    ("a slice outside", _set("inner.delta.parts.1.slice", [[0, 0, 99, 1]]), "does not lie in the shape"),
    ("a slice on no axis", _set("inner.delta.parts.1.slice", [[2, 0, 1, 1]]), "does not lie in the shape"),
    ("a step of nothing", _set("inner.delta.parts.1.slice", [[0, 0, 4, 0]]), "does not lie in the shape"),
    ("ranges that overlap", _set("inner.delta.parts.1.slice", [[0, 0, 4, 1], [0, 3, 5, 1]]), "two ranges of a slice overlap"),
    ("a part of another shape", _set("inner.delta.parts.1.shape", [5, 6]), "is not its slice's"),
    ("a part of no tensor", _set("inner.delta.parts.1.parameter", "other"), "do not belong together"),
    ("an unknown encoding", _set("inner.encodings.0", "pickle"), "encodings.0"),
    ("one encoding too few", lambda _, inner: inner["encodings"].pop(), "2 packed parts where the header lists 1"),
    ("a payload with a name", lambda outer, _: outer.update({"../x": outer.pop("000001")}), "names of their own"),
    ("a payload of floats", _set("outer.000001.dtype", "F32"), "not a row of bytes"),
    ("payloads that overlap", _set("outer.000001.data_offsets", [0, 10]), "lies at 0-10"),
]


@pytest.mark.parametrize(("change", "words"), [pytest.param(change, words, id=name) for name, change, words in HOSTILE])
def test_a_header_that_save_would_not_write_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], None], words: str, delta: Delta, tmp_path: Path
) -> None:
    path = tmp_path / "x.delta"
    delta.save(path)

    def adapted(outer: dict[str, Any], inner: dict[str, Any]) -> None:
        # The table speaks of the second tensor by number.
        names = sorted(inner["delta"]["tensors"])
        inner["delta"]["tensors"] = _Numbered({name: inner["delta"]["tensors"][name] for name in names})
        change(outer, inner)
        inner["delta"]["tensors"] = dict(inner["delta"]["tensors"])

    _rebuilt(path, adapted)
    with pytest.raises(DeltaError, match=words) as caught:
        Delta.load(path)
    assert str(path) in str(caught.value)
    assert "fetch it again" in str(caught.value)


class _Numbered(dict[str, Any]):
    """A mapping whose second value is also found as "1"."""

    def __missing__(self, key: str) -> Any:
        return list(self.values())[int(key)]


def test_bytes_behind_the_end_are_refused(delta: Delta, tmp_path: Path) -> None:
    delta.save(tmp_path / "x.delta")
    with pytest.raises(DeltaError, match="bytes of parts where the header lists"):
        Delta.load(_rebuilt(tmp_path / "x.delta", lambda *_: None, tail=b"x"))


def test_a_key_twice_and_loose_json_are_refused(delta: Delta, tmp_path: Path) -> None:
    delta.save(tmp_path / "x.delta")
    text = delta.header().decode()
    with pytest.raises(DeltaError, match="appears twice"):
        Delta.load(_rebuilt(tmp_path / "x.delta", lambda *_: None, text=text.replace('"format":1', '"format":1,"format":1')))
    with pytest.raises(DeltaError, match="not canonical"):
        Delta.load(_rebuilt(tmp_path / "x.delta", lambda *_: None, text=text + " "))
    data = (tmp_path / "x.delta").read_bytes()
    size = int.from_bytes(data[:8], "little")
    twice = data[8 : 8 + size].replace(b'"000000"', b'"000001"')
    with pytest.raises(DeltaError, match="appears twice"):
        Delta.from_bytes(size.to_bytes(8, "little") + twice + data[8 + size :])


@pytest.mark.parametrize(
    "data", [b"", b"12345678", (1 << 60).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]", b"\x80\x04pickle.", b"PK\x03\x04" * 9]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(DeltaError):
        Delta.from_bytes(data)


def test_two_parts_that_share_elements_are_refused(delta: Delta, tmp_path: Path) -> None:
    doubled = replace(delta, parts=(*delta.parts, delta.parts[0]))
    doubled.save(tmp_path / "x.delta")
    with pytest.raises(DeltaError, match="two parts overlap"):
        Delta.load(tmp_path / "x.delta")


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_refused_or_harmless(position: float, bit: int) -> None:
    data = _small_file()
    at = int(position * len(data))
    damaged = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
    try:
        delta = Delta.from_bytes(damaged)
        for part in delta.parts:
            part.bits(delta.itemsize(part))
    except DeltaError:
        return
    # What still reads is another delta by its digest (a letter of its patterns or meta), or differs in the header's padding alone.
    assert delta.digest != Delta.from_bytes(data).digest or delta == Delta.from_bytes(data)


_CACHE: list[bytes] = []


def _small_file() -> bytes:
    if not _CACHE:
        _, delta = step_of(model_of(tied()), {"q.bias": None}, 0.01)
        with tempfile.TemporaryDirectory() as folder:
            delta.save(Path(folder) / "x")
            _CACHE.append((Path(folder) / "x").read_bytes())
    return _CACHE[0]


def test_a_missing_file_and_a_missing_folder_are_told(delta: Delta, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        Delta.load(tmp_path / "none.delta")
    with pytest.raises(StorageError, match="cannot be written"):
        delta.save(tmp_path / "none" / "x.delta")


def _limited(path: Path) -> str:
    return f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from selectune.delta import Delta
from selectune.errors import StorageError
delta = Delta.load({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    delta.save({str(path)!r})
except StorageError as error:
    print(error)
    sys.exit(7)
"""


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(delta: Delta, tmp_path: Path) -> None:
    path = tmp_path / "x.delta"
    sha256 = delta.save(path)
    done = subprocess.run([sys.executable, "-c", _limited(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "cannot be written" in done.stdout
    assert file_digest(path) == sha256
    assert os.listdir(tmp_path) == ["x.delta"]


def test_a_large_file_is_hashed_while_it_is_flushed_and_a_disk_that_fails_then_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(2 << 20))
    flushed: list[str] = []
    monkeypatch.setattr("os.fsync", lambda file: flushed.append(os.readlink(f"/proc/self/fd/{file}")))
    assert flushed_digest(path) == hashlib.sha256(bytes(2 << 20)).hexdigest()
    assert flushed == [str(path)]

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        flushed_digest(path)


def test_a_saved_file_has_the_usual_mode(delta: Delta, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    delta.save(tmp_path / "x.delta")
    assert (tmp_path / "x.delta").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_part_of_nothing_is_a_part() -> None:
    part = Part.of("x", None, (0, 3), np.zeros(0, dtype=np.uint8))
    assert part.bits(4).size == 0
