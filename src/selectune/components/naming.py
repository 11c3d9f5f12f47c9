"""The name of each parameter: its tower and layer from the structure, its role from the table of leaf names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selectune.components.families import families, first_match
from selectune.components.structure import Layers, Structure, Tower, below, outside, within

if TYPE_CHECKING:
    from torch import nn

_LEAVES = {"weight", "bias"}
_EARLY = re.compile(
    r"(?:.*\.)?(?:(?:embeddings?|word_embedding\w*|embed_tokens)\..*|\w*emb\w*norm\w*|layer_?norm_emb\w*)",
    re.IGNORECASE,
)
_LATE = re.compile(
    r"(?:.*\.)?(?:norm|layer_?norm|final\w*|ln_f|norm_f|ln_post|post_?\w*norm\w*|last\w*|layernorm_post|norm_out)", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A parameter's component name, and the tower whose config describes its shape."""

    name: str
    tower: Tower | None


def place(structure: Structure, parameter: str) -> Place:
    """Where `parameter` (its in-memory name) belongs. Names without evidence start with `other.`."""
    owner, leaf = parameter.rpartition(".")[::2]
    path = owner if leaf in _LEAVES else parameter
    if structure.embed is not None and within(path, structure.embed):
        language = structure.tower_of(structure.embed)
        inner = below(path, structure.embed)
        if inner and _is_norm(structure.modules.get(path)):
            return Place(name="language.embed_norm", tower=language)
        return Place(name="language.embed", tower=language)
    if structure.head is not None and within(path, structure.head):
        return Place(name="head", tower=structure.tower_of(structure.head))
    tower = structure.tower_of(path)
    if tower is not None and tower.path == "" and _beyond(structure, path):
        return Place(name=f"head.{path}", tower=tower)
    if tower is None or (tower.path == "" and outside(path) is not None):
        return Place(name=outside(path) or f"other.{path}", tower=None)
    return Place(name=_in_tower(structure, tower, path), tower=tower)


def adapter_name(host: str, parameter: str, beside: str) -> str:
    """What a wrapper put beside the component `host`, by the names of the two parameters.

    >>> adapter_name("language.layers.3.attn.q", "layers.3.q_proj.lora_A.default.weight", "layers.3.q_proj.weight")
    'language.layers.3.adapter.attn.q.lora_A.default'
    """
    words = host.split(".")
    at = next((index for index, word in enumerate(words) if word.isdigit()), 0) + 1
    root = beside if within(parameter, beside) else beside.rpartition(".")[0]
    rest = below(parameter, root).removesuffix(".weight")
    return ".".join([*words[:at], "adapter", *words[at:], rest])


def _beyond(structure: Structure, path: str) -> bool:
    """Whether `path` lies outside the base model: what is built on it, such as BERT's transform before the output layer."""
    return structure.body is not None and not within(path, structure.body) and outside(path) is None


def _in_tower(structure: Structure, tower: Tower, path: str) -> str:
    inner = below(path, tower.path)
    words = [word for word in inner.split(".") if word not in families().wrappers]
    if tower.kind != "language":
        at = next((index for index, word in enumerate(words) if word in families().inside), None)
        if tower.kind == "vision" and at is not None:
            rest = words[at + 1 :] if words[at] in families().plain else words[at:]
            return ".".join(["projector", *(rest or ["proj"])])
    layers = next((found for found in tower.lists if within(path, found.path)), None)
    if layers is not None:
        return _in_layer(structure, tower, layers, path)
    return _stem(structure, tower, path, inner)


def _in_layer(structure: Structure, tower: Tower, layers: Layers, path: str) -> str:
    index, _, inner = below(path, layers.path).partition(".")
    prefix = f"{layers.prefix}.{index}"
    owner = structure.modules.get(path)
    if not inner:
        return f"{prefix}.norm.{layers.path.rpartition('.')[2]}" if _is_norm(owner) else prefix
    beside = _beside(structure, path)
    if _is_norm(owner):
        return f"{prefix}.{first_match(families().norms, inner, beside) or _norm_name(inner)}"
    role = first_match(families().layer, inner, beside)
    if role is not None:
        return f"{prefix}.{role}"
    return f"other.{path}" if tower.kind == "language" else f"{prefix}.{inner}"


def _norm_name(inner: str) -> str:
    return "norm." + ".".join(word for word in inner.split(".") if word != "layer").lower()


