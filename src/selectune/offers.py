"""Names that a package offers and that are imported when they are first used, so that importing it costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["offering"]


def offering(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: `homes` says which of its modules has which names.

    >>> find = offering("selectune.delta", {"format": ("Delta",)})
    >>> find("Delta").__module__
    'selectune.delta.format'
    """
    home = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return find
