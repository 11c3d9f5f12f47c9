"""Names are believed where the model behaves as they claim: every causal language model that runs when it is made small."""

from __future__ import annotations

import pytest
import torch

from behaviour import Findings, Subject, check_attention, check_layers, check_mlp
from selectune.components.architecture import causal_types
from small import small

LARGEST = 20_000_000
"""Elements; a type that is larger after its sizes were cut is not run."""

EXPLAINED = {
    ("bitnet", "mlp.up"): "a norm stands between up and down and takes the doubling out again",
    ("zaya", "attn.q"): "its compressed attention mixes queries and keys before they meet",
    ("xlnet", "attn.v"): "a residual connection and a norm come before the module's output",
    ("xlnet", "attn.o"): "a residual connection and a norm come before the module's output",
    ("xlnet", "attn.q"): "biases of the query's own are added to it",
}
"""What does not hold for a type, and why its name is right all the same."""

CHECKED_AT_LEAST = 150


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # half of the families have a remark to make
def test_causal_language_models_behave_as_their_names_claim() -> None:
    wrong: dict[tuple[str, str], str] = {}
    checked: list[str] = []
    for model_type in causal_types():
        found = behaviour_of(model_type)
        wrong |= {(model_type, name): fault for name, fault in found.wrong.items()}
        if any(name.startswith(("mlp.", "attn.")) for name in found.checked):
            checked.append(model_type)
    assert wrong.keys() == EXPLAINED.keys(), {key: fault for key, fault in wrong.items() if key not in EXPLAINED}
    assert len(checked) >= CHECKED_AT_LEAST


def behaviour_of(model_type: str) -> Findings:
    """What could be checked of one type; what could not is in `left` with the reason."""
    found = Findings()
    try:
        if sum(parameter.numel() for parameter in small(model_type, "meta").parameters()) > LARGEST:
            found.left["type"] = "still large when cut"
            return found
        subject = Subject(small(model_type))
    except Exception as error:  # noqa: BLE001  # whatever a family raises for sizes that do not fit it
        found.left["type"] = f"does not build when cut: {type(error).__name__}"
        return found
    for check in (check_mlp, check_attention, check_layers):
        try:
            check(subject, found)
        except Exception as error:  # noqa: BLE001  # see above
            found.left[check.__name__] = f"does not run on text alone when cut: {type(error).__name__}"
    return found


def test_a_wrong_name_is_found_out() -> None:
    """The checks can fail: with up and gate, or k and v, under each other's names they do."""
    subject = Subject(small("llama"))
    for left, right in (("mlp.up", "mlp.gate"), ("attn.v", "attn.k")):
        for layer in (0, 1):
            names = [f"language.layers.{layer}.{role}" for role in (left, right)]
            subject.components[names[0]], subject.components[names[1]] = subject.components[names[1]], subject.components[names[0]]
    found = Findings()
    check_mlp(subject, found)
    check_attention(subject, found)
    assert {"mlp.up", "mlp.gate", "attn.v"} <= found.wrong.keys()
    with torch.no_grad():
        assert subject.net(input_ids=torch.tensor([[1, 2]])).logits.isfinite().all()
