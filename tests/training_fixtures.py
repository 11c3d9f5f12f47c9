"""What the tests of training share: tiny models in a dtype, selections of them, and the bits of everything outside a selection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import conftest
from evaluation_fixtures import llama, llava, questions, tokenizer
from selectune.components import Selection, views
from selectune.models import Model, assemble
from selectune.network import state
from selectune.recipe import Optim
from selectune.records import Records

QUICK = Optim(lr=1e-2, batch=4, max_steps=4, weight_decay=0.1)
"""Four steps at a rate that moves everything, with weight decay and momentum."""


def tiny_model(family: str = "llava", dtype: torch.dtype = torch.float32) -> Model:
    """A tiny Llama or LLaVA, or a text model of another family, with a processor; its parameters are in `dtype`."""
    if family in ("llama", "llava"):
        made = llama() if family == "llama" else llava()
        return assemble(made.name, made.net.to(dtype), made.processor)
    words = tokenizer()
    net = conftest.tiny_model(family)
    torch.manual_seed(0)
    net.resize_token_embeddings(len(words), mean_resizing=False)
    return assemble(f"tiny-{family}", net.to(dtype), words)


def examples(n: int = 12, *, pictures: bool = True) -> Records:
    """Questions with answers of several lengths."""
    return questions(n, pictures=pictures)


def attention(model: Model) -> Selection:
    """Query, key, value and output projections of the language tower."""
    return model.map.select(("attention",))


def outside(net: torch.nn.Module, selection: Selection) -> dict[str, Tensor]:
    """A copy of every tensor, the selected elements of it set to zero: what must not change."""
    kept = {name: tensor.detach().clone() for name, tensor in [*state(net).items(), *net.named_buffers()]}
    for name, regions in selection.parameters.items():
        for region in (None,) if regions is None else regions:
            for view in views(kept[name], region):
                view.zero_()
    return kept


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether both hold the same bits under the same names."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def optim(**changes: Any) -> Optim:
    """`QUICK` with some fields changed."""
    return Optim(**{**QUICK.model_dump(), **changes})
