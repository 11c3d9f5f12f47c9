"""A frozen vision tower sees every picture once.

A feature is known by what made it: the sha256 of the picture's bytes, the bytes of every tensor outside the language tower and the head,
and the image processor's settings. So a cache can be shared by training, evaluation and later stages; when the tower changes, its old
features are simply not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selectune.errors import ModelError
from selectune.hashing import digest, tensor_digest
from selectune.network import parameters, state
from selectune.training.store import Store

if TYPE_CHECKING:
    from selectune.models import Model
    from selectune.records import Encoder, Picture

BATCH = 16
"""Pictures that a tower on an accelerator sees at once."""
TOGETHER = 8
"""Pictures that a tower on a CPU sees at once, where that changes no bit: more were slower, as their maps leave the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What one picture becomes, after tower and projector."""

    tokens: Tensor
    """(image tokens, hidden size of the language tower)."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What else the processor said of it, without the pixels (`image_grid_thw`, `image_sizes`): first axis is 1."""


def inject(features: Sequence[Features]) -> dict[str, Any]:
    """Keyword arguments for `net(...)` or `net.generate(...)` that stand for the pixels of these pictures, in the order of the image
    tokens.

    Uses transformers' `mm_encoder_outputs`, the model's own door for pictures that were encoded before; empty for no picture.
    """
    if not features:
        return {}
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    extras = {name: torch.cat([one.extras[name] for one in features]) for name in features[0].extras}
    # A list, one tensor a picture, as `get_image_features` gives it; the declared type of the field knows only one tensor.
    tokens: Any = [one.tokens for one in features]
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tokens)}, **extras}


class FeatureCache:
    """Features of frozen towers, and what enters the first trained layer (`training.cut`), in one `Store`: in memory up to `budget` bytes,
    then up to `disk` bytes in a file.

    Nothing is ever thrown out: when both are used up, further features are computed, handed over and not kept, and `store.refused` counts
    them.
    """

    def __init__(self, budget: int = 1 << 30, *, disk: int = 8 << 30) -> None:
        self.store = Store(budget, disk=disk)
        self.hits = 0
        self.misses = 0
        self.together: dict[str, int] = {}
        """By tower digest, how many pictures it may see at once on a CPU."""

    def __len__(self) -> int:
        return len(self.store)

    def bind(self, model: Model) -> Tower:
        """The cache for `model` as it is now: its tower is hashed here, once. Bind again after the tower changed."""
        return Tower(self, model, tower_digest(model))

    def of(self, model: Model, encoder: Encoder, pictures: Sequence[Picture]) -> list[Features]:
        """`bind` and `Tower.of` in one, for a single use."""
        return self.bind(model).of(encoder, pictures)

    def find(self, key: tuple[str, str]) -> Features | None:
        """What is kept under (tower digest, picture digest)."""
        kept = self.store.find(key)
        if kept is None:
            return None
        return Features(tokens=kept["tokens"], extras={name.removeprefix("+"): one for name, one in kept.items() if name != "tokens"})

    def keep(self, key: tuple[str, str], features: Features) -> None:
        """Keeps `features` while there is room."""
        self.store.keep(key, {"tokens": features.tokens, **{f"+{name}": one for name, one in features.extras.items()}})


class Tower:
    """A model's vision tower and projector with what they made so far."""

    def __init__(self, cache: FeatureCache, model: Model, key: str) -> None:
        self._cache = cache
        self._net: Any = model.net
        self._device = model.device
        self._dtype = _tower_dtype(model)
        self.key = key

    def of(self, encoder: Encoder, pictures: Sequence[Picture]) -> list[Features]:
        """The features of each picture; a picture that is given twice, or was seen before, is not computed again.

        Raises ModelError for a model that has no `get_image_features` or gives other than one feature tensor a picture.
        """
        found: dict[str, Features] = {}
        missing: dict[str, Picture] = {}
        for picture in pictures:
            kept = self._cache.find((self.key, picture.digest))
            if kept is None:
                missing[picture.digest] = picture
            else:
                found[picture.digest] = kept
        self._cache.hits += len(pictures) - len(missing)
        self._cache.misses += len(missing)
        waiting = list(missing.values())
        size = self._at_once(encoder, waiting)
        for start in range(0, len(waiting), size):
            group = waiting[start : start + size]
            for picture, features in zip(group, self._compute(encoder, group), strict=True):
                found[picture.digest] = features
                self._cache.keep((self.key, picture.digest), features)
        return [found[picture.digest] for picture in pictures]

    def _at_once(self, encoder: Encoder, pictures: Sequence[Picture]) -> int:
        """How many pictures the tower is given at a time.

        On a CPU one by one, as a matrix product's last bits may depend on how many rows it has, and a resumed run meets other groups of
        new pictures; unless this very tower was seen to give the same bits for a few of them together, which may be twice as fast.
        """
        if self._device.type != "cpu":
            return BATCH
        if self.key not in self._cache.together and len(pictures) >= 2 * TOGETHER:
            some = pictures[:TOGETHER]
            whole = self._compute(encoder, some)
            alone = [self._compute(encoder, [picture])[0] for picture in some]
            same = all(torch.equal(left.tokens, right.tokens) for left, right in zip(whole, alone, strict=True))
            self._cache.together[self.key] = TOGETHER if same else 1
        return self._cache.together.get(self.key, 1)

    def _compute(self, encoder: Encoder, pictures: Sequence[Picture]) -> list[Features]:
        # An evaluation may call from inference mode; tensors made there could not be used in training.
        with torch.inference_mode(False), torch.no_grad():
            # A copy is aligned as torch aligns, wherever numpy had it: the last bits of a product may depend on that.
            pixels = {
                name: value.to(self._device, self._dtype if value.is_floating_point() else None, copy=True)
                for name, value in encoder.pixels(*([picture] for picture in pictures)).items()
            }
            output = self._net.get_image_features(**pixels, return_dict=True).pooler_output
            tokens = [one.reshape(-1, one.shape[-1]).clone() for one in output]
        if len(tokens) != len(pictures):
            raise ModelError(
                f"{type(self._net).__name__}.get_image_features gave {len(tokens)} tensors for {len(pictures)} pictures",
                then="Set optim.cache_features to false for this model.",
            )
        extras = {name: value for name, value in pixels.items() if name != "pixel_values" and len(value) == len(pictures)}
        return [
            Features(tokens=one, extras={name: value[row : row + 1] for name, value in extras.items()}) for row, one in enumerate(tokens)
        ]


def _tower_dtype(model: Model) -> torch.dtype:
    found = parameters(model.net)
    for component in model.map.components:
        if component.name.startswith("vision"):
            return found[component.parameter].dtype
    return next(iter(found.values())).dtype


def in_language(component: str) -> bool:
    """Whether a component comes after the picture's features: a part of the language tower, or the head."""
    return component == "head" or component.startswith(("language.", "head."))


def tower_digest(model: Model) -> str:
    """64 hex digits for everything that turns pictures into features: tensors as they are now, and the image processor's settings."""
    language = {component.parameter for component in model.map.components if in_language(component.name)}
    tensors = {name: tensor_digest(tensor) for name, tensor in state(model.net).items() if name not in language}
    return digest("vision", [sorted(tensors.items()), settings_digest(model)])


def settings_digest(model: Model) -> str:
    """What besides tensors decides what a model sees in a picture: the image processor's settings, 64 hex digits; empty without one."""
    processor = getattr(model.processor, "image_processor", None)
    return "" if processor is None else hashlib.sha256(processor.to_json_string().encode()).hexdigest()
