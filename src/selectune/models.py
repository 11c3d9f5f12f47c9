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
from typing import TYPE_CHECKING, Any

from selectune.components import ComponentMap, map_model
from selectune.errors import ModelError
from selectune.hashing import Manifest, manifest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ENTRY_POINTS = "selectune.models"
# Loading any of these runs pickle, which runs whatever its author wrote.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


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
        _check_folder(folder)
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


def _check_folder(folder: Path) -> None:
    """Refuses a folder that transformers could not load, or only by running pickle or code from it."""
    where = f"model {folder}"
    if not folder.is_dir():
        raise ModelError("this is a file", where=where, then="Give the folder that holds config.json and *.safetensors.")
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError("there is no config.json", where=where, then="Give the folder that holds config.json and *.safetensors.")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"config.json is no JSON ({error})", where=where, then="Export the model again with save_pretrained.") from error
    if "auto_map" in json.dumps(settings) or any(folder.glob("*.py")):
        then = "selectune runs no code from a model folder; use a model type that transformers knows."
        raise ModelError("the model brings code of its own (auto_map or *.py)", where=where, then=then)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        found = f"; it holds {pickles[0]}, which loading would run as pickle" if pickles else ""
        then = "Convert it with save_pretrained (safetensors). `selectune map` needs no weights: use arch:TYPE."
        raise ModelError(f"there are no *.safetensors weights{found}", where=where, then=then)


def _from_pretrained(source: str, name: str, dtype: str, device: str | None) -> Model:
    """Loads by transformers' auto classes: the vision-language class where the configuration has one, else the causal one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    kind: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        config = AutoConfig.from_pretrained(source)
        family: Any = AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM
        net = family.from_pretrained(source, dtype=kind, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        then = "Check the name, or save the model again with save_pretrained (model and processor into one folder)."
        raise ModelError(f"transformers cannot load it ({error})", where=f"model {name}", then=then) from error
    return assemble(name, net.to(device) if device else net, processor)
