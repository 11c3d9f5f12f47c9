"""Deltas (T3, T4): every field of the header, slices that cannot be counted, bombs, payloads that lie, and other parents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import zstandard
from cases import Case, Room

from delta_fixtures import model_of, step_of, tied
from selectune.delta import Delta, apply, revert
from selectune.delta.encoding import PLANES
from selectune.errors import DeltaError, WrongParent
from selectune.hashing import canonical

Change = Callable[[dict[str, Any]], object]


def rebuilt(data: bytes, change: Change, outer_change: Change = lambda _: None, *, payload: bytes | None = None) -> bytes:
    """A delta's file with its header changed."""
    size = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + size])
    inner = json.loads(outer["__metadata__"]["selectune"])
    change(inner)
    outer["__metadata__"]["selectune"] = canonical(inner).decode()
    outer_change(outer)
    text = json.dumps(outer).encode()
    return len(text).to_bytes(8, "little") + text + (data[8 + size :] if payload is None else payload)


def written(room: Room, data: bytes) -> Path:
    path = room.path / "x.delta"
    path.write_bytes(data)
    return path


def _set(*path: Any, to: Any) -> Change:
    def change(inner: dict[str, Any]) -> None:
        at: Any = inner
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return change


_T = ("delta", "tensors", "o.weight")
_P = ("delta", "parts", 0)
FIELDS: dict[str, tuple[Change, str]] = {
    "parent of text": (_set("delta", "parent", to="x" * 64), "delta.parent"),
    "parent of 63 digits": (_set("delta", "parent", to="0" * 63), "delta.parent"),
    "parent of capitals": (_set("delta", "parent", to="A" * 64), "delta.parent"),
    "child of a number": (_set("delta", "child", to=1), "delta.child"),
    "patterns of a text": (_set("delta", "patterns", to="attention"), "delta.patterns"),
    "pattern of 2,000": (_set("delta", "patterns", to=["x" * 2000]), "delta.patterns"),
    "tensors of a list": (_set("delta", "tensors", to=[]), "delta.tensors"),
    "old of nothing": (_set(*_T, "old", to=None), "o.weight.old"),
    "new of markup": (_set(*_T, "new", to="<img onerror=x>"), "o.weight.new"),
    "dtype F31": (_set(*_T, "dtype", to="F31"), "unknown dtype 'F31'"),
    "dtype as code": (_set(*_T, "dtype", to="__class__"), "unknown dtype"),
    "shape of truths": (_set(*_T, "shape", to=[True, True]), "o.weight.shape"),
    "shape of fractions": (_set(*_T, "shape", to=[6.5, 8]), "o.weight.shape"),
    "shape of 17 axes": (_set(*_T, "shape", to=[1] * 17), "o.weight.shape"),
    "shape of 2**50": (_set(*_T, "shape", to=[2**50]), "o.weight.shape"),
    "shape of 2**96": (_set(*_T, "shape", to=[2**48, 2**48]), "larger than any tensor"),
    "one field more": (_set(*_T, "code", to="x"), "o.weight.code"),
    "one part field more": (_set(*_P, "code", to="x"), "parts.0.code"),
    "part of another tensor": (_set(*_P, "parameter", to="q.bias"), "do not belong together"),
    "part named as a path": (_set(*_P, "parameter", to="../../x"), "parts.0.parameter"),
    "part named in markup": (_set(*_P, "parameter", to="<script>"), "parts.0.parameter"),
    "slice of nothing": (_set(*_P, "slice", to=[]), "parts.0.slice"),
    "slice of three": (_set(*_P, "slice", to=[[0, 0, 4]]), "parts.0.slice"),
    "slice backwards": (_set(*_P, "slice", to=[[0, 4, 0, 1]]), "does not lie in the shape"),
    "slice beyond": (_set(*_P, "slice", to=[[0, 0, 7, 1]]), "does not lie in the shape"),
    "slice of no axis": (_set(*_P, "slice", to=[[5, 0, 1, 1]]), "does not lie in the shape"),
    "slice without a step": (_set(*_P, "slice", to=[[0, 0, 6, 0]]), "does not lie in the shape"),
    "slice below nothing": (_set(*_P, "slice", to=[[0, -1, 6, 1]]), "parts.0.slice"),
    "slice that meets itself": (_set(*_P, "slice", to=[[0, 0, 4, 2], [0, 2, 6, 1]]), "two ranges of a slice overlap"),
    "part of another shape": (_set(*_P, "shape", to=[8, 6]), "is not its slice's"),
    "sha256 of nothing": (_set(*_P, "sha256", to=""), "parts.0.sha256"),
    "unknown encoding": (_set("encodings", 0, to="pickle"), "encodings.0"),
    "two encodings": (_set("encodings", to=[PLANES, PLANES]), "where the header lists 2"),
    "no encodings": (_set("encodings", to=[]), "where the header lists 0"),
    "meta of a list": (_set("delta", "meta", to=[]), "delta.meta"),
    "format 99": (_set("format", to=99), "delta format '99'"),
    "format of text": (_set("format", to="1"), "delta"),
    "no body": (lambda inner: inner.pop("delta"), "delta"),
    "a key more": (_set("auto_map", to={}), "auto_map"),
}


