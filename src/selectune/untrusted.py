"""A model's folder that a stranger may have made: what is refused before anything else opens it.

Loading must not run code or pickle that a folder brings, leave the folder, or believe what its lists say; transformers and safetensors let
some of that through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selectune.errors import InputError, ModelError
from selectune.hashing import DTYPES, SHARED, parse_json

__all__ = ["LARGEST_CONFIG", "check_adapter", "check_folder", "read_header"]

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Loading any of these runs pickle, which runs whatever its author wrote."""
CODE = frozenset({"auto_map", "_attn_implementation_internal", "_experts_implementation_internal"})
"""Settings that name code to be run; the last two are transformers' own notes, which a file has no reason to hold."""
LARGEST_CONFIG = 16 << 20
LARGEST_INDEX = 256 << 20
"""Bytes of a file of settings, and of an index of weights."""
LARGEST_HEADER = 32 << 20
"""Bytes of the list of tensors at the beginning of a safetensors file: a hundred thousand tensors take a third of it."""
MOST_FILES = 10_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,511}\Z")
"""Names of tensors, as Python modules have them: they are printed, and become keys of deltas."""
_PICKLED = re.compile(rb"\x80[\x01-\x05]|PK\x03\x04|PK\x05\x06")
"""How a pickle begins (protocols 1 to 5), and a zip archive, in which torch keeps its pickles; the oldest pickles begin like any text."""


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Refuses a model folder that could not be loaded, or only by running code or pickle that it brings. Raises ModelError.

    With `weights=False`, which is enough for a map, it need not hold any. What lies in its sub-folders is not looked at: transformers opens
    nothing there, and makers of models keep their original checkpoints in them. An index of weights that points anywhere else than to
    safetensors files beside it is refused, and so is a link that leaves the folder, and whatever is neither a file nor a folder.
    """
    where = f"model {folder}"
    then = "Give the folder that holds config.json and *.safetensors."
    if not folder.is_dir():
        raise ModelError("this is a file", where=where, then=then)
    if not (folder / "config.json").is_file():
        raise ModelError("there is no config.json", where=where, then=then)
    files = _listed(folder, where)
    if (folder / "adapter_config.json").exists():
        # transformers would load the base that it names, from wherever that is, in place of what was checked here.
        raise ModelError(
            "it holds adapter_config.json: an adapter for another model",
            where=where,
            then="Merge it into its base (PEFT's merge_and_unload), save that, and give its folder.",
        )
    _check_links(folder, files, where)
    _check_code(files, where)
    tensors = [path for path in files if path.suffix == ".safetensors" and path.is_file()]
    _check_pickles(files, tensors, where)
    if weights:
        _check_tensors(folder, tensors, where)


def check_adapter(folder: Path) -> None:
    """Refuses an adapter's folder that brings code, pickle, links out of it or damaged weights, as `check_folder` does.

    Raises ModelError.
    """
    where = f"adapter {folder}"
    then = "Give the folder that holds adapter_config.json and adapter_model.safetensors."
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"there is no {name}", where=where, then=then)
    files = _listed(folder, where)
    _check_links(folder, files, where)
    _check_code(files, where)
    tensors = [folder / "adapter_model.safetensors"]
    _check_pickles(files, tensors, where)
    _check_tensors(folder, tensors, where)


def _listed(folder: Path, where: str) -> list[Path]:
    """What lies directly in a folder, by name."""
    files = sorted(folder.iterdir())
    if len(files) > MOST_FILES:
        raise ModelError(f"it holds {len(files):,} files, over the limit of {MOST_FILES:,}", where=where, then="Look what they are.")
    return files


def _check_links(folder: Path, files: list[Path], where: str) -> None:
    """What is in the folder has to be in the folder; the hub's cache, where a snapshot is made of links to its blobs, is one folder."""
    root = folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in files:
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:
            raise ModelError(f"{path.name} is a link that leads nowhere", where=where, then="Copy the file that it means.") from error
        if not any(target.is_relative_to(inside) for inside in roots):
            raise ModelError(f"{path.name} is a link out of the folder, to {target}", where=where, then="Copy that file into the folder.")
        if not target.exists():
            raise ModelError(f"{path.name} is a link that leads nowhere", where=where, then="Copy the file that it means.")
        if not (target.is_file() or target.is_dir()):
            raise ModelError(f"{path.name} is neither a file nor a folder, and to read it might never end", where=where, then="Delete it.")


