"""Write docs/reference/substring-selection.md: what a search for substrings in parameter names selects, beside what components do.

python scripts/build_substring_table.py            write it (seconds)
python scripts/build_substring_table.py --check    exit 1 if it is not current
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selectune.components import ComponentMap, map_model

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "substring-selection.md"

QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (*QUERY_KEY_VALUE, "self_attn.o_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = "mlp.down_proj"
"""As the snippet has it: brackets without a comma make no tuple, so a loop over it goes letter by letter."""
TOWERS = ("language", "vision", "elsewhere")

QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
LLAMA3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
QWEN_VISION = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 3584}


def _onevision() -> Any:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    return LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(text_config={"model_type": "qwen2", **QWEN2_7B}))


def _next() -> Any:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration(LlavaNextConfig(text_config={"model_type": "llama", **LLAMA3_8B}))


def _qwen() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=QWEN2_7B, vision_config=QWEN_VISION, tie_word_embeddings=False))


FAMILIES: Mapping[str, Callable[[], Any]] = {
    "LLaVA-OneVision 7B (Qwen2 and SigLIP)": _onevision,
    "LLaVA-NeXT 8B (Llama 3 and CLIP)": _next,
    "Qwen2.5-VL 7B": _qwen,
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One selection of the study: our preset, and which names the snippet opens for it."""

    title: str
    preset: str
    opens: Callable[[str], bool]


def contains(name: str, words: Iterable[str]) -> bool:
    """Whether any of the words is somewhere in the name."""
    return any(word in name for word in words)


RULES = (
    Rule(title="SA Proj.", preset="attention", opens=lambda name: contains(name, ATTENTION)),
    Rule(title="SA Proj. (QKV)", preset="attention-qkv", opens=lambda name: contains(name, QUERY_KEY_VALUE)),
    Rule(title="MLP Gate&Up", preset="gate-and-up", opens=lambda name: contains(name, GATE_UP)),
    Rule(title="MLP", preset="mlp", opens=lambda name: contains(name, (*GATE_UP, DOWN))),
    Rule(title="MLP Down", preset="down", opens=lambda name: contains(name, DOWN)),
    # The second block runs over every name: what is not gate or up has a letter of the string in it and is frozen again.
    Rule(
        title="SA Proj. + Gate&Up",
        preset="attention+gate-and-up",
        opens=lambda name: contains(name, GATE_UP) or (contains(name, ATTENTION) and not contains(name, DOWN)),
    ),
)

HEAD = """# Substrings and components

<!-- made by scripts/build_substring_table.py -->

The study whose two recipes selectune's presets `attention` and `gate-and-up` are ("How to Teach Large Multimodal Models New Skills") offers
a few lines for one's own trainer: freeze everything, then open each parameter whose name contains one of a list of substrings, such as
`self_attn.q_proj` or `mlp.gate_proj`. Its own trainer leaves the vision tower out by further tests; the lines do not. Below is what they
open for the study's three families, by the names that these have in transformers, and what the preset selects. No weights are involved:
the models are built from configs of the study's sizes on the meta device.

Three things go wrong. In both LLaVA families the vision tower's attention has the same leaf names, all but its output matrix, `out_proj`:
each of its layers trains in part. In Qwen2.5-VL it is the vision tower's MLP that has them. And the name of the down projection, which the
second block freezes again for clarity, stands in brackets without a comma: a string and no tuple, so the loop asks for its single letters,
and `.` alone is in every name. As the block is written that freezes what was frozen before and does no harm, until both blocks run one
after the other: then attention is frozen again. The same list in a block that opens, to train the down projection, opens the whole model.

"SA Proj." and "MLP Gate&Up" are the snippet's two blocks as they are, "SA Proj. + Gate&Up" is one after the other, and "MLP Down" opens by
the snippet's third list. "SA Proj. (QKV)" leaves one word out of the first list, and "MLP" adds the down projection's to the second. Each
cell has tensors, then elements; the head counts as language.
"""


def cell(rows: Sequence[tuple[str, int]]) -> str:
    """Tensors and elements, or a dash for nothing."""
    return f"{len(rows):,} · {sum(size for _, size in rows):,}" if rows else "—"


def tower(name: str) -> str:
    """The tower of a component: the head counts as language, as in the study."""
    first = name.split(".", maxsplit=1)[0]
    return "language" if first in {"language", "head"} else "vision" if first.startswith("vision") else "elsewhere"


def table(found: ComponentMap) -> list[str]:
    """One family's table."""
    towers = {component.parameter: tower(component.name) for component in found.components}
    sizes = {name: torch.Size(shape).numel() for name, shape in found.shapes.items()}
    taken = [f"snippet: {key}" for key in TOWERS] + ["preset: language", "preset: other towers"]
    lines = [f"| selection | preset | {' | '.join(taken)} | the same |", f"|--|--|{'--:|' * len(taken)}--|"]
    for rule in RULES:
        opened = [(name, size) for name, size in sizes.items() if rule.opens(name)]
        by_tower = {key: [row for row in opened if towers[row[0]] == key] for key in TOWERS}
        selection = found.select([rule.preset])
        ours = [(name, sizes[name]) for name in selection.parameters]
        assert selection.elements == sum(size for _, size in ours), "no family here has fused tensors in its language tower"
        inside = [row for row in ours if towers[row[0]] == "language"]
        beyond = [row for row in ours if towers[row[0]] != "language"]
        cells = [rule.title, f"`{rule.preset}`", *(cell(by_tower[key]) for key in TOWERS), cell(inside), cell(beyond)]
        lines.append(f"| {' | '.join([*cells, 'yes' if dict(opened) == dict(ours) else 'no'])} |")
    return lines


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, build in FAMILIES.items():
        with torch.device("meta"):
            found = map_model(build(), title)
        lines += [f"## {title}", "", f"{len(found.shapes):,} tensors, {found.elements:,} elements.", "", *table(found), ""]
    return "\n".join(lines)


def main() -> None:
    """Writes or checks the page."""
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"not current: {PAGE.name}; run python scripts/build_substring_table.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
