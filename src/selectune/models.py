"""Load a model with its processor, its component map and its identity.

A model's name is a local folder, a hub id that is already in the local cache, or a name that an installed package offers under the
entry-point group `selectune.models` (`embedded` comes with selectune). Weights are read from safetensors only and no code from a model
folder is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from selectune.components import ComponentMap, map_model
from selectune.components.architecture import build_failures
from selectune.errors import ModelError
from selectune.hashing import Manifest, manifest
from selectune.network import hold_still

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ENTRY_POINTS = "selectune.models"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Loading any of these runs pickle, which runs whatever its author wrote."""
CODE = frozenset({"auto_map", "_attn_implementation_internal", "_experts_implementation_internal"})
"""Settings that name code to be run; the last two are transformers' own notes, which a file has no reason to hold."""
LARGEST_CONFIG = 16 << 20
LARGEST_INDEX = 256 << 20
"""Bytes of a file of settings, and of an index of weights."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network in memory, what prepares its inputs, the names of its parts, and the hash of its tensors."""

    name: str
    net: PreTrainedModel
    processor: Any
    """A transformers processor (vision-language models) or tokenizer (language models)."""
    map: ComponentMap
    manifest: Manifest

    @property
    def id(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of every tensor (`hashing.Manifest.id`)."""
        return self.manifest.id

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, whether it stands alone or inside a processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def is_vision(self) -> bool:
        """Whether the processor prepares pictures."""
        return getattr(self.processor, "image_processor", None) is not None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.net.parameters()).device

    def updated(self, manifest: Manifest) -> Model:
        """The same network after its tensors became those of `manifest`."""
        return replace(self, manifest=manifest)


def assemble(name: str, net: PreTrainedModel, processor: Any) -> Model:
    """A `Model` around a network that is already in memory; hashes its tensors (about a second for each 1.6 GB)."""
    net.eval()
    hold_still(net)
    return Model(name=name, net=net, processor=processor, map=map_model(net, name), manifest=manifest(net))


def providers() -> dict[str, Callable[..., Model]]:
    """Names that packages offer, with what loads each."""
    return {entry.name: _lazily(entry) for entry in entry_points(group=ENTRY_POINTS)}


def load(name: str, *, dtype: str = "auto", device: str | None = None) -> Model:
    """The model called `name`, in evaluation mode.

    `dtype` is `auto` (as stored), `float32`, `bfloat16` or `float16`. Raises `ModelError` for an unknown name, a folder without a
    configuration or without safetensors weights, or one that asks for code of its own to be run.
    """
    offered = providers()
    if name in offered:
        return offered[name](dtype=dtype, device=device)
    folder = Path(name).expanduser()
    if folder.exists():
        check_folder(folder)
        return _from_pretrained(str(folder), name, dtype, device)
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return _from_pretrained(name, name, dtype, device)
    near = get_close_matches(name, offered)
    hint = f"Did you mean {near[0]}?" if near else f"Give a folder, a hub id (organisation/model) or one of: {', '.join(sorted(offered))}."
    raise ModelError(f'"{name}" is neither a folder nor a known model', where="model", then=hint)


def _lazily(entry: Any) -> Callable[..., Model]:
    """Imports the provider only when it is asked for."""

    def provide(**options: Any) -> Model:
        loaded: Model = entry.load()(**options)
        return loaded

    return provide


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Refuses a model folder that could not be loaded, or only by running code or pickle that it brings. Raises ModelError.

    With `weights=False`, which is enough for a map, it need not hold any. What lies in its sub-folders is not looked at: transformers opens
    nothing there, and makers of models keep their original checkpoints in them. An index of weights that points anywhere else than to
    safetensors files beside it is refused, and so is a link that leaves the folder.
    """
    where = f"model {folder}"
    then = "Give the folder that holds config.json and *.safetensors."
    if not folder.is_dir():
        raise ModelError("this is a file", where=where, then=then)
    if not (folder / "config.json").is_file():
        raise ModelError("there is no config.json", where=where, then=then)
    files = sorted(folder.iterdir())
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
    files = sorted(folder.iterdir())
    _check_links(folder, files, where)
    _check_code(files, where)
    tensors = [folder / "adapter_model.safetensors"]
    _check_pickles(files, tensors, where)
    _check_tensors(folder, tensors, where)


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


def _check_code(files: list[Path], where: str) -> None:
    """No Python, and no setting that makes transformers fetch or import some. Its auto classes read all the `*config.json` files."""
    then = "selectune runs no code from a model folder; use a model type that transformers knows."
    for path in files:
        if path.suffix.lower() == ".py":
            raise ModelError(f"the model brings code of its own, {path.name}", where=where, then=then)
        if path.name.endswith("config.json") and path.is_file():
            setting = _code_setting(_read_json(path, LARGEST_CONFIG, where))
            if setting is not None:
                raise ModelError(f"the model asks for code of its own ({path.name}: {setting})", where=where, then=then)


def _check_pickles(files: list[Path], tensors: list[Path], where: str) -> None:
    """No file that runs what its author wrote when it is read."""
    for path in files:
        if path.suffix.lower() in PICKLES:
            then = (
                "Delete it: the safetensors beside it are read instead."
                if tensors
                else "Convert it with save_pretrained, where you trust it."
            )
            raise ModelError(
                f"it holds {path.name}, a kind of file that runs what its author wrote when it is read", where=where, then=then
            )


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
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is no JSON ({error})", where=where, then=then) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} holds no object of settings", where=where, then=then)
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
                pass
        except (SafetensorError, OSError) as error:
            then = "Copy or download the file again: it is damaged, or not all of it is there."
            raise ModelError(f"{path.name} is no whole safetensors file ({error})", where=where, then=then) from error
    names = {path.name for path in tensors}
    for path in sorted(folder.glob("*.safetensors.index.json")):
        places = _read_json(path, LARGEST_INDEX, where).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{path.name} has no weight_map", where=where, then="Export the model again with save_pretrained.")
        for name, file in places.items():
            if file not in names:
                what = f'{path.name} has {name} in "{file}", which is no safetensors file of this folder'
                raise ModelError(what, where=where, then="Put every file that the index names beside it.")