def _beside(structure: Structure, path: str) -> tuple[str, ...]:
    """Names of what stands next to any module on the way from the layer to the part: children and parameters of its parents."""
    names: list[str] = []
    parent = path
    for _ in range(3):
        parent = parent.rpartition(".")[0]
        module = structure.modules.get(parent)
        if module is None or parent.rpartition(".")[2].isdigit():
            break
        names += [name for name, _ in module.named_children()]
        names += [name for name, _ in module.named_parameters(recurse=False)]
    if structure.modules.get(path) is not None:
        names += [name for name, _ in structure.modules[path].named_children()]
    return tuple(names)


def _stem(structure: Structure, tower: Tower, path: str, inner: str) -> str:
    """Parts of a tower outside its layers."""
    owner = structure.modules.get(path)
    part = _part(tower, inner)
    head = f"{tower.name}.{part}" if part else tower.name
    if tower.kind == "language" and (special := first_match(families().language_stem, inner)) is not None:
        return f"{head}.{special}"
    if tower.kind == "language" and (beyond := _near_head(structure, path)) is not None:
        return beyond
    if _is_norm(owner) and tower.kind == "language":
        return f"{head}.{_norm_role(structure, tower, path, inner)}"
    name = first_match(families().stem, inner)
    if name is not None:
        return f"{head}.{name}"
    if tower.kind == "language":
        return _language_stem(path, inner, head)
    inputs = _inputs(structure, tower)
    if inputs is not None and within(path, inputs):
        return f"{head}.patch"
    if _is_norm(owner) and "." not in inner:
        return f"{head}.norm" if _LATE.fullmatch(inner) or not _before_layers(structure, tower, path) else f"{head}.embed_norm"
    return f"{tower.name}.{'.'.join(word for word in inner.split('.') if word not in families().wrappers) or 'proj'}"


def _language_stem(path: str, inner: str, head: str) -> str:
    """Other word embeddings than the model's own, such as an encoder's; the rest has no name."""
    *parents, leaf = inner.split(".")
    if leaf not in {"embed_tokens", "shared", "word_embeddings", "wte", "embed_in"}:
        return f"other.{path}"
    between = [word for word in parents if word not in families().wrappers and word not in {"decoder", "transformer", *head.split(".")}]
    return ".".join([head, *between, "embed"])


def _near_head(structure: Structure, path: str) -> str | None:
    """`head.…` for what lies in the module that holds the output layer alone, such as BERT's transform before it; else None."""
    root = structure.head.rpartition(".")[0] if structure.head else ""
    if not root or not within(path, root) or (structure.embed is not None and within(structure.embed, root)):
        return None
    return f"head.{below(path, root) or root.rpartition('.')[2]}"


def _part(tower: Tower, inner: str) -> str:
    """`encoder` for the encoder of a text tower that has a decoder too."""
    words = inner.split(".")
    return "encoder" if f"{tower.name}.encoder.layers" in {found.prefix for found in tower.lists} and "encoder" in words else ""


def _norm_role(structure: Structure, tower: Tower, path: str, inner: str) -> str:
    if _EARLY.fullmatch(inner):
        return "embed_norm"
    return "embed_norm" if not _LATE.fullmatch(inner) and _before_layers(structure, tower, path) else "norm"


def _before_layers(structure: Structure, tower: Tower, path: str) -> bool:
    """Whether the module was made before the tower's layers."""
    order = list(structure.modules)
    main = next((found.path for found in tower.lists if found.prefix == f"{tower.name}.layers"), None)
    return main is not None and path in structure.modules and order.index(path) < order.index(main)


def _inputs(structure: Structure, tower: Tower) -> str | None:
    """The path of the module that a tower names as its input embedding."""
    from transformers import PreTrainedModel

    module = structure.modules[tower.path]
    if not isinstance(module, PreTrainedModel):
        return None
    try:
        answer = module.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return next(
        (path for path, found in structure.modules.items() if found is answer and within(path, tower.path) and path != tower.path), None
    )


def _is_norm(module: nn.Module | None) -> bool:
    return module is not None and "Norm" in type(module).__name__


def names(structure: Structure, parameters: Sequence[str]) -> dict[str, Place]:
    """The place of every parameter."""
    return {parameter: place(structure, parameter) for parameter in parameters}
