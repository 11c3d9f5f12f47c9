"""A LoRA adapter of PEFT on a base, tensor by tensor: the same sums that `training.adapter` makes when a training ends.

The matrices are read from safetensors and the settings from JSON; PEFT is not asked, and nothing that the folder holds is run. Source of
the update of a weight: Hu et al. (2021), ``alpha / rank * B @ A``; with `use_rslora` ``alpha / sqrt(rank)``, Kalajdzievski (2023).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from selectune.errors import ModelError, NotYet
from selectune.hashing import canonical, parse_json
from selectune.network import class_name, walk
from selectune.pipeline.slots import read_slot, slots_of
from selectune.untrusted import check_adapter

if TYPE_CHECKING:
    from selectune.pipeline.tensors import Tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FACTORS = "factors.safetensors"
"""The attachment of an update of low rank that holds the two matrices of each weight."""
_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.weight)?\Z")
_NOT_PLAIN = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices"),
    *("alora_invocation_tokens", "arrow_config", "megatron_config"),
)
"""Settings with which an update is more than ``B @ A``, or is of something else than a module's weight."""
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Ways of `init_lora_weights` that take something out of the base: the adapter is not for the base as it is."""


class AdapterTensors:
    """What an adapter makes of a base's tensors."""

    def __init__(self, base: Tensors, folder: Path) -> None:
        """Checks the folder. Raises ModelError for one that is no LoRA adapter of the base, NotYet for a kind that is not plain LoRA."""
        check_adapter(folder)
        self._base, self._where = base, f"adapter {folder}"
        self._settings = _settings(folder, self._where)
        slots = slots_of(folder, WEIGHTS)
        modules = {place.path: place.module for place in walk(base.net)}
        wrapped = _wrapped(self._settings.get("target_parameters") or [], modules)
        self._bare = frozenset(name for names in wrapped.values() for name in names)
        self._matrices: dict[str, dict[str, Tensor]] = {}
        strange = []
        for name in slots:
            match = _MATRIX.match(name.removeprefix(_PREFIX))
            weight = _weight(match["module"], wrapped) if match else name.removeprefix(_PREFIX).replace(".base_layer.weight", ".weight")
            if not name.startswith(_PREFIX) or weight not in base.manifest:
                strange.append(name)
            elif match is not None:
                self._matrices.setdefault(weight, {})[match["which"]] = read_slot(folder, slots[name], name)
            elif not torch.equal(read_slot(folder, slots[name], name).float(), base.read(weight).float()):
                strange.append(name)  # PEFT saves embeddings along, of which only unchanged ones are the base's
        if strange:
            shown = ", ".join(name[:120] for name in strange[:3])
            what = f"{len(strange)} of its {len(slots)} tensors belong to no weight of the base, or are another one: {shown}"
            raise ModelError(what, where=self._where, then="Give the base that it was trained on, with the vocabulary that it had.")
        self._modules = {name: modules[name.rpartition(".")[0]] for name in self._matrices}
        if half := sorted(name for name, pair in self._matrices.items() if len(pair) != 2):
            raise ModelError(f"it has one of the two matrices for {half[0]}", where=self._where, then="Save the adapter again.")

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that it changes."""
        return tuple(name for name in self._base.names if name in self._matrices)

    def read(self, name: str) -> Tensor:
        """One weight with its update added, in fp32 and rounded once. Raises ModelError for matrices of another shape."""
        old = self._base.read(name)
        change = self._update(name, self._modules[name])
        if change.shape != old.shape:
            what = f"its update of {name} is {list(change.shape)}, the weight {list(old.shape)}"
            raise ModelError(what, where=self._where, then="Give the base that it was trained on.")
        if name in self._bare:
            change = change.to(old.dtype)  # PEFT rounds the update of a bare parameter to its dtype first
        return (old.float() + change.float()).to(old.dtype)

    def factors(self) -> bytes:
        """The matrices as a safetensors file: `NAME.A` and `NAME.B` by the weight's name, as PEFT shapes them and in their own dtype.

        Its metadata has the one key `factors`, JSON: ``{"format": 1, "scales": {NAME: number}}``, by which their product is multiplied.
        The same adapter gives the same bytes. Raises ModelError for matrices of another rank than the settings say.
        """
        held = {f"{name}.{which}": matrix.contiguous() for name, pair in self._matrices.items() for which, matrix in pair.items()}
        scales = {name: self._scale(name.rpartition(".")[0], self._rank(name, pair["A"])) for name, pair in self._matrices.items()}
        return save(held, {"factors": canonical({"format": 1, "scales": scales}).decode()})

    def _update(self, name: str, module: nn.Module) -> Tensor:
        a, b = (self._matrices[name][which].float() for which in "AB")
        rank = a.shape[0] if a.ndim else 0
        if a.ndim < 2 or b.ndim != a.ndim or b.shape[1] != rank:
            what = f"its matrices for {name} are {list(a.shape)} and {list(b.shape)}"
            raise ModelError(what, where=self._where, then="Save the adapter again with PEFT's save_pretrained.")
        if name in self._bare:
            return self._of_parameter(name, a, b, module)
        scale = self._scale(name.rpartition(".")[0], rank)
        kind = class_name(module)
        if kind in ("Conv2d", "Conv3d"):
            return _convolved(a, b, module) * scale
        if a.ndim != 2:
            raise ModelError(f"{name} is of {kind}, and its matrices have {a.ndim} axes", where=self._where, then="Save the adapter again.")
        product = b @ a
        return (product.T if kind in ("Conv1D", "Embedding") else product) * scale

    def _of_parameter(self, name: str, a: Tensor, b: Tensor, module: nn.Module) -> Tensor:
        """The update of a parameter that has no layer of its own: packed experts, each with some of the rows of A and columns of B."""
        experts, rank = self._experts(name), self._rank(name, a)
        scale = self._scale(name.rpartition(".")[0], rank)
        if experts == 1 or a.shape[0] != rank * experts:
            return (b @ a) * scale
        order = "e i o" if getattr(module, "is_transposed", False) else "e o i"
        return torch.einsum(f"o r e, e r i -> {order}", b.reshape(len(b), -1, experts), a.reshape(experts, -1, a.shape[1])) * scale

    def _experts(self, name: str) -> int:
        """How many experts a weight packs; 1 for every other one."""
        shape = self._modules[name].get_parameter(name.rpartition(".")[2]).shape
        return shape[0] if name in self._bare and len(shape) == 3 else 1

    def _rank(self, name: str, a: Tensor) -> int:
        """Of one weight's matrices, of which packed experts have a part each."""
        return a.shape[0] // self._experts(name) if a.ndim else 0

    def _scale(self, module: str, rank: int) -> float:
        """Alpha over the rank, or over its root, with the patterns that name a module by the end of its path."""
        alpha = self._pattern("alpha_pattern", module, self._settings["lora_alpha"])
        said = self._pattern("rank_pattern", module, self._settings["r"])
        if said != rank:
            raise ModelError(f"{module} has matrices of rank {rank}, its settings say {said}", where=self._where, then="Save it again.")
        return float(alpha) / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)

    def _pattern(self, key: str, module: str, otherwise: Any) -> Any:
        found: Mapping[str, Any] = self._settings.get(key) or {}
        return next((value for name, value in found.items() if module == name or module.endswith(f".{name}")), otherwise)


