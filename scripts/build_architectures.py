"""Write docs/reference/architectures.md: every architecture that transformers builds, with its families of components.

python scripts/build_architectures.py            write it (about a minute)
python scripts/build_architectures.py --check    exit 1 if it is not current
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from selectune.components import ComponentMap, map_architecture
from selectune.components.architecture import causal_types, image_text_types
from selectune.errors import SelectuneError

INTRODUCTION = """`selectune map arch:TYPE` for every type that transformers lists, from its default config, without weights. Families are
component names with `*` for indices, without their layer's prefix; the command shows them with counts."""
UNUSUAL = """Unusual: `slices` are roles that share one tensor; `packed experts` are slices of a tensor with one axis of experts;
`transposed` tensors store inputs first; `tied` names are one tensor; `stand-in` marks a vision tower that only the package timm could
build: it is one small component here, and what it stands for is not mapped."""
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "architectures.md"


def page(maps: Mapping[str, ComponentMap | str]) -> str:
    """The page; `maps` holds the map of each type, or why there is none."""
    image, causal = image_text_types(), causal_types()
    lines = [
        "# Architectures",
        "<!-- made by scripts/build_architectures.py -->",
        "",
        INTRODUCTION,
        "",
        "| | listed | mapped | refused, with the reason |",
        "|--|--|--|--|",
        *(_count(name, types, maps) for name, types in (("image-text-to-text", image), ("causal language models", causal))),
        "",
        UNUSUAL,
        "",
    ]
    for name, types in (("Image-text-to-text", image), ("Causal language models", causal)):
        lines += [f"## {name}", "", "| type | components | language layers | other parts | unusual |", "|--|--|--|--|--|"]
        for model_type in types:
            found = maps[model_type]
            lines.append(f"| `{model_type}` | refused: {found} | | | |" if isinstance(found, str) else _row(model_type, found))
        lines.append("")
    return "\n".join(lines)


def _count(name: str, types: tuple[str, ...], maps: Mapping[str, ComponentMap | str]) -> str:
    refused = [model_type for model_type in types if isinstance(maps[model_type], str)]
    return f"| {name} | {len(types)} | {len(types) - len(refused)} | {', '.join(refused)} |"


def _row(model_type: str, found: ComponentMap) -> str:
    layers: dict[str, None] = {}
    others: dict[str, None] = {}
    for family in found.families:
        inside = re.fullmatch(r"language\.(?:layers|encoder|decoder)\w*\.\*\.(.+)", family)
        if inside is not None:
            layers[inside[1]] = None
        else:
            others[re.sub(r"^((?:vision|audio)\w*\.\w+)\.\*\..*", r"\1.*", family)] = None
    return f"| `{model_type}` | {len(found.components):,} | {_named(layers)} | {_named(others)} | {'; '.join(_unusual(found))} |"


def _named(names: Mapping[str, None]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _unusual(found: ComponentMap) -> Iterator[str]:
    sliced = [component for component in found.components if component.slice]
    roles = {component.name.rpartition(".")[2] for component in sliced if ".moe.experts." not in component.name}
    if roles:
        yield f"slices: {', '.join(sorted(roles))}"
    if any(".moe.experts." in component.name for component in sliced):
        yield "packed experts"
    if any(region[0] == 1 and ".moe.experts." not in component.name for component in sliced for region in component.slice or ()):
        yield "transposed"
    tied = [f"{component.name} = {' = '.join(component.tied)}" for component in found.components if component.tied]
    if tied:
        yield f"tied: {', '.join(tied[:2])}{f' and {len(tied) - 2} more' if len(tied) > 2 else ''}"
    if any(component.name.endswith(".stand_in") for component in found.components):
        yield "stand-in"


def _maps() -> dict[str, ComponentMap | str]:
    maps: dict[str, ComponentMap | str] = {}
    for model_type in dict.fromkeys((*image_text_types(), *causal_types())):
        try:
            maps[model_type] = map_architecture(model_type)
        except SelectuneError as error:
            maps[model_type] = " ".join(str(error).split()).replace("|", "\\|")
    return maps


def main() -> None:
    """Writes or checks the page."""
    text = page(_maps())
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"not current: {PAGE.name}; run python scripts/build_architectures.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
