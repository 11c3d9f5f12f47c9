"""Frozen RMS norms with a derivative of their own: the same numbers forward, the same gradient, less to keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import tiny_model
from selectune.recipe import Optim
from selectune.training import train
from selectune.training.norms import LeanNorms, _RMSNorm
from training_fixtures import examples
from training_fixtures import tiny_model as made


def _plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float() if x.dtype != torch.float64 else x
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)])
def test_the_derivative_is_the_one_that_autograd_finds(dtype: torch.dtype, off: float) -> None:
    torch.manual_seed(0)
    x, weight, above = torch.randn(5, 7, 96).to(dtype), torch.randn(96).to(dtype), torch.randn(5, 7, 96).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    normed = _RMSNorm.apply(ours, weight, 1e-5)  # type: ignore[no-untyped-call]
    expected = _plain(theirs, weight)
    assert torch.equal(normed, expected)
    normed.backward(above)
    expected.backward(above)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert (ours.grad - theirs.grad).float().norm() <= off * theirs.grad.float().norm()


@pytest.mark.parametrize(("family", "count"), [("llama", 5), ("qwen2", 5), ("gpt_neox", 0)])
def test_norms_are_taken_by_what_they_compute(family: str, count: int) -> None:
    """Llama's two layers have two norms each, and one is at the end, GPT-NeoX has none of the kind."""
    assert len(LeanNorms(tiny_model(family))) == count


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    """Gemma's adds one to its weight."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    assert len(LeanNorms(nn.ModuleList([GemmaRMSNorm(16)]))) == 0


def test_norms_that_are_trained_stay_as_they_are() -> None:
    net = tiny_model("llama").requires_grad_(False)
    last = net.model.norm
    last.weight.requires_grad_(True)
    norms = LeanNorms(net)
    with norms.used():
        patched = [module for module in net.modules() if "forward" in vars(module)]
        assert len(patched) == 4
        assert last not in patched
    assert not any("forward" in vars(module) for module in net.modules())


def test_less_is_kept_for_the_backward_pass() -> None:
    norm = next(module for module in tiny_model("llama").requires_grad_(False).modules() if type(module).__name__ == "LlamaRMSNorm")
    holder = nn.ModuleList([norm])
    sizes: list[int] = []
    for lean in (False, True):
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(4, 9, norm.weight.shape[0]).bfloat16().requires_grad_()
        norm.to(torch.bfloat16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if lean:
                with LeanNorms(holder).used():
                    norm(x)
            else:
                norm(x)
        sizes.append(sum(kept.values()))
    assert sizes[1] < 0.6 * sizes[0]  # the input itself is counted, which is half of what is left


def test_a_training_says_that_norms_are_lean() -> None:
    model = made("llama")
    done = train(model, model.map.select(("attention",)), examples(pictures=False), Optim(batch=4, max_steps=1))
    assert done.reasons["norms"] == "yes: 5 RMS norms have a derivative of their own"
