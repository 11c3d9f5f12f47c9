"""Something is done as soon as a module of another package has been imported, without importing it before anybody wants it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    # When the program runs, it would take as long to import as everything else here together.
    from importlib.abc import Loader

__all__ = ["when_imported"]

Job = Callable[[], None]


def when_imported(module: str, job: Job) -> None:
    """Does `job` once the module of that name is there: now, or right after it has been imported for the first time."""
    if module in sys.modules:
        job()
    else:
        _watcher.jobs[module] = job
        if _watcher not in sys.meta_path:
            sys.meta_path.insert(0, _watcher)


class _Watcher:
    """Finds nothing by itself; whoever does find a module that is waited for gets the job along."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As Python's import asks for it."""
        if fullname not in self.jobs:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target)) is not None), None)
        if found is not None and found.loader is not None:
            found.loader = cast("Loader", _Then(found.loader, self.jobs[fullname]))
        return found


class _Then:
    """A module's own loader, and a job after it."""

    def __init__(self, loader: Loader, job: Job) -> None:
        self._loader = loader
        self._job = job

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """The same, and then the job."""
        # Whoever reads the module's source or resources later asks its own loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._job()


_watcher = _Watcher()
