"""Draw what `selectune log`, `diff` and `bisect` print on the demo's registry, into docs/images.

python scripts/build_terminal_pictures.py REGISTRY     after `selectune demo`; bisect measures the demo's model three times (a minute)

The verbs themselves run. A picture refers to nothing outside it, and names no folder of the machine that made it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich._export_format import CONSOLE_SVG_FORMAT
from typer.testing import CliRunner

from selectune.cli import app, screen
from selectune.registry import Registry

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDTH = 136
ALONE = re.sub(r"@font-face \{\{.*?\}\}\n?", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code,", "")
"""Rich's picture without the fonts that it would fetch."""


def draw(name: str, words: list[str], registry: Path) -> None:
    """Runs a verb and writes what it printed. Exits where it fails, prints more than fits, or names a folder."""
    shown = f"selectune {' '.join(words)}"
    made: list[screen._Plain] = []

    class Recorded(screen._Plain):
        def __init__(self, **options: Any) -> None:
            on_stdout = "file" in options
            as_terminal = {
                "record": True,
                "width": WIDTH,
                "force_terminal": True,
                "soft_wrap": False,
            }  # a terminal breaks lines at its edge
            super().__init__(**options | (as_terminal if on_stdout else {}))
            if on_stdout:
                made.append(self)
                self.print(f"$ {shown}", style="bold", markup=False)

    with patch.object(screen, "_Plain", Recorded):
        done = CliRunner().invoke(app, [*words, "--registry", str(registry)])
    if done.exit_code or len(made) != 1:
        sys.exit(f"{shown}: exit code {done.exit_code}\n{done.output}")
    text = made[0].export_text(clear=False)
    long = [line for line in text.splitlines() if len(line) > WIDTH]
    own = [place for place in (str(registry.resolve()), str(Path.home()), tempfile.gettempdir()) if place in text]
    if long or own:
        sys.exit(f"{shown}: does not belong in a picture: {(long or own)[0]}")
    picture = made[0].export_svg(title="selectune", code_format=ALONE, unique_id=name)
    if "http" in picture.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", ""):
        sys.exit(f"{shown}: the picture refers to something outside it")
    (IMAGES / f"{name}.svg").write_text(picture, encoding="utf-8")


def main(folder: str) -> None:
    """Draws the three."""
    place = Path(folder)
    ids = {
        (update.recipe["name"], update.skill): update.id[:12] for update in Registry.open(place).log() if isinstance(update.recipe, dict)
    }
    draw("log", ["log"], place)
    draw("diff", ["diff", ids["demo-language", "digits"], ids["demo-attention", "digits"]], place)
    draw("bisect", ["bisect", "base", ids["demo-language", "counting"], "--task", "shapes"], place)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
