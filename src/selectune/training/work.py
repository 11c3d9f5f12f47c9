"""The multiplications and additions that a selection asks for in a step, and no more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selectune.components import language_layer
from selectune.training.cut import first_layer

if TYPE_CHECKING:
    from selectune.components import Component, ComponentMap, Selection
    from selectune.training.load import Load

__all__ = ["Work", "is_early", "required"]

_BEFORE = re.compile("input|pre_attn|pre_attention|1$")
"""In the name of a norm that comes before its layer's attention."""
_EXPERT = ".moe.experts."


@dataclass(frozen=True, kw_only=True)
class Work:
    """Multiplications and additions (two for each pair) of one step that a selection asks for."""

    forward: float
    """2 a token and weight of the layers that are computed."""
    activations: float
    """2 a token and weight behind the first trained one: gradients that lead down to it."""
    weights: float
    """2 a token and trained weight."""
    attention: float
    """Scores and their use, the masked half left out: twice that again for the gradients."""
    head: float
    """At labelled positions alone."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.activations + self.weights + self.attention + self.head


def required(found: ComponentMap, config: Any, selection: Selection, load: Load) -> Work:
    """The work of one step of `load.passes` portions. `config` is the model's.

    A mixture's experts count by the share that a token uses. Of the last layer, its attention's output matrix and its MLP are needed at
    labelled positions alone, as the head is: nothing behind them looks at others.
    """
    text = config.get_text_config()
    first, layers = first_layer(selection), text.num_hidden_layers
    begin = first if load.begins == "cut" else 0
    early = is_early(selection)
    stage = min((_stage(c.name) for c in selection.components if language_layer(c.name) == first), default=0)
    tokens, labels = load.tokens * load.passes, load.labels * load.passes
    active = _share_of_experts(text)

    def used(component: Component) -> float:
        """Pairs of a weight and a position that it is used at."""
        late = language_layer(component.name) == layers - 1 and component.name.split(".", 3)[3].startswith(("attn.o", "mlp."))
        return component.elements * (labels if late else tokens) * (active if _EXPERT in component.name else 1.0)

    forward = backward = 0.0
    for component in found.components:
        layer = language_layer(component.name)
        if layer is None or layer < begin or len(component.shape) < 2:
            continue
        forward += used(component)
        if layer > first or (layer == first and (early or _stage(component.name) > stage)):
            backward += used(component)
    weights = 2 * sum(used(c) for c in selection.components if language_layer(c.name) is not None and len(c.shape) > 1)
    beside = sum(c.elements for c in selection.components if c.name.startswith("projector") and len(c.shape) > 1)
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    scores = 2 * load.rows * load.passes * load.length**2 * width
    below = layers - first if early or stage <= 0 else layers - first - 1
    trained_head = any("head" in (component.name, *component.tied) for component in selection.components)
    return Work(
        forward=2 * forward,
        activations=2 * backward,
        weights=weights + 6 * beside * load.picture * load.rows * load.passes,
        attention=scores * ((layers - begin) + 2 * below),
        head=2 * labels * text.hidden_size * text.vocab_size * (3 if trained_head else 2),
    )


def _share_of_experts(text: Any) -> float:
    used = getattr(text, "num_experts_per_tok", None)
    every = next((getattr(text, name) for name in ("num_experts", "num_local_experts", "n_routed_experts") if hasattr(text, name)), None)
    return used / every if used and every else 1.0


def _stage(name: str) -> int:
    """How far into its layer a component comes; those of one number stand side by side."""
    role = name.rpartition(".")[2]
    if ".norm." in name:
        return -1 if _BEFORE.search(role) else 1
    behind = role in ("o", "o_a", "o_b", "down")
    return (2 if ".mlp." in name or ".moe." in name else 0) + behind


def is_early(selection: Selection) -> bool:
    """Whether anything before the language tower's layers is trained."""
    return any(not name.startswith(("language.layers.", "language.norm", "head")) for name in selection.names)
