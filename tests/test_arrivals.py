"""A job is done as soon as a module has been imported, and the module notices nothing of it."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from selectune.arrivals import when_imported


def test_a_job_waits_for_the_module_and_is_done_once_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arrives_later.py").write_text("said = ['imported']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    when_imported("arrives_later", lambda: sys.modules["arrives_later"].said.append("job"))
    assert "arrives_later" not in sys.modules
    module = importlib.import_module("arrives_later")
    assert module.said == ["imported", "job"]
    importlib.import_module("arrives_later")
    assert module.said == ["imported", "job"]
    assert inspect.getsource(module) == "said = ['imported']\n"
    monkeypatch.delitem(sys.modules, "arrives_later")


def test_a_job_for_a_module_that_is_there_is_done_at_once() -> None:
    done: list[str] = []
    when_imported("sys", lambda: done.append("done"))
    assert done == ["done"]


def test_a_module_that_is_waited_for_and_does_not_exist_is_missing_as_ever() -> None:
    when_imported("nowhere_at_all", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        importlib.import_module("nowhere_at_all")


def test_transformers_knows_the_embedded_tower_once_it_is_imported() -> None:
    from transformers import AutoConfig

    from selectune.embedded.configuration import EfficientNetLiteConfig

    assert isinstance(AutoConfig.for_model("selectune_efficientnet_lite"), EfficientNetLiteConfig)


def test_the_tower_can_be_the_first_thing_that_a_process_imports() -> None:
    script = """
from selectune.embedded import tower
from transformers import AutoModel
print(type(AutoModel.from_config(tower.EfficientNetLiteConfig())).__name__)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "EfficientNetLiteModel"
