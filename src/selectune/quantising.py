"""A frozen base in 8 or 4 bits: less memory for what is not trained, while the selected parts stay in bf16.

The update is exact against the original all the same: it holds nothing but the selected tensors' bits, and those are the original's
(`delta.onto`). What training and measuring saw of the rest is an approximation, and a run says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from selectune.components import map_model
from selectune.errors import InputError, MissingPackage
from selectune.hashing import manifest
from selectune.network import class_name, hold_still, parameters, walk

if TYPE_CHECKING:
    from torch import nn

    from selectune.components import ComponentMap, Selection
    from selectune.models import Model
    from selectune.network import Place

Kind = Literal["int8", "nf4"]


def quantise(model: Model, keep: Iterable[Selection], kind: Kind) -> Model:
    """The model with its frozen linear layers in 8 bits (LLM.int8) or 4 bits (NF4), in place; bitsandbytes does it.

    `keep` are the selections that will be trained: a layer of which any part is selected stays as it is, as do embeddings, the head, norms,
    convolutions and packed experts. The result has an id of its own. Raises MissingPackage without bitsandbytes, InputError where nothing
    is left to quantise.

    Sources: Dettmers et al., "LLM.int8()" (2022); Dettmers et al., "QLoRA" (2023).
    """
    frozen = frozen_linears(model.net, model.map, {name for selection in keep for name in selection.parameters})
    if not frozen:
        raise InputError("every linear layer is trained", where="quantise", then="Leave quantise out.")
    for place in frozen:
        parent, _, child = place.path.rpartition(".")
        setattr(model.net.get_submodule(parent), child, _quantised(place.module, kind))
    hold_still(model.net)
    return replace(model, map=map_model(model.net, model.name), manifest=manifest(model.net))


def frozen_linears(net: nn.Module, found: ComponentMap, trained: Iterable[str]) -> list[Place]:
    """The layers that a quantised base has in fewer bits, where the parameters `trained` stay as they are."""
    stay = {*trained, *(component.parameter for component in found.components if component.tied or component.name == "head")}
    own = parameters(net).keys() - stay
    return [place for place in walk(net) if class_name(place.module) == "Linear" and f"{place.path}.weight" in own]


def _quantised(linear: Any, kind: Kind) -> nn.Module:
    try:
        bits: Any = import_module("bitsandbytes.nn")
    except ImportError as error:
        raise MissingPackage(
            "a quantised base needs bitsandbytes", where="quantise", then="Install it: pip install 'selectune[quantised]'."
        ) from error
    weight, bias = linear.weight.detach(), linear.bias
    built: Any
    if kind == "int8":
        built = bits.Linear8bitLt(linear.in_features, linear.out_features, bias is not None, has_fp16_weights=False)
        built.weight = bits.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        built = bits.Linear4bit(linear.in_features, linear.out_features, bias is not None, compute_dtype=weight.dtype, quant_type="nf4")
        built.weight = bits.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False)
    if bias is not None:
        built.bias = bias
    # bitsandbytes quantises when a layer is moved to its device.
    moved: nn.Module = built.to(weight.device).eval()
    return moved
