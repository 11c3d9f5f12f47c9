"""What could be checked of every architecture, and why not the rest.

python tests/behaviour_types.py        write docs/reference/behaviour.json (a minute); the architectures page shows it, the tests prove it
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from behaviour import Findings, Subject
from behaviour_roles import check_roles, roles_of
from behaviour_separation import check_pictures_apart, check_text_apart, has_senses
from pictures import RUNS, image_features
from selectune.components.architecture import causal_types, image_text_types
from selectune.components.standins import TIMM_TYPES
from small import small

DATA = Path(__file__).parent.parent / "docs" / "reference" / "behaviour.json"
REFUSED = ("gemma4_assistant", "gemma4_unified_assistant")
"""Types that are not mapped: the page says why."""
ON_WORDS_TOO = ("git", "kosmos-2.5", "mllama", "musicgen", "musicgen_melody", "whisper")
"""Types with a run of their own that run on words alone as well, or know no pictures."""


def _by_type(table: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for reason, names in table.items():
        for name, types in names.items():
            for model_type in types.split():
                found.setdefault(model_type, {})[name] = reason
    return found


EXPLAINED = _by_type(
    {
        "a fixed slope favours near words whatever the queries are (ALiBi)": {"attn.uniform": "bloom mpt"},
        "relative positions weigh the words whatever the queries are, and lie outside the layers": {
            "attn.uniform": "cpmant",
            "encoder.attn.uniform": "udop",
        },
        "a short convolution mixes the values of neighbouring words": {
            "attn.uniform": "inkling_mm_model inkling_text inkling2 inkling2_text"
        },
        "softcaps bound up, so that twice its values are less than twice": {"moe.experts.up": "inkling2 inkling2_text"},
        "one is added to up, which is clamped, before gate multiplies it": {
            "moe.experts.up": "gpt_oss minimax_m3_vl minimax_m3_vl_text",
            "moe.shared.up": "minimax_m3_vl minimax_m3_vl_text",
        },
        "a norm after each expert takes the doubling out again": {"moe.experts.up": "muse_spark"},
        "a norm stands between up and down and takes the doubling out again": {"mlp.up": "bitnet"},
        "a norm stands between the heads and o": {"attn.uniform": "bitnet kosmos-2 muse_spark"},
        "a norm with a bias stands between the heads and o": {"attn.v": "kosmos-2"},
        "keys are the values, so that positions turn the values too": {"attn.uniform": "deepseek_v4"},
        "the difference of two attentions is normalised, head by head": {"attn.uniform": "diffllama"},
        "a picture's places see each other, words what comes before": {"attn.uniform": "git"},
        "streams for the words to come are attended to beside the words": {"attn.uniform": "prophetnet"},
        "one attention reads the encoder's words and the decoder's": {"attn.uniform": "t5gemma2"},
        "biases of the query's own are added to it": {"attn.q": "xlnet"},
        "a residual connection and a norm come before the module's output": {"attn.v": "xlnet", "attn.o": "xlnet"},
        "queries and keys are mixed with each other before they meet": {"attn.q": "zaya"},
        "an adapter of the layer's own is added to up and gate": {"mlp.up": "zamba2", "mlp.gate": "zamba2"},
        "experts without parameters pass on what they are given": {"moe.router": "longcat_flash"},
        "bytes are embedded with hashes of those before them": {"mixing": "blt"},
        "a picture becomes words of a codebook, which the word embedding embeds": {"apart.pictures": "chameleon emu3"},
    }
)
"""What does not hold for a type, and why its name is right all the same."""
PICTURELESS = {
    **dict.fromkeys(TIMM_TYPES, "its vision tower is a stand-in here"),
    "evolla": "reads proteins and no pictures",
    "mistral4": "has no vision tower",
}


def behaviour_of(model_type: str) -> Findings:
    """What was found of one type; raises what the model does where it does not build or run."""
    found = Findings()
    if model_type in REFUSED:
        found.left["everything"] = "not mapped"
        return found
    subject = Subject(small(model_type), RUNS.get(model_type))
    check_roles(subject, found)
    if model_type in RUNS and model_type not in ON_WORDS_TOO:
        found.left["apart.text"] = "does not run on words without a picture"
    elif has_senses(subject):
        check_text_apart(subject, found)
    if model_type in image_text_types():
        if model_type in PICTURELESS:
            found.left["apart.pictures"] = PICTURELESS[model_type]
        else:
            check_pictures_apart(subject, found, lambda: image_features(subject))
    roles = roles_of(list(subject.components))
    if not roles:
        found.left["roles"] = "has mixers alone, whose parts have no claim of their own"
    if any(".moe.vision." in name for name in subject.components):
        found.left["moe.vision"] = "experts for a picture's places, to which words are not sent"
    for role in sorted(roles - {*found.checked} - found.wrong.keys()):
        found.left.setdefault(role, "no check")
    return found


def row(model_type: str, found: Findings) -> dict[str, Any]:
    """The type's entry in the data. Raises where something wrong is not explained, or something explained holds after all."""
    explained = EXPLAINED.get(model_type, {})
    assert found.wrong.keys() == explained.keys(), (model_type, found.wrong)
    parts = {"checked": " ".join(sorted(found.checked)), "explained": explained, "left": found.left}
    return {key: value for key, value in parts.items() if value}


def all_types() -> tuple[str, ...]:
    """Every type of both lists, sorted."""
    return tuple(sorted({*image_text_types(), *causal_types()}))


def has_roles(entry: Mapping[str, Any]) -> bool:
    """Whether roles of attention, MLP or experts were checked."""
    return any(name.startswith(("attn.", "mlp.", "moe.", "cross.")) for name in entry.get("checked", "").split())


def counted(data: Mapping[str, Mapping[str, Any]], types: Sequence[str]) -> int:
    """Of how many of the types roles were checked."""
    return sum(has_roles(data[model_type]) for model_type in types)


def main() -> None:
    """Writes the data."""
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = {model_type: row(model_type, behaviour_of(model_type)) for model_type in all_types()}
    DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
