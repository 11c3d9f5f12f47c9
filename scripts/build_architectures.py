"""Write docs/reference/architectures.md: every architecture that transformers builds, with its families of components.

python scripts/build_architectures.py            write it (about a minute)
python scripts/build_architectures.py --check    exit 1 if it is not current

What was checked by behaviour is read from docs/reference/behaviour.json, which tests/behaviour_types.py writes and the tests prove.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selectune.components import ComponentMap, map_architecture
from selectune.components.architecture import causal_types, image_text_types
from selectune.errors import SelectuneError

INTRODUCTION = """`selectune map arch:TYPE` for every type that transformers lists, from its default config, without weights. Families are
component names with `*` for indices, without their layer's prefix; the command shows them with counts."""
UNUSUAL = """Unusual: `slices` are roles that share one tensor; `packed experts` are slices of a tensor with one axis of experts;
`transposed` tensors store inputs first; `tied` names are one tensor; `stand-in` marks a vision tower that only the package timm could
build: it is one small component here, and what it stands for is not mapped."""
BEHAVIOUR = """Checked by behaviour: each type is built small (two layers, width 64, random weights), parts are changed, and what the
model then does is compared with what the names claim; the map's own tables are not asked. The letters say what held; `!` marks a letter
of which something is explained or left out below the tables. Parts without a claim (norms, embeddings, adapters) are not checked."""
LETTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "A": (
        "attention: `v` or `o` at zero silences it, other `k` change it, and with `q` at zero they do not",
        ("attn.q", "attn.k", "attn.v", "attn.o"),
    ),
    "L": (
        "low-rank attention: `kv_a`, `kv_b` (or `kv`) or `o` at zero silences it, `q_a` at zero does what `q_b` at zero does",
        ("attn.q_a", "attn.q_b", "attn.kv_a", "attn.kv_b", "attn.kv", "attn.o", "attn.o_a", "attn.o_b"),
    ),
    "U": (
        "with the queries at zero attention is uniform: what enters `o` is the mean of the value vectors, head by head; before it is not",
        ("attn.uniform",),
    ),
    "C": ("cross-attention: as A and U", ("cross.q", "cross.k", "cross.v", "cross.o", "cross.uniform")),
    "M": (
        "MLP: twice `up` doubles it exactly and twice `gate` does not; `gate` or `down` at zero silences it",
        ("mlp.up", "mlp.gate", "mlp.down"),
    ),
    "E": (
        "experts: as M, all of them and each alone (of those that a word is sent to); what each gives adds up to the whole",
        ("moe.experts.up", "moe.experts.gate", "moe.experts.down"),
    ),
    "R": ("router: another one changes what the experts give, and nothing where they are silent", ("moe.router",)),
    "S": ("shared experts: as M", ("moe.shared.up", "moe.shared.gate", "moe.shared.down")),
    "N": ("the text encoder's layers: as A, U, M and l", ("encoder.",)),
    "l": ("changing the last layer leaves what enters it bit-identical", ("layers",)),
    "x": (
        "with all attention, cross-attention and mixers at zero no word reaches another's place; before, the first reaches the last",
        ("mixing",),
    ),
    "t": ("changing vision, audio and projector leaves what the model makes of words alone bit-identical", ("apart.text",)),
    "p": (
        "changing the language tower leaves a picture's features bit-identical; changing vision, or the projector, does not",
        ("apart.pictures", "apart.vision", "apart.projector"),
    ),
}
"""What a letter of the page stands for: a sentence, and the names in the data (or their beginning)."""
ALIKE = {"A": ("attn.v",), "L": ("attn.kv_a", "attn.kv")}
"""Names that tell two letters apart which share others."""
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "architectures.md"
DATA = PAGE.parent / "behaviour.json"

Behaviour = Mapping[str, Mapping[str, Any]]


