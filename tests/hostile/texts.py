"""JSON and YAML wherever they come in (T6), states of trainings (T1), kept measurements and archives (T5)."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cases import Case, Room
from safetensors.torch import save_file

from selectune.errors import DataError, DocumentError, InputError, KeyFileError, RecipeError, ResumeError
from selectune.evaluation.bridges.archive import opened
from selectune.evaluation.measurement import Measurement, Sample
from selectune.evaluation.tasks.finding import read_task
from selectune.governance import Envelope, Policy, read_public
from selectune.recipe import read_recipe
from selectune.training import checkpoint

JSON: dict[str, tuple[bytes, str]] = {
    "200,000 lists": (b"[" * 200_000, "nested too deeply"),
    "200,000 objects": (b'{"a":' * 180_000, "nested too deeply"),
    "65 levels": (b"[" * 70 + b"]" * 70, "nested deeper than 64"),
    "key twice": (b'{"a":1,"a":2}', "appears twice"),
    "NaN": (b'{"a":NaN}', "NaN is not JSON"),
    "minus Infinity": (b'{"a":-Infinity}', "-Infinity is not JSON"),
    "1e999": (b'{"a":1e999}', "is not a finite number"),
    "5,000 digits": (b'{"a":' + b"9" * 5000 + b"}", "4300 digits"),
    "byte-order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "half a pair": (b'{"a":"\\ud800"}', "surrogate pair"),
    "half a pair as key": (b'{"\\uDC00":1}', "surrogate pair"),
    "no UTF-8": (b'{"a":"\xff"}', "codec"),
    "zero byte": (b'{"a":"\x00"}', "strict JSON"),
    "nothing": (b"", "strict JSON"),
    "two values": (b"{}{}", "strict JSON"),
    "comma at the end": (b"[1,]", "strict JSON"),
}
YAML: dict[str, tuple[str, str]] = {
    "laughs": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)),
        "aliases",
    ),
    "merged laughs": (
        "a: &a {x: 1}\n" + "".join(f"{c}: &{c} {{<<: [{','.join(['*' + p] * 9)}]}}\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)),
        "aliases",
    ),
    "itself": ("a: &a [*a]", "aliases"),
    "60,000 levels": ("[" * 60_000, "nested too deeply"),
    "1 MiB": ("a: " + "x" * (1 << 20), "over the limit"),
    "python tag": ("a: !!python/object/apply:os.system [id]", "python/object/apply"),
    "python name": ("a: !!python/name:os.system", "python/name"),
    "own tag": ("a: !run id", "!run"),
    "time that is none": ("a: !!timestamp 2026-99-99", "month must be"),
    "time of text": ("a: !!timestamp never", "cannot be read"),
    "truth of text": ("a: !!bool maybe", "cannot be read"),
    "number of text": ("a: !!int x", "cannot be read"),
    "5,000 digits": ("a: " + "9" * 5000, "4300 digits"),
    "key twice": ("name: a\nname: b", "is given twice"),
    "key of a list": ("? [a]\n: 1", "unhashable"),
    "zero byte": ("a: \0", "YAML"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
    "no mapping": ("- a", "not a mapping"),
    "markup as a key": ("<img onerror=x>: 1", "unknown key"),
    "escape as a key": ('"\\e[31m": 1', "unknown key"),
}


def file(room: Room, name: str, data: bytes) -> Path:
    path = room.path / name
    path.write_bytes(data)
    return path


def _json() -> Iterator[Case]:
    readers: dict[str, Callable[[Path], object]] = {
        "policy": lambda path: Policy.parse(path.read_bytes(), str(path)),
        "envelope": lambda path: Envelope.parse(path.read_bytes(), str(path)),
    }
    for reader, act in readers.items():
        for name, (data, words) in JSON.items():
            make = lambda room, data=data: file(room, "x.json", data)  # noqa: E731
            yield Case(threat="T6", name=f"{reader} of {name}", error=DocumentError, words=words, make=make, act=act)
    big = b'{"a":"' + b"x" * (2 << 20) + b'"}'
    yield Case(
        threat="T6",
        name="envelope of 2 MiB",
        error=DocumentError,
        words="over the limit",
        make=lambda room: file(room, "x.json", big),
        act=readers["envelope"],
    )


def _yaml() -> Iterator[Case]:
    for name, (text, words) in YAML.items():
        make = lambda room, text=text: file(room, "x.yaml", text.encode())  # noqa: E731
        if name != "zero byte":
            yield Case(threat="T6", name=f"recipe of {name}", error=RecipeError, words=words, make=make, act=read_recipe)
    for name in ("laughs", "itself", "60,000 levels", "python tag", "own tag"):
        text, words = YAML[name]
        make = lambda room, text=text: file(room, "x.yaml", text.encode())  # noqa: E731
        yield Case(threat="T6", name=f"task of {name}", error=InputError, words=words, make=make, act=read_task)


def _keys() -> Iterator[Case]:
    texts = {
        "no PEM": (b"x", "no public key in PEM"),
        "private one": (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no public key in PEM"),
        "1 MiB": (b"x" * (1 << 20), "more than 65536 bytes"),
        "pickle": (pickle.dumps([1]), "no public key in PEM"),
    }
    for name, (data, words) in texts.items():
        make = lambda room, data=data: file(room, "x.pub.pem", data)  # noqa: E731
        yield Case(threat="T11", name=f"key file of {name}", error=KeyFileError, words=words, make=make, act=read_public)


IDENTITY = {"seed": 1}


def _state(room: Room, header: dict[str, str], tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of a training with a digest that fits: who forges one can do that."""
    path = room.path / "checkpoint-00000001.safetensors"
    made = {"format": checkpoint.FORMAT, "identity": json.dumps(IDENTITY), "steps": "[]"} | header
    made = {"digest": checkpoint._digest(made, tensors)} | made
    save_file(tensors, path, metadata=made)
    return path


