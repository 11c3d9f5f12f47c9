"""Models by any of their names, an update of the registry among them; and an update as a full checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from selectune.components import map_model
from selectune.components.architecture import build_architecture, build_failures
from selectune.delta import apply
from selectune.errors import ModelError, RegistryError
from selectune.models import load, providers
from selectune.pipeline.checkpoint import check_new, save_checkpoint
from selectune.pipeline.recording import MODEL
from selectune.pipeline.slots import has_weights, read_slots, weight_folder
from selectune.pipeline.witnessing import open_registry
from selectune.registry import Registry
from selectune.untrusted import check_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selectune.components import ComponentMap
    from selectune.components.disk import Stored
    from selectune.governance import PrivateKey
    from selectune.models import Model
    from selectune.pipeline.progress import Progress
    from selectune.registry import Admitted

ARCHITECTURE = "arch:"
REGISTRY = "registry:"


def load_any(name: str, registry: str) -> Model:
    """A model by the name that `models.load` knows, else by a name or id of an update in the registry. Raises ModelError for neither.

    ``registry:NAME`` is an update in any case. Before a weight of an update is used, `Registry.admit` checks everything that leads to it.
    """
    if name.startswith(REGISTRY):
        return load_version(open_registry(registry), name.removeprefix(REGISTRY))
    if name in providers() or Path(name).expanduser().exists() or "/" in name:
        return load(name)
    try:
        found = open_registry(registry)
        found.show(name)
    except RegistryError as error:
        then = f"{error.then} Or give a folder, a hub id, or one of: {', '.join(sorted(providers()))}."
        raise ModelError(
            f'"{name}" is no folder, no known model, and no update in {registry} ({error.what})', where="model", then=then
        ) from error
    return load_version(found, name)


def map_any(name: str, registry: str) -> ComponentMap:
    """The component map of a model by any of its names, or of ``arch:MODEL_TYPE``. A folder needs a config.json and no weights.

    Raises ModelError, and NotYet for an architecture whose default configuration does not build.
    """
    return outlined(name, registry)[1]


def locate_any(name: str, registry: str) -> tuple[ComponentMap, tuple[tuple[Stored, ...], ...]]:
    """The map as `map_any` gives it, and for each of its components where that lies on disk.

    Names are those of the model's own files where it has some, else those that transformers would write. Raises as `map_any`.
    """
    from selectune.components.disk import disk_names, follow, in_files

    net, found = outlined(name, registry)
    folder = None if name.startswith(ARCHITECTURE) else weight_folder(found.model)
    slots = read_slots(folder) if folder is not None and has_weights(folder) else {}
    if slots:
        follow(net, slots)
    prefix = net.base_model_prefix
    rows = disk_names(net, found)
    return found, tuple(tuple(replace(one, name=in_files(one.name, slots, prefix) or one.name) for one in row) for row in rows)


def outlined(name: str, registry: str) -> tuple[PreTrainedModel, ComponentMap]:
    """A network, on the meta device where a configuration is enough for it, and its map."""
    if name.startswith(ARCHITECTURE):
        net = build_architecture(name.removeprefix(ARCHITECTURE))
        return net, map_model(net, name)
    folder = Path(name).expanduser()
    if name not in providers() and (folder / "config.json").is_file():
        check_folder(folder, weights=False)
        net = _empty(folder, name)
        return net, map_model(net, name)
    model = load_any(name, registry)
    return model.net, model.map


def _empty(folder: Path, name: str) -> PreTrainedModel:
    """From the configuration alone, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        config = AutoConfig.from_pretrained(folder)
        family: Any = AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM
        with torch.device("meta"):
            net = family.from_config(config)
    except build_failures() as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"its config.json builds no model ({reason})", where=f"model {name}", then="Save it again with save_pretrained."
        ) from error
    return cast("PreTrainedModel", net)


def load_version(registry: Registry, identity: str) -> Model:
    """The model of an update: its base, loaded by the name that was recorded, with every delta from there on applied and checked.

    Raises what `Registry.admit` raises before a weight is read, ModelError for a base that is not there, WrongParent for a base that is not
    what it was.
    """
    return _version(registry, registry.admit(identity))


def _version(registry: Registry, admitted: Admitted) -> Model:
    """The model of an update that may be loaded."""
    model = load(_base(registry, admitted))
    for delta in admitted.deltas:
        model = apply(model, delta)
    return model


def _base(registry: Registry, admitted: Admitted) -> str:
    """The name of the model that an update's line begins with."""
    name = admitted.update.meta.get(MODEL)
    if not isinstance(name, str):
        what = f"update {admitted.update.id[:12]} does not say which model it is of"
        raise RegistryError(what, where=registry.where, then="Load the base and apply its deltas.")
    return name


def save_full(registry: Registry, identity: str, out: Path, *, sign: PrivateKey | None = None, progress: Progress | None = None) -> Path:
    """An update as a full checkpoint in a new folder: weights named as in its base's files, configuration, processor, `selectune.json`.

    With `sign` it holds ``model.sig`` too. The folder is whole or not there. Raises what `Registry.admit` raises, before anything of the
    base is read, and what `save_checkpoint` raises.
    """
    check_new(out)
    admitted = registry.admit(identity)
    update = admitted.update
    note = {"update": update.id, "parent": update.parent, "verdict": update.verdict, "notes": list(admitted.notes)}
    return save_checkpoint(_base(registry, admitted), admitted.deltas, out, note=note, sign=sign, progress=progress)
