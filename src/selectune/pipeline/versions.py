"""Models by any of their names, an update of the registry among them; and an update as a full checkpoint."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.components import map_architecture, map_model
from selectune.delta import apply
from selectune.errors import InputError, ModelError, RegistryError, StorageError
from selectune.models import load, providers
from selectune.pipeline.recording import MODEL
from selectune.registry import Registry

if TYPE_CHECKING:
    from selectune.components import ComponentMap
    from selectune.models import Model

ARCHITECTURE = "arch:"
NOTE = "selectune.json"
"""The file of a full checkpoint that says which update it is."""


def load_any(name: str, registry: str) -> Model:
    """A model by the name that `models.load` knows, else by a name or id of an update in the registry. Raises ModelError for neither."""
    if name in providers() or Path(name).expanduser().exists() or "/" in name:
        return load(name)
    try:
        found = Registry.open(registry)
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
    if name.startswith(ARCHITECTURE):
        return map_architecture(name.removeprefix(ARCHITECTURE))
    folder = Path(name).expanduser()
    if name not in providers() and (folder / "config.json").is_file():
        return _map_folder(folder, name)
    return load_any(name, registry).map


def _map_folder(folder: Path, name: str) -> ComponentMap:
    """From the configuration alone, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        config = AutoConfig.from_pretrained(folder)
        family: Any = AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM
        with torch.device("meta"):
            net = family.from_config(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"its config.json builds no model ({reason})", where=f"model {name}", then="Save it again with save_pretrained."
        ) from error
    return map_model(net, name)


def load_version(registry: Registry, identity: str) -> Model:
    """The model of an update: its base, loaded by the name that was recorded, with every delta from there on applied and checked.

    Raises RegistryError for an unknown update, ModelError for a base that is not there, WrongParent for a base that is not what it was.
    """
    update = registry.show(identity)
    name = update.meta.get(MODEL)
    if not isinstance(name, str):
        raise RegistryError(
            f"update {update.id[:12]} does not say which model it is of", where=registry.where, then="Load the base and apply its deltas."
        )
    model = load(name)
    for delta in registry.chain(update.id):
        model = apply(model, delta)
    return model


def save_full(registry: Registry, identity: str, out: Path) -> Path:
    """An update as a full checkpoint in a new folder: weights named as in its base's files, configuration, processor, `selectune.json`.

    The folder is whole or not there. Raises InputError for one that is not empty, ModelError where transformers would write other
    tensors than the base's files hold, StorageError for a full disk, and what `load_version` raises.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is there already and not empty", where=str(out), then="Give a new folder.")
    update = registry.show(identity)
    model = load_version(registry, identity)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            model.net.save_pretrained(partial)
            model.processor.save_pretrained(partial)
            _check_keys(Path(model.name).expanduser(), partial)
            note = {"update": update.id, "parent": update.parent, "model_id": model.id, "base": model.name, "verdict": update.verdict}
            (partial / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
            partial.chmod(0o755)
            if out.exists():
                out.rmdir()
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror})", where=str(out), then="Free space, or choose another folder.") from error
    return out


def _check_keys(base: Path, made: Path) -> None:
    """The same tensor names in both folders; a base that is no folder of safetensors has none to compare."""
    wanted, found = _keys(base), _keys(made)
    if wanted and wanted != found:
        odd = sorted(wanted ^ found)
        what = f"{len(odd)} tensors would be in one of base and checkpoint only, such as {odd[0]}"
        raise ModelError(
            what, where=str(made), then="Save the base again with this version of transformers, and record its updates on that."
        )


def _keys(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names
