"""Load a model with its processor, its component map and its identity.

A model's name is a local folder, a hub id that is already in the local cache, or a name that an installed package offers under the
entry-point group `selectune.models` (`embedded` comes with selectune). Weights are read from safetensors only and no code from a model
folder is ever run.
"""

from __future__ import annotations

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
from selectune.untrusted import check_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ENTRY_POINTS = "selectune.models"


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
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except build_failures() as error:
        raise _unloadable(error, name) from error
    return assemble(name, net.to(device) if device else net, processor)


def _network(source: str, name: str, **options: Any) -> PreTrainedModel:
    """Loads by transformers' auto classes: the vision-language class where the configuration has one, else the causal one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        # Said, not left open: transformers would ask whoever sits at the terminal.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        family: Any = AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM
        net, report = family.from_pretrained(source, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **options)
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
