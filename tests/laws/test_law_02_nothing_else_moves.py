"""Law 2: after k steps everything outside the selection is bit-identical: tied weights, buffers, weight decay and momentum included."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from selectune.components import Selection, views
from selectune.models import Model, assemble
from selectune.training import fit
from training_fixtures import examples, optim, outside, same, tiny_model

CASES = [
    ("llava", ("attention",)),
    ("llava", ("language",)),
    ("llava", ("projector",)),
    ("llava", ("upper-gate-and-up", "language.norm")),
    ("llama", ("attention-qkv",)),
    ("llama", ("down", "head")),
    ("llama", ("language.layers[1:].*",)),
    ("tied", ("attention",)),
    ("qwen2", ("attention", "language.layers.0.norm.*")),
    ("phi3", ("language.layers.*.attn.q",)),
    ("phi3", ("language.layers.0.mlp.gate", "language.layers.1.attn.{k,v}")),
    ("gpt2", ("language.layers.*.attn.v",)),
    ("qwen3_moe", ("language.layers.*.moe.router",)),
    # slices with many ranges, with steps, with an expert on one axis and gate or up on another, one below the other in a matrix
    ("bloom", ("language.layers.*.attn.q",)),
    ("gpt_neox", ("language.layers.0.attn.{k,v}",)),
    ("codegen", ("language.layers.*.attn.k",)),
    ("falcon_groups", ("language.layers.*.attn.v",)),
    ("gpt_bigcode", ("language.layers.1.attn.{q,v}",)),
    ("persimmon", ("language.layers.*.attn.q",)),
    ("mpt", ("language.layers.*.attn.k",)),
    ("qwen3_moe", ("language.layers.*.moe.experts[1:3].gate",)),
    ("qwen3_moe", ("language.layers.0.moe.experts.*.up", "language.layers.1.moe.experts.3.down")),
    ("gpt_oss", ("language.layers.*.moe.experts.*.up",)),
    ("gpt_oss", ("language.layers.0.moe.experts[0,2].{gate,down}",)),
    ("dbrx", ("language.layers.*.moe.experts[1:].{gate,down}", "language.layers.0.attn.q")),
]


def moved(model: Model, selection: Selection) -> bool:
    """Trains with weight decay and momentum; whether the selection moved, after a check that nothing else did."""
    kept = outside(model.net, selection)
    before = {name: parameter.detach().clone() for name, parameter in model.net.named_parameters()}
    steps = list(fit(model, selection, examples(8, pictures=model.is_vision), optim(lr=0.05, weight_decay=0.5, micro_batch=3)))
    assert len(steps) == 4
    assert same(outside(model.net, selection), kept)
    parameters = dict(model.net.named_parameters())
    return all(
        not torch.equal(now, then)
        for name, regions in selection.parameters.items()
        for region in ((None,) if regions is None else regions)
        for now, then in zip(views(parameters[name].detach(), region), views(before[name], region), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("family", "patterns"), CASES)
def test_only_the_selection_moves(family: str, patterns: tuple[str, ...], dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype)
    assert moved(model, model.map.select(patterns))


def test_a_tied_head_moves_with_its_embedding_and_nothing_else_does() -> None:
    model = tiny_model("tied")
    assert model.net.lm_head.weight is model.net.get_input_embeddings().weight
    assert moved(model, model.map.select(("language.embed", "head")))
    assert model.net.lm_head.weight is model.net.get_input_embeddings().weight


def test_running_statistics_of_a_selected_tower_stay() -> None:
    """Batch-norm's averages are buffers: in training mode a forward pass alone would move them."""
    model = tiny_model()
    projector = model.net.model.multi_modal_projector
    projector.act = torch.nn.Sequential(torch.nn.GELU(), Averaging(32))
    averages = projector.act[1].norm
    watched = assemble("averaging", model.net, model.processor)
    before = averages.running_mean.clone(), averages.num_batches_tracked.clone()
    watched.net.train()
    list(fit(watched, watched.map.select(("attention",)), examples(8), optim(cache_features=False)))
    assert torch.equal(averages.running_mean, before[0])
    assert torch.equal(averages.num_batches_tracked, before[1])


class Averaging(torch.nn.Module):
    """Batch-norm over the channels of (pictures, tokens, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(tokens.transpose(1, 2)).transpose(1, 2)