def _states() -> Iterator[Case]:
    def case(name: str, words: str, make: Callable[[Room], Path]) -> Case:
        return Case(
            threat="T1",
            name=f"training state {name}",
            error=ResumeError,
            words=words,
            make=make,
            act=lambda path: checkpoint.read(path, IDENTITY),
        )

    random = {"random": torch.get_rng_state()}
    good = {"n": 1, "total": 1, "loss": 1.0, "lr": 0.1, "tokens": 1, "grad_norm": 1.0, "seconds": 1.0, "still": []}
    for kind, data in (("pickle", pickle.dumps([1])), ("zip", b"PK\x03\x04"), ("nothing", b""), ("huge", b"\xff" * 64)):
        yield case(f"of {kind}", "cannot be read", lambda room, data=data: file(room, "checkpoint-00000001.safetensors", data))
    yield case("with deep steps", "cannot be read", lambda room: _state(room, {"steps": "[" * 100_000}, random))
    yield case("with deep identity", "cannot be read", lambda room: _state(room, {"identity": "[" * 100_000}, random))
    yield case("with steps of text", "cannot be read", lambda room: _state(room, {"steps": '["x"]'}, random))
    yield case(
        "with a step of text", "a step has other fields", lambda room: _state(room, {"steps": json.dumps([good | {"loss": "x"}])}, random)
    )
    yield case("with a field more", "cannot be read", lambda room: _state(room, {"steps": json.dumps([good | {"run": "id"}])}, random))
    yield case("without random state", "cannot be read", lambda room: _state(room, {}, {"x": torch.zeros(1)}))
    yield case(
        "with a short random state",
        "its random state is none",
        lambda room: _state(room, {}, {"random": torch.zeros(7, dtype=torch.uint8)}),
    )
    yield case("with a random state of floats", "its random state is none", lambda room: _state(room, {}, {"random": torch.zeros(5056)}))
    yield case("of another training", "another training", lambda room: _state(room, {"identity": '{"seed": 2}'}, random))
    yield case("of another version", "another version", lambda room: _state(room, {"format": "selectune/checkpoint/99"}, random))

    def flipped(room: Room) -> Path:
        path = _state(room, {}, random)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return path

    yield case("with a flipped byte", "is damaged", flipped)


ABOUT = {
    "stage": "s",
    "model_id": "m",
    "suite": "u",
    "seconds": 1.0,
    "version": 1,
    "kinds": [["t", "choice"]],
    "environment": {},
    "planned": {},
}
COLUMNS = ("task", "id", "cluster", "prompt_digest", "output", "reference", "score", "extra")


def _table(about: bytes | None = None, rows: int = 1, **columns: Any) -> pa.Table:
    found = {name: pa.array([0.5 if name == "score" else "{}"] * rows) for name in COLUMNS} | columns
    meta = None if about == b"" else {b"selectune.measurement": about or json.dumps(ABOUT).encode()}
    return pa.table(found).replace_schema_metadata(meta)


def _parquet(room: Room, table: pa.Table) -> Path:
    path = room.path / "x.parquet"
    pq.write_table(table, path, compression="zstd")
    return path


def _said(**changes: Any) -> bytes:
    return json.dumps(ABOUT | changes).encode()


