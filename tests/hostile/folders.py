"""Folders of models and adapters (T1, T2, T3), and files of weights that lie."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import Case, Room

from selectune.errors import ModelError
from selectune.untrusted import check_adapter, check_folder

GOOD = {
    "a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
}
SETTINGS = {"model_type": "llama"}


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


def weights(header: object = GOOD, *, data: bytes = bytes(12), size: int | None = None) -> bytes:
    """A safetensors file as its header says, whatever that is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def folder(room: Room, **files: bytes) -> Path:
    """A model's folder; names have two underscores for a dot."""
    made = {"config__json": json.dumps(SETTINGS).encode(), "model__safetensors": weights()} | files
    return written(room.path / "model", made)


def adapter(room: Room, **files: bytes) -> Path:
    """A LoRA adapter's folder."""
    made = {"adapter_config__json": b'{"peft_type":"LORA"}', "adapter_model__safetensors": weights()} | files
    return written(room.path / "adapter", made)


def written(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def _zip(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return stream.getvalue()


def _case(threat: str, name: str, words: str, make: Callable[[Room], Path], act: Callable[[Path], object] = check_folder) -> Case:
    return Case(threat=threat, name=name, error=ModelError, words=words, make=make, act=act)


def _pickles() -> Iterator[Case]:
    for name in ("pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.pickle", "A.BIN"):
        key = name.replace(".", "__")
        yield _case(
            "T1", f"pickle as {name}", "runs what its author wrote", lambda room, key=key: folder(room, **{key: pickle.dumps(_Payload())})
        )
    for protocol in (1, 2, 3, 4, 5):
        data = pickle.dumps(_Payload(), protocol)
        data = b"\x80\x01" + data if protocol == 1 else data
        yield _case(
            "T1", f"protocol {protocol} as weights.dat", "weights.dat, a kind", lambda room, data=data: folder(room, weights__dat=data)
        )
    for name in ("tokenizer.model", "vocab.txt", "model.onnx", "LICENSE", "model.h5", "x.npy"):
        key = name.replace(".", "__")
        yield _case(
            "T1",
            f"pickle that calls itself {name}",
            f"{name}, a kind",
            lambda room, key=key: folder(room, **{key: pickle.dumps(_Payload())}),
        )
    archive = _zip(**{"archive/data__pkl": pickle.dumps(_Payload())})
    yield _case("T1", "torch archive as model.data", "model.data, a kind", lambda room: folder(room, model__data=archive))
    yield _case("T1", "empty zip as notes", "notes, a kind", lambda room: folder(room, notes=_zip()))
    yield _case(
        "T1", "pickle as model.safetensors", "no whole safetensors", lambda room: folder(room, model__safetensors=pickle.dumps(_Payload()))
    )
    yield _case(
        "T1",
        "oldest pickle as safetensors",
        "no whole safetensors",
        lambda room: folder(room, model__safetensors=pickle.dumps(_Payload(), 0)),
    )
    yield _case("T1", "zip as safetensors", "no whole safetensors", lambda room: folder(room, model__safetensors=archive))
    yield _case(
        "T1",
        "pickle in an adapter",
        "adapter_model.bin, a kind",
        lambda room: adapter(room, adapter_model__bin=b"\x80\x04."),
        check_adapter,
    )
    yield _case("T1", "pickle magic in an adapter", "notes.md, a kind", lambda room: adapter(room, notes__md=b"\x80\x02."), check_adapter)


CODE: dict[str, Any] = {
    "auto_map": {"AutoModel": "x.Evil"},
    "trust_remote_code": True,
    "hub_trust_remote_code": 1,
    "_attn_implementation_internal": "someone/kernel",
    "_experts_implementation_internal": "someone/kernel",
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "someone/kernel:run",
}


def _code() -> Iterator[Case]:
    for key, value in CODE.items():
        for where, settings in (("top", {key: value}), ("deep", {"text_config": {"a": [{key: value}]}})):
            data = json.dumps(SETTINGS | settings).encode()
            yield _case(
                "T2",
                f"{key} {where}",
                f"asks for code of its own (config.json: {key}",
                lambda room, data=data: folder(room, config__json=data),
            )
    for name in (
        "tokenizer_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "generation_config.json",
        "config.5.0.0.json",
    ):
        file = {name.replace(".", "__"): json.dumps({"auto_map": {"A": "b.C"}}).encode()}
        yield _case("T2", f"auto_map in {name}", f"({name}: auto_map)", lambda room, file=file: folder(room, **file))
    for name in ("modeling_evil.py", "x.PY"):
        yield _case(
            "T2", name, f"code of its own, {name}", lambda room, name=name: folder(room, **{name.replace(".", "__"): b"raise SystemExit"})
        )
    twice = b'{"model_type":"llama","auto_map":{"A":"b.C"},"auto_map":null}'
    yield _case("T2", "auto_map hidden by a second one", "a key stands there twice", lambda room: folder(room, config__json=twice))
    yield _case("T2", "adapter in place of a model", "an adapter for another model", lambda room: folder(room, adapter_config__json=b"{}"))
    yield _case("T2", "code in an adapter", "code of its own, x.py", lambda room: adapter(room, x__py=b""), check_adapter)
    mapped = json.dumps({"auto_mapping": 1, "auto_map": {"A": "b"}}).encode()
    yield _case(
        "T2",
        "auto_map in an adapter",
        "code of its own (adapter_config.json",
        lambda room: adapter(room, adapter_config__json=mapped),
        check_adapter,
    )


def _row(**changes: Any) -> dict[str, Any]:
    return GOOD | {"a.weight": GOOD["a.weight"] | changes}


def _renamed(name: str) -> dict[str, Any]:
    return {name: GOOD["a.weight"], "b.weight": GOOD["b.weight"]}


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no whole safetensors"),
    "seven bytes": (b"1234567", "no whole safetensors"),
    "huge header": (weights(b"{}", size=1 << 60), "no whole safetensors"),
    "header past the end": (weights(size=5000), "no whole safetensors"),
    "list as header": (weights(b"[]", data=b""), "no whole safetensors"),
    "nested header": (weights(b'{"a":' * 50_000), "no whole safetensors"),
    "header that is no UTF-8": (weights(b'{"\xff":1}'), "no whole safetensors"),
    "name twice": (weights(json.dumps(GOOD).replace("b.weight", "a.weight").encode()), "safetensors file"),
    "no tensor": (weights({}, data=b""), "holds no tensor"),
    "metadata alone": (weights({"__metadata__": {"a": "b"}}, data=b""), "holds no tensor"),
    "overlap": (weights(GOOD | {"b.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [4, 8]}}), "no whole safetensors"),
    "gap": (
        weights(GOOD | {"b.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [10, 14]}}, data=bytes(14)),
        "no whole safetensors",
    ),
    "trailing bytes": (weights(data=bytes(13)), "no whole safetensors"),
    "cut data": (weights(data=bytes(11)), "no whole safetensors"),
    "wrong shape": (weights(_row(shape=[3])), "no whole safetensors"),
    "negative shape": (weights(_row(shape=[-2])), "no whole safetensors"),
    "overflowing shape": (weights(_row(shape=[2**62, 2**62])), "no whole safetensors"),
    "fraction as shape": (weights(_row(shape=[2.5])), "no whole safetensors"),
    "unknown dtype": (weights(_row(dtype="F31")), "no whole safetensors"),
    "dtype of another width": (weights(_row(dtype="F64")), "no whole safetensors"),
    "backward offsets": (weights(_row(data_offsets=[8, 0])), "no whole safetensors"),
    "offsets of text": (weights(_row(data_offsets=["0", "8"])), "no whole safetensors"),
    "one offset": (weights(_row(data_offsets=[0])), "no whole safetensors"),
    "metadata of numbers": (weights(GOOD | {"__metadata__": {"a": 1}}), "no whole safetensors"),
    "pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "no whole safetensors"),
}
NAMES = {
    "path": "../../x",
    "absolute path": "/etc/passwd",
    "markup": "<img src=x onerror=alert(1)>",
    "escape": "\x1b]0;title\x07",
    "turned text": "weight\u202ethgiew",
    "nothing": "",
    "a space": "a weight",
    "a long one": "x" * 600,
    "backslash": "..\\x",
    "zero byte": "a\0b",
    "line end": "a\nb",
    "rich markup": "[link=http://x]a[/link]",
}


def _lies() -> Iterator[Case]:
    for name, (data, words) in HEADERS.items():
        yield _case("T3", name, words, lambda room, data=data: folder(room, model__safetensors=data))
    for name, tensor in NAMES.items():
        data = weights(_renamed(tensor))
        yield _case("T3", f"named {name}", "is no name of a tensor", lambda room, data=data: folder(room, model__safetensors=data))
    for name in ("markup", "path"):
        data = weights(_renamed(NAMES[name]))
        act = check_adapter
        yield _case(
            "T3",
            f"adapter named {name}",
            "is no name of a tensor",
            lambda room, data=data: adapter(room, adapter_model__safetensors=data),
            act,
        )
    for file in ("../model.safetensors", "/etc/passwd", "sub/model.safetensors", "gone.safetensors", "config.json", 7, None):
        index = json.dumps({"weight_map": {"a.weight": file}}).encode()
        words = "which is no safetensors file of this folder"
        yield _case("T3", f"index to {file}", words, lambda room, index=index: folder(room, model__safetensors__index__json=index))
    for name, text in (("no map", b"{}"), ("empty map", b'{"weight_map":{}}'), ("map of a list", b'{"weight_map":[]}')):
        yield _case(
            "T3", f"index with {name}", "has no weight_map", lambda room, text=text: folder(room, model__safetensors__index__json=text)
        )
    yield _case("T3", "pipe as index", "neither a file nor a folder", lambda room: _special(room, "model.safetensors.index.json"))
    yield _case("T3", "pipe as tokenizer", "neither a file nor a folder", lambda room: _special(room, "tokenizer.json"))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        yield _case("T3", f"link out at {name}", "is a link out of the folder", lambda room, name=name: _linked(room, name, room.deltas[0]))
    yield _case("T3", "link to nowhere", "leads nowhere", lambda room: _linked(room, "x", room.path / "model" / "gone"))
    yield _case("T3", "link to itself", "leads nowhere", lambda room: _linked(room, "x", room.path / "model" / "x"))


def _special(room: Room, name: str) -> Path:
    made = folder(room)
    os.mkfifo(made / name)
    return made


def _linked(room: Room, name: str, target: Path) -> Path:
    made = folder(room)
    (made / name).unlink(missing_ok=True)
    (made / name).symlink_to(target)
    return made


def _settings() -> Iterator[Case]:
    texts = {
        "200,000 levels": (b'{"a":' * 200_000, "is no JSON"),
        "200,000 lists": (b"[" * 200_000, "is no JSON"),
        "key twice": (b'{"a":1,"a":2}', "twice"),
        "4,301 digits": (b'{"a":' + b"9" * 5000 + b"}", "4300 digits"),
        "byte-order mark": (b"\xef\xbb\xbf{}", "BOM"),
        "no UTF-8": (b'{"a":"\xff"}', "codec"),
        "no object": (b"[]", "no object of settings"),
        "nothing": (b"", "is no JSON"),
        "17 MiB": (b'{"a":"' + b"x" * (17 << 20) + b'"}', "over the limit"),
    }
    for name, (data, words) in texts.items():
        yield _case("T6", f"config of {name}", words, lambda room, data=data: folder(room, config__json=data))


def cases() -> list[Case]:
    """All of them."""
    return [*_pickles(), *_code(), *_lies(), *_settings()]
