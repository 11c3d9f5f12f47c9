"""Law 3: apply then revert is the identity; save then load keeps the digest; a wrong parent is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import tiny_model
from delta_fixtures import model_of, quick_disk
from selectune.components import map_model, views
from selectune.delta import Delta, apply, extract, revert, snapshot
from selectune.errors import WrongParent
from selectune.hashing import manifest
from selectune.network import state

PATTERNS = ("language.layers.*.attn.{q,o}", "language.layers.1.mlp.*", "language.norm")
FAMILIES = ("llama", "tied", "gpt2", "phi3", "llava", "llava_onevision", "qwen2_5_vl")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_law_3_holds(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    net = tiny_model(family).to(dtype)
    model = model_of(net)
    patterns = (*PATTERNS, "language.embed") if family == "tied" else PATTERNS
    selection = map_model(net, family).select(patterns, tie="allow")
    before = snapshot(model, selection)
    with torch.no_grad():
        for component in selection.components:
            for view in views(state(net)[component.parameter], component.slice):
                view.mul_(1.01).add_(0.001)
    child = model.updated(manifest(net))
    delta = extract(model, before, selection, meta={"family": family})
    delta.save(tmp_path / "x.delta")
    loaded = Delta.load(tmp_path / "x.delta")
    assert (loaded.digest, loaded.elements) == (delta.digest, selection.elements)
    assert (loaded.parent, loaded.child) == (model.id, child.id)
    parent = revert(child, loaded)
    assert parent.id == model.id == manifest(net).id == manifest(tiny_model(family).to(dtype)).id
    assert apply(parent, loaded).id == child.id == manifest(net).id
    with pytest.raises(WrongParent):
        apply(child, loaded)
    if family == "tied":
        assert net.get_output_embeddings().weight is net.get_input_embeddings().weight