def outline(source: str, name: str) -> PreTrainedModel:
    """The network that `load` makes of a folder or a hub id, with its dtypes and names, on the meta device: no weight is read.

    A folder must have gone through `check_folder`. Raises ModelError as `load` does.
    """
    return _network(source, name, dtype="auto", device_map="meta")


def _from_pretrained(source: str, name: str, dtype: str, device: str | None) -> Model:
    import torch
    from transformers import AutoProcessor

    net: Any = _network(source, name, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    try:
        processor = AutoProcessor.from_pretrained(source)
    except build_failures() as error:
        raise _unloadable(error, name) from error
    return assemble(name, net.to(device) if device else net, processor)


def _network(source: str, name: str, **options: Any) -> PreTrainedModel:
    """Loads by transformers' auto classes: the vision-language class where the configuration has one, else the causal one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        config = AutoConfig.from_pretrained(source)
        family: Any = AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM
        net, report = family.from_pretrained(source, use_safetensors=True, output_loading_info=True, **options)
    except build_failures() as error:
        raise _unloadable(error, name) from error
    if missing := sorted(report["missing_keys"]):
        # transformers fills these with random numbers and goes on: another model at each load.
        what = f"its files lack {len(missing)} of the model's tensors, such as {missing[0]}"
        raise ModelError(
            what, where=f"model {name}", then="Copy the files that are not there, or save the model again with save_pretrained."
        )
    return cast("PreTrainedModel", net)


def _unloadable(error: Exception, name: str) -> ModelError:
    then = "Check the name, or save the model again with save_pretrained (model and processor into one folder)."
    reason = " ".join(str(error).split())[:300]
    return ModelError(f"transformers cannot load it ({reason})", where=f"model {name}", then=then)
