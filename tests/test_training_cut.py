"""What enters the first trained layer is computed once for each sample, and passes begin there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from selectune.delta import apply, revert
from selectune.hashing import manifest
from selectune.recipe import Adapter
from selectune.training import FeatureCache, Session, train
from selectune.training.cut import first_layer
from training_fixtures import examples, optim, tiny_model

UPPER = ("language.layers[1:].attn.*",)
LONG = optim(max_steps=9, batch=4)
"""Three epochs of twelve samples."""


def _counted(model: Any, path: str) -> list[int]:
    """How many rows each call of a layer has had."""
    rows: list[int] = []
    model.net.get_submodule(path).register_forward_hook(lambda _module, _inputs, output: rows.append(len(output)))
    return rows


@pytest.mark.parametrize("family", ["llava", "llama", "qwen2", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beginning_at_the_cut_changes_nothing_but_rounding(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype)
    selection = model.map.select(UPPER)
    records = examples(pictures=family == "llava")
    settings = LONG.model_copy(update={"lr": 1e-3})
    kept = train(model, selection, records, settings)
    plain = train(model, selection, records, settings.model_copy(update={"cache_features": False}))
    assert kept.reasons["cut"].startswith("yes"), kept.reasons["cut"]
    assert plain.reasons["cut"] == "no: optim.cache_features is false"
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    for left, right in zip(kept.steps, plain.steps, strict=True):
        assert left.loss == pytest.approx(right.loss, rel=limit)
        assert left.grad_norm == pytest.approx(right.grad_norm, rel=limit)


def test_lower_layers_and_pictures_are_seen_once() -> None:
    model = tiny_model()
    lower = _counted(model, "model.language_model.layers.0.self_attn.q_proj")
    upper = _counted(model, "model.language_model.layers.1.self_attn.q_proj")
    cache = FeatureCache()
    train(model, model.map.select(UPPER), examples(12), LONG, session=Session(features=cache))
    settled = 4 * 2  # two samples with pixels, with features, at the head, in the last layer
    assert sum(lower) == 12 + settled
    assert sum(upper) > 9 * 4
    assert cache.misses == 12, "no picture is encoded again"


def test_stages_share_what_lies_below_as_long_as_it_is_the_same() -> None:
    model = tiny_model("llama")
    cache = FeatureCache()
    session = Session(features=cache)
    selection = model.map.select(UPPER)
    done = train(model, selection, examples(12, pictures=False), LONG, session=session)
    assert len(cache) == 12
    child = apply(model, done.delta)
    train(child, selection, examples(12, pictures=False), LONG, session=session)
    assert len(cache) == 12, "the layers below the cut did not change"
    revert(child, done.delta)
    with torch.no_grad():
        dict(model.net.named_parameters())["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    from dataclasses import replace

    train(replace(model, manifest=manifest(model.net)), selection, examples(12, pictures=False), LONG, session=session)
    assert len(cache) == 24, "now they did"


def test_interrupted_and_resumed_is_straight_through_at_the_cut(tmp_path: Path) -> None:
    model = tiny_model("llava", torch.bfloat16)
    selection = model.map.select(UPPER)
    settings = LONG.model_copy(update={"save_every": 5})
    straight = train(model, selection, examples(12), settings)

    class Enough(Exception):
        pass

    def stop(step: Any) -> None:
        if step.n == 6:
            raise Enough

    with pytest.raises(Enough):
        train(model, selection, examples(12), settings, session=Session(checkpoint_dir=tmp_path, on_step=stop))
    resumed = train(model, selection, examples(12), settings, session=Session(resume=tmp_path))
    assert resumed.reasons["cut"].startswith("yes")
    assert resumed.delta.child == straight.delta.child


@pytest.mark.parametrize(
    ("patterns", "changes", "reason"),
    [
        (("attention",), {}, "the first layer"),
        (("language.layers[1:].*", "language.embed"), {}, "the first layer, or something before it"),
        (UPPER, {"max_steps": 3}, "seen once"),
    ],
)
def test_where_there_is_nothing_to_gain_the_reason_is_said(patterns: tuple[str, ...], changes: dict[str, Any], reason: str) -> None:
    model = tiny_model("llama")
    done = train(model, model.map.select(patterns), examples(12, pictures=False), LONG.model_copy(update=changes))
    assert done.reasons["cut"].startswith("no")
    assert reason in done.reasons["cut"]


def test_a_model_whose_layers_need_more_than_the_states_is_trained_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that leave something behind for later ones cannot be passed over: the logits show it, and the shortcut is left."""
    model = tiny_model("llama")
    first, second = model.net.model.layers
    left: list[torch.Tensor] = []
    plain_first, plain_second = first.forward, second.forward

    def leave(hidden_states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        out = plain_first(hidden_states, *args, **options)
        left[:] = [out.mean(dim=-1, keepdim=True)]
        return out

    def take(hidden_states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return plain_second(hidden_states, *args, **options) + left[0].sum()

    monkeypatch.setattr(first, "forward", leave)
    monkeypatch.setattr(second, "forward", take)
    done = train(model, model.map.select(UPPER), examples(12, pictures=False), LONG)
    assert done.reasons["cut"].startswith("no"), done.reasons["cut"]


def test_an_adapter_and_compiled_layers_begin_at_the_cut_too() -> None:
    model = tiny_model("llama")
    selection = model.map.select(UPPER)
    settings = LONG.model_copy(update={"lr": 1e-3, "adapter": Adapter(rank=2)})
    done = train(model, selection, examples(12, pictures=False), settings)
    assert done.reasons["cut"].startswith("yes"), done.reasons["cut"]
    assert done.moved.still == ()


def test_the_first_layer_that_is_needed() -> None:
    found = tiny_model("llava").map
    for patterns, expected in (
        (("language.layers[1:].attn.q", "head"), 1),
        (("language.norm", "language.layers[1:].*"), 1),
        (("projector", "language.layers[1:].*"), 0),
        (("language.layers[:].norm.*",), 0),
    ):
        assert first_layer(found.select(patterns)) == expected