def page(maps: Mapping[str, ComponentMap | str], behaviour: Behaviour) -> str:
    """The page; `maps` holds the map of each type, or why there is none, `behaviour` what was checked of it."""
    image, causal = image_text_types(), causal_types()
    lines = [
        "# Architectures",
        "<!-- made by scripts/build_architectures.py -->",
        "",
        INTRODUCTION,
        "",
        "| | listed | mapped | roles checked by behaviour | towers checked apart | refused, with the reason |",
        "|--|--|--|--|--|--|",
        *(_count(name, types, maps, behaviour) for name, types in (("image-text-to-text", image), ("causal language models", causal))),
        "",
        UNUSUAL,
        "",
        BEHAVIOUR,
        "",
        "| | what held |",
        "|--|--|",
        *(f"| {letter} | {sentence} |" for letter, (sentence, _) in LETTERS.items()),
        "",
    ]
    for name, types in (("Image-text-to-text", image), ("Causal language models", causal)):
        lines += [f"## {name}", "", "| type | components | checked by behaviour | language layers | other parts | unusual |"]
        lines += ["|--|--|--|--|--|--|"]
        for model_type in types:
            found = maps[model_type]
            lines.append(
                f"| `{model_type}` | refused: {found} | | | | |"
                if isinstance(found, str)
                else _row(model_type, found, letters(behaviour[model_type]))
            )
        lines.append("")
    lines += [
        "## What does not hold, and why the name is right all the same",
        "",
        "| | of | why |",
        "|--|--|--|",
        *_reasons(behaviour, "explained"),
    ]
    lines += ["", "## What could not be checked, and why", "", "| | of | why |", "|--|--|--|", *_reasons(behaviour, "left"), ""]
    return "\n".join(lines)


def letters(found: Mapping[str, Any]) -> str:
    """What was checked of one type, in the letters of the page."""
    checked = found.get("checked", "").split()
    short = [*found.get("explained", {}), *found.get("left", {})]
    shown = []
    for letter, (_, names) in LETTERS.items():
        own = ALIKE.get(letter, names)
        if _any(checked, names) and _any([*checked, *short], own):
            shown.append(letter + ("!" if _any(short, names) else ""))
    return " ".join(shown)


def _any(found: list[str], names: tuple[str, ...]) -> bool:
    return any(one == name or (name.endswith(".") and one.startswith(name)) for one in found for name in names)


def _reasons(behaviour: Behaviour, kind: str) -> Iterator[str]:
    """One row for each reason and name, with the types that it is given for."""
    types: dict[tuple[str, str], list[str]] = {}
    for model_type, found in behaviour.items():
        for name, reason in found.get(kind, {}).items():
            types.setdefault((name, reason), []).append(f"`{model_type}`")
    for (name, reason), given in sorted(types.items()):
        yield f"| {name} | {' '.join(given)} | {reason} |"


def _count(name: str, types: tuple[str, ...], maps: Mapping[str, ComponentMap | str], behaviour: Behaviour) -> str:
    refused = [model_type for model_type in types if isinstance(maps[model_type], str)]
    checked = [behaviour[model_type].get("checked", "").split() for model_type in types]
    roles = sum(any(name.startswith(("attn.", "mlp.", "moe.", "cross.")) for name in names) for names in checked)
    apart = sum("apart.text" in names or "apart.pictures" in names for names in checked)
    return f"| {name} | {len(types)} | {len(types) - len(refused)} | {roles} | {apart} | {', '.join(refused)} |"


def _row(model_type: str, found: ComponentMap, checked: str) -> str:
    layers: dict[str, None] = {}
    others: dict[str, None] = {}
    for family in found.families:
        inside = re.fullmatch(r"language\.(?:layers|encoder|decoder)\w*\.\*\.(.+)", family)
        if inside is not None:
            layers[inside[1]] = None
        else:
            others[re.sub(r"^((?:vision|audio)\w*\.\w+)\.\*\..*", r"\1.*", family)] = None
    return (
        f"| `{model_type}` | {len(found.components):,} | {checked} | {_named(layers)} | {_named(others)} | {'; '.join(_unusual(found))} |"
    )


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
    behaviour = json.loads(DATA.read_text(encoding="utf-8"))
    if missing := {*image_text_types(), *causal_types()} - behaviour.keys():
        raise SystemExit(f"{DATA.name} lacks {', '.join(sorted(missing))}; run python tests/behaviour_types.py")
    text = page(_maps(), behaviour)
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"not current: {PAGE.name}; run python scripts/build_architectures.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
