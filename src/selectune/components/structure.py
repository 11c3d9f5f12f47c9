"""Where a model's towers are, and each tower's layers: asked of the model and read off its modules, never off whole names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selectune.components.families import families
from selectune.network import walk

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """A list of layers: its path in the model and the component name its layers have."""

    path: str
    prefix: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A part of the model with a job of its own: `language`, `vision`, `audio`, and second ones of a kind."""

    name: str
    path: str
    config: Any
    lists: tuple[Layers, ...] = field(default=())

    @property
    def kind(self) -> str:
        """The family of the tower: vision for vision and for vision_high."""
        return self.name.split("_", maxsplit=1)[0]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The towers, innermost first, and the paths of the word embedding, of the head, and of the body below the head."""

    towers: tuple[Tower, ...]
    embed: str | None
    head: str | None
    body: str | None
    modules: dict[str, nn.Module]

    def tower_of(self, path: str) -> Tower | None:
        """The innermost tower that `path` lies in."""
        return next((tower for tower in self.towers if within(path, tower.path)), None)


def within(path: str, root: str) -> bool:
    """Whether `path` is `root` or lies below it; everything lies below the empty path."""
    return not root or path == root or path.startswith(root + ".")


def below(path: str, root: str) -> str:
    """`path` as seen from `root`."""
    return path[len(root) + 1 :] if root and path != root else ("" if path == root else path)


def outside(path: str) -> str | None:
    """The component of a module beside the towers, such as the projector; None without a rule for it."""
    words = path.split(".")
    while len(words) > 1 and (words[0] in families().wrappers or (words[0] in {"encoder", "decoder"} and words[1] in families().outside)):
        words = words[1:]
    if not words or words[0] not in families().outside:
        return None
    rest = words[1:] if words[0] in families().plain else words
    return ".".join([families().outside[words[0]], *(rest or ["proj"])])


def read_structure(net: nn.Module) -> Structure:
    """The structure of a transformers model (or of any module, taken as one language tower when it says nothing of itself)."""
    places = [place for place in walk(net) if place.host is None]
    # A wrapper comes before what it wraps, under the same path: the path stands for the latter, and either is known by identity.
    modules = {place.path: place.module for place in places}
    by_identity = {id(place.module): place.path for place in reversed(places)}
    embed = _path_of(net, "get_input_embeddings", by_identity)
    head = _path_of(net, "get_output_embeddings", by_identity)
    found = _whole_language(net, list(_towers(net, modules, embed)), by_identity)
    for path in [path for name, path in found if name == "language" and path]:
        embed = embed or _path_of(modules[path], "get_input_embeddings", by_identity)
        head = head or _path_of(modules[path], "get_output_embeddings", by_identity)
    inner = {path for _, path in found}
    towers = [
        Tower(name=name, path=path, config=_config(net, modules, path), lists=_lists(name, path, modules, inner - {path}, head))
        for name, path in found
    ]
    return Structure(
        towers=tuple(sorted(towers, key=lambda tower: -len(tower.path))),
        embed=embed,
        head=head,
        body=_body(net, by_identity),
        modules=modules,
    )


def _whole_language(net: nn.Module, found: list[tuple[str, str]], by_identity: dict[int, str]) -> list[tuple[str, str]]:
    """The towers; the whole model is the language tower where there is no tower of another kind, or where a decoder lies outside it."""
    from transformers import PreTrainedModel

    language = [path for name, path in found if name == "language"]
    others = [row for row in found if row[0].split("_", maxsplit=1)[0] != "language"]
    if not language or not others:
        return [*others, ("language", "")]
    if isinstance(net, PreTrainedModel) and getattr(net.config, "is_encoder_decoder", False):
        decoder = _path_of(net, "get_decoder", by_identity)
        if decoder is not None and not any(within(decoder, path) or within(path, decoder) for path in language):
            return [*others, ("language", "")]
    return found


def _path_of(net: nn.Module, question: str, by_identity: dict[int, str]) -> str | None:
    from transformers import PreTrainedModel

    if not isinstance(net, PreTrainedModel):
        return None
    try:
        answer = getattr(net, question)()
    except NotImplementedError:
        return None
    return by_identity.get(id(answer)) if answer is not None else None


def _body(net: nn.Module, by_identity: dict[int, str]) -> str | None:
    """The path of the model without its heads, which transformers calls the base model; None where that is the whole."""
    from transformers import PreTrainedModel

    if not isinstance(net, PreTrainedModel) or net.base_model is net:
        return None
    return by_identity.get(id(net.base_model))


def _config(net: nn.Module, modules: dict[str, nn.Module], path: str) -> Any:
    config = getattr(modules[path], "config", None) or getattr(net, "config", None)
    return config.get_text_config() if config is not None and path == "" else config


def _kinds(config: Any) -> dict[type, str]:
    """The class of every sub-config, however deep, and the tower it describes."""
    kinds: dict[type, str] = {}
    for key in getattr(config, "sub_configs", {}):
        part = getattr(config, key, None)
        if part is None or type(part) is type(config):
            continue
        if key in families().keys:
            kinds.setdefault(type(part), families().keys[key])
        for inner, kind in _kinds(part).items():
            kinds.setdefault(inner, kind)
    return kinds


def _towers(net: nn.Module, modules: dict[str, nn.Module], embed: str | None) -> Iterator[tuple[str, str]]:
    """Names and paths of the towers, outermost first; `language` is left out when it is the whole model."""
    from transformers import PreTrainedModel

    if not isinstance(net, PreTrainedModel):
        return
    kinds = _kinds(net.config)
    taken: dict[str, str] = {}
    for path, module in modules.items():
        config = getattr(module, "config", None)
        if not path or config is None or type(config) is type(net.config) or any(within(path, other) for other in taken.values()):
            continue
        leaf = path.rsplit(".", maxsplit=1)[-1]
        if leaf in families().outside or _kinds(config):
            continue
        kind = families().second.get(leaf) or kinds.get(type(config))
        if isinstance(module, PreTrainedModel):
            kind = (
                kind or families().inputs.get(module.main_input_name) or ("language" if embed is not None and within(embed, path) else None)
            )
        elif kind == "language":
            # Attention and MLP modules hold the text config too; a text tower is always a model of its own.
            kind = None
        if kind is None:
            continue
        name = kind if kind not in taken else families().second.get(leaf, f"{kind}_{leaf}")
        if name in taken:
            continue
        taken[name] = path
        yield name, path


def _lists(tower: str, root: str, modules: dict[str, nn.Module], inner: set[str], head: str | None) -> tuple[Layers, ...]:
    """The outermost module lists of a tower; the one with most parameters is its layers, the others keep a word of their own."""
    from torch import nn

    found: list[tuple[str, int, int]] = []
    for path, module in modules.items():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or not within(path, root) or len(module) == 0:
            continue
        if any(within(path, other) for other in inner if within(other, root)) or any(within(path, other) for other, _, _ in found):
            continue
        if (head is not None and within(path, head)) or (not root and outside(path) is not None):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        layered = isinstance(module, nn.ModuleList) or any(next(child.children(), None) is not None for child in module)
        if size and layered:
            found.append((path, len(module), size))
    if not found:
        return ()
    decoders = [row for row in found if "decoder" in below(row[0], root).split(".")]
    encoders = [row for row in found if "encoder" in below(row[0], root).split(".")]
    pool = decoders if tower == "language" and decoders and encoders else found
    # A layer has parts of its own: several word embeddings side by side are none, however large.
    first = max(pool, key=lambda row: (any(next(child.children(), None) is not None for child in modules[row[0]].children()), row[2]))
    names = {row[0]: _list_name(tower, below(row[0], root), row is first) for row in found}
    return tuple(Layers(path=path, prefix=names[path], count=count) for path, count, _ in found)


def _list_name(tower: str, path: str, first: bool) -> str:
    """`language.layers` for the first list; `vision.global.layers` or `language.gated_cross_attn_layers` for others."""
    if first:
        return f"{tower}.layers"
    *parents, leaf = path.split(".")
    if leaf in families().parallel:
        return f"{tower}.layers"
    words = [families().spelling.get(word, word) for word in parents if word not in families().wrappers]
    if leaf in {"layers", "layer", "blocks", "block", "h"}:
        leaf = "layers"
    if f"{tower}.{'.'.join([*words, leaf])}" == f"{tower}.layers":
        leaf = path.replace(".", "_")
    return ".".join([tower, *words, leaf])
