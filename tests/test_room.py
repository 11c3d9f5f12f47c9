"""Whether a training fits: activations are recomputed where it would not, and what does not fit even so is refused before it begins."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from selectune.errors import DoesNotFit
from selectune.models import Model, assemble
from selectune.recipe import Optim
from selectune.training import room, train
from selectune.training.forecast import forecast, rough
from selectune.training.load import Load
from selectune.training.room import fitted, free, recompute
from training_fixtures import examples, tiny_model


def deep() -> Model:
    """Of eight layers: recomputing holds one of them at a time."""
    made = tiny_model("llama")
    made.net.config.num_hidden_layers = 8
    torch.manual_seed(0)
    return assemble("deep", type(made.net)(made.net.config), made.processor)


LOAD = Load(rows=16, length=64, labels=64)


def test_what_the_recipe_says_is_not_questioned() -> None:
    for said in (True, False):
        optim = Optim(checkpointing=said)
        assert recompute(optim, lambda one: 10**12, room=1) == (optim, f"{'yes' if said else 'no'}: the recipe says so")


@pytest.mark.parametrize(("free_bytes", "chosen", "why"), [(100, False, "no: "), (99, True, "yes: ")])
def test_activations_are_recomputed_only_where_they_would_not_fit(free_bytes: int, chosen: bool, why: str) -> None:
    optim, reason = recompute(Optim(), lambda one: 40 if one.checkpointing else 100, free_bytes)
    assert optim.checkpointing is chosen
    assert reason.startswith(why)


def test_activations_are_kept_where_recomputing_takes_no_less() -> None:
    optim, reason = recompute(Optim(), lambda one: 100, room=50)
    assert optim.checkpointing is False
    assert reason.endswith("recomputing would take no less")


def test_a_training_takes_the_settings_that_fit_into_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep()
    selection = model.map.select(("attention",))
    kept, recomputed = (forecast(model, selection, Optim(checkpointing=one), LOAD).memory.above for one in (False, True))
    assert recomputed < kept
    for memory, expected in ((4 * max(kept, rough(model, selection, Optim(), LOAD).above), False), (kept, False), (kept - 1, True)):
        monkeypatch.setattr(room, "free", lambda device, memory=memory: memory)
        assert fitted(model, selection, Optim(), LOAD)[0].checkpointing is expected


def test_a_batch_that_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep()
    selection = model.map.select(("attention",))
    least = forecast(model, selection, Optim(checkpointing=True), LOAD).memory.above
    monkeypatch.setattr(room, "free", lambda device: int(least / 1.2))
    with pytest.raises(DoesNotFit, match=r"a batch of 16 does not fit: .* GB are free; optim\.micro_batch=\d+ makes it"):
        fitted(model, selection, Optim(), LOAD)
    assert fitted(model, selection, Optim(checkpointing=True), LOAD)[0].checkpointing is True


def test_a_refused_training_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(room, "free", lambda device: 1000)
    with pytest.raises(DoesNotFit, match="does not fit"):
        train(model, model.map.select(("attention",)), examples(pictures=False), Optim(batch=4, max_steps=1))
    monkeypatch.undo()
    done = train(model, model.map.select(("attention",)), examples(pictures=False), Optim(batch=4, max_steps=1))
    assert done.delta.parent == model.id
    assert done.reasons["checkpointing"].startswith("no: about")


def test_recomputed_activations_lead_to_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep()
    selection, optim = model.map.select(("attention",)), Optim(batch=4, max_steps=3, lr=1e-2)
    kept = train(model, selection, examples(pictures=False), optim)
    chosen: dict[str, object] = {}

    def little(device: str) -> int:
        return int(chosen["room"])  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(room, "free", little)
    monkeypatch.setattr(room, "OFF_BY", 1e9)
    chosen["room"] = 1
    recomputed = train(model, selection, examples(pictures=False), optim)
    assert recomputed.reasons["checkpointing"].startswith("yes: ")
    assert recomputed.delta.digest == kept.delta.digest


def test_free_memory_is_no_more_than_the_control_group_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    everything = free()
    assert 0 < everything <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert free() == 3_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free() > 3_000_000