def _wrapped(targets: Sequence[str], modules: Mapping[str, nn.Module]) -> Mapping[str, tuple[str, ...]]:
    """By module: its parameters that PEFT wraps, the innermost wrapper's first. A target is a parameter's path, or the end of one."""
    found: dict[str, tuple[str, ...]] = {}
    for path, module in modules.items():
        names = tuple(f"{path}.{leaf}" for leaf, _ in module.named_parameters(recurse=False))
        if mine := tuple(name for name in names if any(name == one or name.endswith(f".{one}") for one in targets)):
            found[path] = mine
    return found


def _weight(module: str, wrapped: Mapping[str, tuple[str, ...]]) -> str:
    """The parameter that matrices at a module of PEFT's are for: of several wrapped ones, each wrapper has the next as `base_layer`."""
    path, inner = module, 0
    while path.endswith(".base_layer"):
        path, inner = path.removesuffix(".base_layer"), inner + 1
    names = wrapped.get(path, ())
    return names[-1 - inner] if inner < len(names) else f"{module}.weight"


def _settings(folder: Path, where: str) -> Mapping[str, Any]:
    found = parse_json((folder / CONFIG).read_bytes())
    if not isinstance(found, dict):
        raise ModelError(f"{CONFIG} holds no settings", where=where, then="Save the adapter again with PEFT's save_pretrained.")
    then = "Merge it where it was trained (PEFT's merge_and_unload), save that, and import its folder."
    if found.get("peft_type") != "LORA":
        raise NotYet(f"an adapter of the kind {str(found.get('peft_type'))[:40]}", where=where, then=then)
    odd = [key for key in _NOT_PLAIN if found.get(key)] + ([] if found.get("bias", "none") == "none" else ["bias"])
    initial = found.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.startswith(_CHANGES_BASE):
        odd.append("init_lora_weights")
    if odd:
        shown = f"{odd[0]}: {str(found[odd[0]])[:80]}"
        raise NotYet(f"LoRA with {shown}", where=where, then=then)
    targets = found.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(one, str) for one in targets):
        raise ModelError(f"target_parameters is {str(targets)[:80]}", where=where, then="Save the adapter again.")
    patterns = [name for key in ("alpha_pattern", "rank_pattern") for name in found.get(key) or {}]
    if regular := [name for name in patterns if not re.fullmatch(r"[\w.]+", name)]:
        raise NotYet(f'the pattern "{regular[0][:80]}", a regular expression', where=where, then=then)
    numbers = [found.get("r"), found.get("lora_alpha"), *(found.get("alpha_pattern") or {}).values()]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and one > 0 for one in numbers):
        raise ModelError(f"r and lora_alpha are {str(numbers)[:80]}", where=where, then="Save the adapter again.")
    return found


def _convolved(a: Tensor, b: Tensor, module: nn.Module) -> Tensor:
    """The kernel that does what A and then B do."""
    if a.ndim != module.weight.ndim or getattr(module, "groups", 1) != 1:
        raise NotYet("LoRA on a convolution in groups", then="Merge it where it was trained, save that, and import its folder.")
    if a.ndim == 4 and a.shape[2:] == (1, 1):
        return (b[:, :, 0, 0] @ a[:, :, 0, 0])[:, :, None, None]
    convolve = nn.functional.conv2d if a.ndim == 4 else nn.functional.conv3d
    return convolve(a.transpose(0, 1), b).transpose(0, 1)
