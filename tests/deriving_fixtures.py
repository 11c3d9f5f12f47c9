"""A tiny Llama in a folder, and updates of it in a registry: what the tests of diff, merge, rebase and import begin from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model
from selectune.components import views
from selectune.delta import Delta, extract, snapshot
from selectune.models import Model, load
from selectune.network import parameters
from selectune.pipeline.recording import MODEL
from selectune.registry import Registry, Update


def base_folder(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A tiny Llama with its tokenizer, as `save_pretrained` writes them."""
    made = tiny.llama()
    made.net.to(dtype)
    return save_model(made, folder)


def nudge(net: nn.Module, model: Model, patterns: Sequence[str], seed: int = 0, size: float = 0.05) -> None:
    """Adds noise of a seed to what the patterns select."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for component in model.map.select(patterns).components:
            for view in views(parameters(net)[component.parameter].detach(), component.slice):
                view.add_((size * torch.randn(view.shape, generator=numbers)).to(view.dtype))


def update_of(model: Model, patterns: Sequence[str], seed: int = 0, change: Callable[[Tensor], None] | None = None) -> Delta:
    """The delta of a nudge; the model is left as it was."""
    from selectune.delta import restore

    selection = model.map.select(patterns)
    before = snapshot(model, selection)
    nudge(model.net, model, patterns, seed)
    if change is not None:
        with torch.no_grad():
            for name in selection.parameters:
                change(parameters(model.net)[name].detach())
    delta = extract(model, before, selection)
    restore(model, before)
    return delta


def record(registry: Registry, delta: Delta, base: Path, folder: Path, **fields: object) -> str:
    """The delta as an update of the registry."""
    delta.save(folder / "one.delta")
    return registry.add(Update(meta={MODEL: str(base)}, **fields), folder / "one.delta")  # type: ignore[arg-type]


def loaded(folder: Path) -> Model:
    """The model of a folder."""
    return load(str(folder))
