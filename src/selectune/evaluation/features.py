"""One feature cache for each network, so that a suite which is measured after every stage encodes its pictures once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from selectune.training.features import FeatureCache, Tower

if TYPE_CHECKING:
    from selectune.models import Model

_CACHES: WeakKeyDictionary[nn.Module, tuple[str, FeatureCache]] = WeakKeyDictionary()


def tower(model: Model) -> Tower:
    """The network's features as its vision part is now. When that part has changed the old ones go; with the network all of them go."""
    key, cache = _CACHES.get(model.net, ("", FeatureCache()))
    bound = cache.bind(model)
    if bound.key != key:
        cache = FeatureCache()
        bound = cache.bind(model)
    _CACHES[model.net] = (bound.key, cache)
    return bound
