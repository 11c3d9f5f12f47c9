"""Names that packages import when they are first used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from selectune.offers import offering

PACKAGES = ("components", "delta", "governance", "pipeline", "probes", "reporting")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_a_package_offers_is_there(package: str) -> None:
    module = import_module(f"selectune.{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module 'selectune.{package}' has no attribute 'no_such'"):
        module.no_such  # noqa: B018


def test_a_name_is_imported_when_it_is_asked_for_and_not_before() -> None:
    program = (
        "import sys, selectune.delta as delta\n"
        "assert 'selectune.delta.format' not in sys.modules\n"
        "assert delta.Delta.__name__ == 'Delta'\n"
        "assert 'selectune.delta.format' in sys.modules and 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_module_that_is_not_there_is_an_error_of_its_own() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"selectune\.delta\.nowhere"):
        offering("selectune.delta", {"nowhere": ("Delta",)})("Delta")