def _huge(slices: list[Any], shape: list[int]) -> Change:
    """As many parts of one tensor as slices, none of which can be counted element by element."""

    def change(inner: dict[str, Any]) -> None:
        inner["delta"]["tensors"]["o.weight"]["shape"] = shape
        part = inner["delta"]["parts"][0]
        sizes = [[len(range(*one[0][1:])), *shape[1:]] for one in slices]
        inner["delta"]["parts"] = [part | {"slice": one, "shape": size} for one, size in zip(slices, sizes, strict=True)]
        inner["encodings"] = ["xor"] * len(slices)

    return change


def _empty(count: int) -> Change:
    def change(outer: dict[str, Any]) -> None:
        kept = outer["__metadata__"]
        outer.clear()
        outer["__metadata__"] = kept
        outer |= {f"{number:06d}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(count)}

    return change


def _slices() -> Iterator[Case]:
    far = [[[0, 0, 2**48, 2]], [[0, 0, 2**48, 3]]]
    yield _case("T3", "two slices of 2**48", "two parts overlap", lambda data: rebuilt(data, _huge(far, [2**48]), _empty(2), payload=b""))
    woven = [[[0, number, 2**40, 4096]] for number in range(2000)]
    words = "more entangled"
    yield _case("T3", "2,000 woven slices", words, lambda data: rebuilt(data, _huge(woven, [2**40]), _empty(2000), payload=b""))
    many = [[[0, number, number + 1, 1]] for number in range(8193)]
    yield _case("T3", "8,193 parts", "more than 8192 parts", lambda data: rebuilt(data, _huge(many, [9000]), _empty(8193), payload=b""))
    ranges = [[[0, number, 2**40, 4096] for number in range(3000)]]
    yield _case("T3", "3,000 woven ranges", words, lambda data: rebuilt(data, _huge(ranges, [2**40]), _empty(1), payload=b""))


def _case(threat: str, name: str, words: str, spoil: Callable[[bytes], bytes], act: Callable[[Path], object] = Delta.load) -> Case:
    make = lambda room: written(room, spoil(room.deltas[0].read_bytes()))  # noqa: E731
    return Case(threat=threat, name=f"delta {name}", error=DeltaError, words=words, make=make, act=act)


def _bits(path: Path) -> None:
    delta = Delta.load(path)
    for part in delta.parts:
        part.bits(delta.itemsize(part))


def _packed(payload: bytes) -> Callable[[bytes], bytes]:
    """With this as the one payload, under zstandard's name."""
    row = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    return lambda data: rebuilt(data, _set("encodings", to=[PLANES]), lambda outer: outer.update({"000000": row}), payload=payload)


def _stream(size: int) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compressobj().compress(bytes(size)) + zstandard.compress(b"")


def _payloads() -> Iterator[Case]:
    bombs = {
        "bomb of 1 GiB": (zstandard.ZstdCompressor(level=1).compress(bytes(1 << 26)), "unpacks to 67108864 bytes"),
        "frame that claims 2**62": (
            b"\x28\xb5\x2f\xfd\xe0" + (2**62).to_bytes(8, "little") + b"\x01\x00\x00",
            "unpacks to 4611686018427387904 bytes",
        ),
        "frame without a size": (_stream(192), "a part"),
        "no frame": (b"not zstandard at all", "does not unpack"),
        "two frames": (zstandard.compress(bytes(192)) + zstandard.compress(b""), "does not unpack"),
        "half a frame": (zstandard.compress(bytes(range(192)))[:-3], "does not unpack"),
        "frame of another text": (zstandard.compress(bytes(192)), "packed bits are damaged"),
        "nothing": (b"", "a part"),
        "pickle as payload": (b"\x80\x04N.", "does not unpack"),
    }
    for name, (payload, words) in bombs.items():
        yield _case("T3", name, words, _packed(payload), _bits)
    outers: dict[str, tuple[Change, str]] = {
        "payload of floats": (lambda outer: outer["000000"].update(dtype="F32"), "not a row of bytes"),
        "payload elsewhere": (lambda outer: outer["000000"].update(data_offsets=[1, 2]), "lies at 1-2"),
        "payload of a negative length": (lambda outer: outer["000000"].update(shape=[-1], data_offsets=[0, -1]), "lies at 0--1"),
        "payload with a path": (lambda outer: outer.update({"../x": outer.pop("000000")}), "names of their own"),
        "payload too many": (lambda outer: outer.update({"000001": outer["000000"]}), "2 packed parts"),
        "payload missing": (lambda outer: outer.pop("000000"), "0 packed parts"),
        "no metadata": (lambda outer: outer.pop("__metadata__"), "exactly one key"),
        "more metadata": (lambda outer: outer["__metadata__"].update(format="pt"), "exactly one key"),
        "metadata of a number": (lambda outer: outer["__metadata__"].update(selectune=1), "exactly one key"),
        "metadata that is no JSON": (lambda outer: outer["__metadata__"].update(selectune="{"), "not strict JSON"),
        "metadata of a list": (lambda outer: outer["__metadata__"].update(selectune="[]"), "header"),
        "metadata with a space": (
            lambda outer: outer["__metadata__"].update(selectune=outer["__metadata__"]["selectune"] + " "),
            "not canonical",
        ),
        "metadata with half a pair": (lambda outer: outer["__metadata__"].update(selectune='"\ud800"'), "not strict JSON"),
        "metadata of 200,000 levels": (lambda outer: outer["__metadata__"].update(selectune="[" * 200_000), "nested too deeply"),
    }
    for name, (change, words) in outers.items():
        yield _case("T3", name, words, lambda data, change=change: rebuilt(data, lambda _: None, change))
    yield _case("T3", "with a tail", "bytes of parts where the header lists", lambda data: data + b"x")
    yield _case("T3", "cut", "bytes of parts where the header lists", lambda data: data[:-1])
    yield _case("T3", "header of 2**60", "the header claims", lambda data: (1 << 60).to_bytes(8, "little") + data[8:])
    yield _case("T3", "header of 33 MiB", "over the limit of", lambda _: (33 << 20).to_bytes(8, "little") + b" " * (33 << 20))
    yield _case("T1", "of pickle", "no delta file", lambda _: b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00N.")
    yield _case("T1", "of zip", "no delta file", lambda _: b"PK\x03\x04" * 9)


def _parents() -> Iterator[Case]:
    def other(room: Room) -> tuple[Any, Delta]:
        return model_of(tied(seed=5)), Delta.load(room.deltas[0])

    def changed(**fields: Any) -> Callable[[Room], tuple[Any, Delta]]:
        return lambda room: (model_of(tied()), replace(Delta.load(room.deltas[0]), **fields))

    def touched(**fields: Any) -> Callable[[Room], tuple[Any, Delta]]:
        def make(room: Room) -> tuple[Any, Delta]:
            delta = Delta.load(room.deltas[0])
            return model_of(tied()), replace(delta, tensors={name: replace(one, **fields) for name, one in delta.tensors.items()})

        return make

    def quietly(room: Room) -> tuple[Any, Delta]:
        """The model's weights were swapped behind the manifest that says what they are."""
        model = model_of(tied())
        swapped, _ = step_of(model_of(tied(seed=3)), {"o.weight": None}, 0.5)
        model.net.o.weight.data.copy_(swapped.net.o.weight.data)
        return model, Delta.load(room.deltas[0])

    def renamed(room: Room) -> tuple[Any, Delta]:
        delta = Delta.load(room.deltas[0])
        parts = tuple(replace(part, parameter="gone.weight") for part in delta.parts)
        return model_of(tied()), replace(delta, tensors={"gone.weight": delta.tensors["o.weight"]}, parts=parts)

    rows: list[tuple[str, type[DeltaError], str, Callable[[Room], tuple[Any, Delta]], Callable[..., object]]] = [
        ("another base", WrongParent, "parent", other, apply),
        ("parent that is another", WrongParent, "parent", changed(parent="0" * 64), apply),
        ("child that is another", DeltaError, "do not lead to the model", changed(child="0" * 64), apply),
        ("old that is another", DeltaError, "o.weight", touched(old="0" * 64), apply),
        ("new that is another", DeltaError, "do not lead to the model", touched(new="0" * 64), apply),
        ("dtype that is another", DeltaError, "o.weight", touched(dtype="I32"), apply),
        ("tensor that is not there", DeltaError, "gone.weight", renamed, apply),
        ("base swapped in memory", DeltaError, "o.weight", quietly, apply),
        ("taken off another model", WrongParent, "leads to model", lambda room: (model_of(tied()), Delta.load(room.deltas[1])), revert),
        ("second before the first", WrongParent, "parent", lambda room: (model_of(tied()), Delta.load(room.deltas[1])), apply),
    ]
    for name, error, words, make, act in rows:
        yield Case(threat="T4", name=name, error=error, words=words, make=make, act=lambda given, act=act: act(*given))


def cases() -> list[Case]:
    """All of them."""
    fields = [_case("T3", name, words, lambda data, change=change: rebuilt(data, change)) for name, (change, words) in FIELDS.items()]
    return [*fields, *_slices(), *_payloads(), *_parents()]