def _check_code(files: list[Path], where: str) -> None:
    """No Python, and no setting that makes transformers fetch or import some.

    Its auto classes read all the `*config.json` files, and `config.VERSION.json` where config.json names it.
    """
    then = "selectune runs no code from a model folder; use a model type that transformers knows."
    for path in files:
        if path.suffix.lower() == ".py":
            raise ModelError(f"the model brings code of its own, {path.name}", where=where, then=then)
        if (path.name.endswith("config.json") or (path.name.startswith("config.") and path.suffix == ".json")) and path.is_file():
            setting = _code_setting(_read_json(path, LARGEST_CONFIG, where))
            if setting is not None:
                raise ModelError(f"the model asks for code of its own ({path.name}: {setting})", where=where, then=then)


def _check_pickles(files: list[Path], tensors: list[Path], where: str) -> None:
    """No file that runs what its author wrote when it is read, whatever it is called."""
    for path in files:
        if path.suffix.lower() in PICKLES or (path.is_file() and path not in tensors and _PICKLED.match(_beginning(path, where))):
            then = (
                "Delete it: the safetensors beside it are read instead."
                if tensors
                else "Convert it with save_pretrained, where you trust it."
            )
            raise ModelError(
                f"it holds {path.name}, a kind of file that runs what its author wrote when it is read", where=where, then=then
            )


def _beginning(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(4)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror})", where=where, then="Copy the file again.") from error


def _code_setting(settings: Any) -> str | None:
    """The first key, however deep, by which code that is not transformers' own would be run."""
    parts = [settings]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            for key, value in part.items():
                hub_kernel = key.endswith("_implementation") and isinstance(value, str) and "/" in value
                if hub_kernel or (value and (key in CODE or "trust_remote_code" in key)):
                    return str(key)
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return None


def _read_json(path: Path, limit: int, where: str) -> dict[str, Any]:
    size = path.stat().st_size
    if size > limit:
        raise ModelError(
            f"{path.name} has {size:,} bytes, over the limit of {limit:,}",
            where=where,
            then="A real one is far smaller: look what it holds.",
        )
    then = "Export the model again with save_pretrained."
    try:
        # Not `parse_json`: real models' settings hold Infinity.
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is no JSON ({error})", where=where, then=then) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} holds no object of settings", where=where, then=then)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Each reader takes another of two settings with one name: what was checked would not be what is used."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _check_tensors(folder: Path, tensors: list[Path], where: str) -> None:
    """There are weights, their headers can be read, and an index names these files alone: transformers would follow it anywhere."""
    from safetensors import SafetensorError, safe_open

    if not tensors:
        then = "Convert it with save_pretrained (safetensors). `selectune map` needs no weights."
        raise ModelError("there are no *.safetensors weights", where=where, then=then)
    for path in tensors:
        try:
            with safe_open(path, framework="np"):
                read_header(path)
        except (SafetensorError, InputError, OSError) as error:
            then = "Copy or download the file again: it is damaged, or not all of it is there."
            reason = error.what if isinstance(error, InputError) else error
            raise ModelError(f"{path.name} is no whole safetensors file ({reason})", where=where, then=then) from error
    names = {path.name for path in tensors}
    for path in sorted(folder.glob("*.safetensors.index.json")):
        places = _read_json(path, LARGEST_INDEX, where).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{path.name} has no weight_map", where=where, then="Export the model again with save_pretrained.")
        for name, file in places.items():
            if file not in names:
                what = f'{path.name} has {name} in "{file}", which is no safetensors file of this folder'
                raise ModelError(what, where=where, then="Put every file that the index names beside it.")


def read_header(path: Path) -> tuple[int, dict[str, Mapping[str, Any]]]:
    """Where the tensors of a safetensors file begin, and its rows ``{"dtype", "shape", "data_offsets"}`` by name.

    Raises InputError for what the library lets through: a name twice, or one that is no tensor's; a list too long to be one; no tensor at
    all; and for rows of another form. Raises OSError as `open` does.
    """
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > LARGEST_HEADER:
            raise InputError(f"its header has {size:,} bytes, over the limit of {LARGEST_HEADER:,}")
        rows = parse_json(stream.read(size), limit=LARGEST_HEADER)
    if not isinstance(rows, dict):
        raise InputError("its header is no JSON object")
    rows.pop("__metadata__", None)
    if not rows:
        raise InputError("it holds no tensor")
    for name, row in rows.items():
        if not _NAME.match(name):
            raise InputError(f"{name[:80]!r} is no name of a tensor")
        match row:
            case {"dtype": str(dtype)} if dtype in SHARED:
                raise InputError(f"{name[:80]} is of dtype {dtype}, of which several numbers share a byte: that cannot be read")
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(), int()], **rest} if not rest and dtype in DTYPES:
                if not all(type(one) is int for one in shape):
                    raise InputError(f"{name} has the shape {str(shape)[:80]}")
            case _:
                raise InputError(f"{name} is no tensor: {str(row)[:80]}")
    return 8 + size, rows
