"""Law 11: `selectune log` does not import torch; imports point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from selectune.registry import Registry

SOURCE = Path(__file__).parents[2] / "src" / "selectune"

# design.md, section 2; each line may import from its own and from those above it.
LEVELS = (
    ("errors", "faults", "threads", "network", "hashing", "arrivals", "offers"),
    ("recipe", "components", "statistics"),
    ("untrusted",),
    ("models", "records", "delta"),
    ("precision", "quantising"),
    ("training", "evaluation", "probes", "mitigation"),
    ("gates", "monitor"),
    ("registry", "governance"),
    ("advise", "reporting", "embedded"),
    ("pipeline",),
    ("server", "cli"),
    ("__main__",),
)
RANK = {name: rank for rank, level in enumerate(LEVELS) for name in level}
WITHOUT_TORCH = (
    "errors",
    "faults",
    "threads",
    "network",
    "hashing",
    "arrivals",
    "offers",
    "recipe",
    "components",
    "statistics",
    "delta",
    "gates",
    "registry",
    "reporting",
    "cli",
)


def _modules(package: str) -> list[Path]:
    folder = SOURCE / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{package}.py"]


def _imports(path: Path) -> set[str]:
    """The packages of selectune that a module imports when it runs, inside functions too; what only a type checker sees does not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "selectune":
            names = [f"selectune.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        else:
            names = []
        found.update(name.split(".")[1] for name in names if name.startswith("selectune."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _present() -> list[str]:
    return sorted(
        {path.stem if path.is_file() else path.name for path in SOURCE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
        - {"__init__"}
    )


def test_every_module_has_a_place_in_the_order() -> None:
    assert set(_present()) <= set(RANK)


@pytest.mark.parametrize("package", _present())
def test_imports_point_down_only(package: str) -> None:
    upward = {
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in _modules(package)
        for name in _imports(path)
        if RANK.get(name, -1) > RANK[package]
    }
    assert upward == set()


def test_packages_of_one_level_do_not_import_each_other_in_a_circle() -> None:
    graph = {package: {name for path in _modules(package) for name in _imports(path)} - {package} for package in _present()}
    assert list(TopologicalSorter(graph).static_order())


def test_the_reader_of_imports_sees_what_it_must(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from selectune.cli import a\n"
        "from selectune import server\nimport selectune.pipeline as p\ndef f():\n    from selectune.gates import decide\n"
    )
    assert _imports(path) == {"server", "pipeline", "gates"}


@pytest.mark.parametrize("module", [name for name in WITHOUT_TORCH if name in _present()])
def test_importing_does_not_import_torch(module: str) -> None:
    _run(f"import selectune.{module}")


def test_reading_the_log_does_not_import_torch(tmp_path: Path) -> None:
    Registry.open(tmp_path / "r", create=True)
    _run(f"from selectune.registry import Registry; r = Registry.open({str(tmp_path / 'r')!r}); r.log(); r.names(); r.verify().demand()")


def _run(code: str) -> None:
    code += "\nimport sys; sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