def _measurements() -> Iterator[Case]:
    def case(name: str, words: str, make: Callable[[Room], Path]) -> Case:
        return Case(threat="T5", name=f"measurement {name}", error=DataError, words=words, make=make, act=Measurement.load)

    for kind, data in (
        ("pickle", pickle.dumps([1])),
        ("nothing", b""),
        ("magic alone", b"PAR1PAR1"),
        ("huge footer", b"PAR1" + b"\xff" * 4 + b"PAR1"),
    ):
        yield case(f"of {kind}", "not a whole Parquet file", lambda room, data=data: file(room, "x.parquet", data))

    def half(room: Room) -> Path:
        path = room.path / "x.parquet"
        samples = (Sample(task="t", id="1", cluster="c", prompt_digest="0", output="o", reference="r", score=1.0),)
        Measurement(stage="s", model_id="m", suite="u", samples=samples, seconds=1.0, kinds={"t": "choice"}).save(path)
        path.write_bytes(path.read_bytes()[:-20])
        return path

    def bomb(room: Room) -> Path:
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["y" * (1 << 17)]))
        path = room.path / "x.parquet"
        pq.write_table(_table(rows=20_000, output=texts), path, compression="zstd", dictionary_pagesize_limit=1 << 30)
        assert path.stat().st_size < 200_000
        return path

    yield case("of half a file", "not a whole Parquet file", half)
    yield case("that unpacks to 2.6 GB", "it would unpack to 20,000 rows", bomb)
    rows: dict[str, tuple[pa.Table, str]] = {
        "without a word": (_table(b""), "no measurement"),
        "with numbers as texts": (_table(output=pa.array([1])), "no measurement"),
        "with texts as scores": (_table(score=pa.array(["1"])), "no measurement"),
        "with a column more": (_table(code=pa.array(["x"])), "no measurement"),
        "with deep words": (_table(b"[" * 100_000), "nested too deeply"),
        "with words twice": (_table(b'{"version":1,"version":1}'), "appears twice"),
        "of version 99": (_table(_said(version=99)), "another version"),
        "with kinds of a number": (_table(_said(kinds=7)), "has other fields"),
        "with environment of a list": (_table(_said(environment=[])), "has other fields"),
        "with seconds of text": (_table(_said(seconds="x")), "has other fields"),
        "with a word more": (_table(_said(code="x")), "has other fields"),
        "with NaN as a score": (_table(score=pa.array([float("nan")])), "its score is nan"),
        "with Infinity as a score": (_table(score=pa.array([float("inf")])), "its score is inf"),
        "with nothing as a score": (_table(score=pa.array([None], pa.float64())), "has no score"),
        "with deep extra": (_table(extra=pa.array(["[" * 100_000])), "nested too deeply"),
        "with NaN in extra": (_table(extra=pa.array(['{"a":NaN}'])), "NaN is not JSON"),
        "with extra of a list": (_table(extra=pa.array(["[]"])), "no JSON object"),
        "with an id twice": (_table(rows=2), "it is there 2 times"),
    }
    for name, (table, words) in rows.items():
        yield case(name, words, lambda room, table=table: _parquet(room, table))


def _zipped(room: Room, *members: tuple[str, bytes], link: bool = False) -> Path:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members:
            info = zipfile.ZipInfo("member")
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            if link:
                info.external_attr = 0o120777 << 16
            packed.writestr(info, data)
    return file(room, "x.zip", stream.getvalue())


def _unpacked(path: Path) -> None:
    with opened(path) as archive:
        for name in archive.names:
            archive.read(name)


def _archives() -> Iterator[Case]:
    for name in ("../x", "a/../../x", "/etc/passwd", "..\\x", "C:/x", "a//b", "./a"):
        make = lambda room, name=name: _zipped(room, (name, b"x"))  # noqa: E731
        yield Case(threat="T5", name=f"member {name}", error=DataError, words="has a member named", make=make, act=_unpacked)
    made: dict[str, tuple[Callable[[Room], Path], str]] = {
        "link": (lambda room: _zipped(room, ("a", b"/etc/passwd"), link=True), "is a link"),
        "bomb": (lambda room: _zipped(room, ("a", bytes(65 << 20))), "unpacks to more than the limit"),
        "no zip": (lambda room: file(room, "x.zip", b"PK\x03\x04 nothing"), "not a whole zip file"),
        "cut": (lambda room: _cut(_zipped(room, ("a", b"x" * 100))), "not a whole zip file"),
    }
    for name, (make, words) in made.items():
        yield Case(threat="T5", name=f"archive {name}", error=DataError, words=words, make=make, act=_unpacked)


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-10])
    return path


def cases() -> list[Case]:
    """All of them."""
    return [*_json(), *_yaml(), *_keys(), *_states(), *_measurements(), *_archives()]
