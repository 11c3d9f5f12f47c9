"""What lies below the first trained layer is the same in every stage, so its work on a group of prompts is done once.

Kept are the states that enter that layer, and the keys and values of the layers below, without which no answer could be continued. They
are known by the bytes of every tensor that made them and by the whole group of prompts: another group would have other last bits. So a
measurement that finds them gives the very bits of one that does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selectune.network import holds_shards
from selectune.training.cut import begun, digest_below, entering, find_layers, first_layer

if TYPE_CHECKING:
    from torch import nn

    from selectune.components import Selection
    from selectune.models import Model
    from selectune.training.store import Store


class Frozen:
    """The layers of the language tower below `index`, with what they made so far."""

    def __init__(self, model: Model, layers: nn.ModuleList, index: int, store: Store, *, key: str) -> None:
        """`key` tells what the layers below give from what others would: `training.cut.digest_below`."""
        self._net: Any = model.net
        self.store = store
        self.layers = layers
        self.index = index
        self.key = key

    def run(self, inputs: dict[str, Any], cache: Any, group: str) -> Any:
        """The network's output for `inputs`, which continue `cache`; from layer `index` on where this `group` was seen before."""
        name = ("frozen", self.key, group)
        kept = self.store.find(name)
        if kept is None:
            width = inputs["input_ids"].shape[1]
            with entering(self.layers, self.index) as seen:
                output = self._net(**inputs, past_key_values=cache, use_cache=True)
            made = {"states": seen[0]}
            for number, layer in enumerate(cache.layers[: self.index]):
                made |= {f"keys {number}": layer.keys[:, :, -width:].clone(), f"values {number}": layer.values[:, :, -width:].clone()}
            self.store.keep(name, made)
            return output
        bare = {name: value for name, value in inputs.items() if name != "mm_encoder_outputs"}
        with begun(self.layers, self.index, kept["states"]):
            output = self._net(**bare, past_key_values=cache, use_cache=True)
        for number in range(self.index):
            cache.update(kept[f"keys {number}"], kept[f"values {number}"], number)
        return output


def find_frozen(model: Model, selection: Selection | None, store: Store) -> tuple[Frozen | None, str]:
    """The layers below everything that is selected, or None with the reason."""
    if selection is None:
        return None, "no: nobody said what is trained"
    index = first_layer(selection)
    if index == 0:
        return None, "no: the first layer, or something before it, is trained"
    if holds_shards(model.net):
        return None, "no: the model is sharded"
    layers = find_layers(model, index)
    if layers is None:
        return None, "no: the layers are no plain list of modules"
    return Frozen(model, layers, index, store, key=digest_below(model, index)), "not settled yet"
