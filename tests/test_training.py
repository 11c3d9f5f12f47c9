"""`fit` and `train` on tiny models: what they give, what they refuse, and that each shortcut changes nothing."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation_fixtures import record, records
from selectune.delta import apply
from selectune.errors import DataError, Diverged, DoesNotFit, InputError, ModelError, SelectionViolated
from selectune.evaluation import Suite, Task, evaluate
from selectune.hashing import manifest
from selectune.models import Model
from selectune.records import Encoder, Record
from selectune.training import FeatureCache, Session, Step, fit, train
from training_fixtures import attention, examples, optim, outside, same, tiny_model


def values(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.net.named_parameters()}


def trained(model: Model, patterns: tuple[str, ...] = ("attention",), **changes: Any) -> tuple[list[Step], dict[str, torch.Tensor]]:
    """The steps and the values after them, the model put back to what it was."""
    before = values(model)
    steps = list(fit(model, model.map.select(patterns), examples(pictures=model.is_vision), optim(**changes)))
    after = values(model)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            parameter.copy_(before[name])
    return steps, after


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], atol: float) -> bool:
    return all(torch.allclose(left[name], right[name], atol=atol) for name in left)


def test_steps_are_numbered_and_the_loss_falls() -> None:
    model = tiny_model()
    steps, _ = trained(model, max_steps=12, batch=12)
    assert [step.n for step in steps] == list(range(1, 13))
    assert {step.total for step in steps} == {12}
    assert steps[-1].loss < steps[0].loss
    assert all(step.grad_norm > 0 and step.seconds > 0 and step.tokens > 0 for step in steps)


def test_the_first_loss_is_the_models_own_over_the_batch() -> None:
    model = tiny_model()
    steps, _ = trained(model, batch=12, micro_batch=5, max_steps=1)
    encoder = Encoder(model.processor)
    total, count = 0.0, 0
    for one in examples():
        sample = encoder.encode(one)
        with torch.no_grad():
            output = model.net(
                input_ids=torch.tensor([sample.input_ids]), labels=torch.tensor([sample.labels]), **encoder.pixels(sample.pictures)
            )
        total += output.loss.item() * sample.supervised
        count += sample.supervised
    assert steps[0].tokens == count
    assert steps[0].loss == pytest.approx(total / count, rel=1e-5)


def test_training_is_adamw_on_the_models_own_loss() -> None:
    """An oracle in ten lines of torch: whole batch, plain pixels, full head."""
    model = tiny_model()
    settings = optim(batch=12, max_steps=3, warmup=0.0, schedule="constant", lr=1e-3, clip=1.0, eps=1e-3)
    before = values(model)
    _, ours = trained(model, **settings.model_dump(exclude_defaults=True))
    chosen = [dict(model.net.named_parameters())[component.parameter] for component in attention(model).components]
    model.net.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen, lr=1e-3, weight_decay=settings.weight_decay, eps=1e-3)  # a small eps makes signs of rounding
    encoder = Encoder(model.processor)
    samples = [encoder.encode(one) for one in examples()]
    from selectune.records import collate

    batch = collate(samples, 0)
    pixels = encoder.pixels(*(sample.pictures for sample in samples))
    for _ in range(3):
        optimizer.zero_grad()
        model.net(**batch, **pixels).loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
    theirs = values(model)
    assert close(ours, theirs, atol=2e-6)
    assert not close(ours, before, atol=2e-4)


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 3}, {"cache_features": False}, {"checkpointing": True}])
def test_dividing_caching_and_recomputing_change_nothing_but_rounding(changes: dict[str, Any]) -> None:
    model = tiny_model()
    steps, plain = trained(model, lr=1e-3, eps=1e-3)
    others, after = trained(model, lr=1e-3, eps=1e-3, **changes)
    assert [step.loss for step in others] == pytest.approx([step.loss for step in steps], rel=1e-4)
    assert close(plain, after, atol=2e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler meets its own
def test_compiled_layers_change_nothing_but_rounding_and_are_gone_afterwards() -> None:
    model = tiny_model()
    steps, plain = trained(model, lr=1e-3, eps=1e-3)
    others, after = trained(model, lr=1e-3, eps=1e-3, compile=True)
    assert [step.loss for step in others] == pytest.approx([step.loss for step in steps], rel=1e-4)
    assert close(plain, after, atol=2e-6)
    assert not any("forward" in vars(module) for module in model.net.modules())


def test_a_layer_that_cannot_be_compiled_is_an_error_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("selectune.training.kernels.torch.compile", lambda forward: refusing)
    model = tiny_model()
    with pytest.raises(ModelError, match=r"optim\.compile: the language layers cannot be compiled: RuntimeError: no C\+\+ compiler"):
        train(model, attention(model), examples(), optim(compile=True))


def test_both_shortcuts_are_taken_and_say_why() -> None:
    model = tiny_model()
    training = train(model, attention(model), examples(), optim())
    assert training.reasons["features"].startswith("yes: the first samples' logits differ by")
    assert training.reasons["head"].startswith("yes: the first samples' logits differ by")
    assert "language.layers.0.attn.q" in training.reasons["prefix"]


@pytest.mark.parametrize(
    ("patterns", "changes", "reason"),
    [
        (("projector",), {}, "no: projector."),
        (("attention",), {"cache_features": False}, "no: optim.cache_features is false"),
    ],
)
def test_features_are_not_cached_where_they_may_change(patterns: tuple[str, ...], changes: dict[str, Any], reason: str) -> None:
    model = tiny_model()
    training = train(model, model.map.select(patterns), examples(), optim(**changes))
    assert training.reasons["features"].startswith(reason)


def test_the_last_layer_computes_what_labels_need() -> None:
    model = tiny_model("llama")
    seen: dict[str, list[int]] = {}
    for path in ("model.layers.0.mlp", "model.layers.1.mlp", "model.layers.1.self_attn.o_proj"):
        rows = seen.setdefault(path, [])
        model.net.get_submodule(path).register_forward_hook(
            lambda _module, inputs, _output, rows=rows: rows.append(inputs[0].shape[:-1].numel())
        )
    records = examples(4, pictures=False)
    done = train(model, attention(model), records, optim(max_steps=1, batch=4))
    assert done.reasons["late"].startswith("yes")
    labels = done.steps[0].tokens
    assert seen["model.layers.1.mlp"][-1] == seen["model.layers.1.self_attn.o_proj"][-1] == labels
    assert seen["model.layers.0.mlp"][-1] > labels
    assert not any(module._forward_pre_hooks for module in model.net.modules()), "nothing is left behind"


@pytest.mark.parametrize(
    ("family", "pattern"),
    [
        ("phi3", "language.layers.*.attn.q"),
        ("phi3", "language.layers.0.mlp.up"),
        ("gpt2", "language.layers.*.attn.v"),
        ("gpt_neox", "language.*.attn.k"),
    ],
)
def test_gradients_of_a_slice_are_those_of_the_whole_there(family: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    selection = model.map.select((pattern,))
    records = examples(8, pictures=False)
    settings = optim(lr=1e-3, max_steps=3)
    sliced = train(model, selection, records, settings)
    monkeypatch.setattr("selectune.training.slicing._OUTPUTS", {})
    whole = train(model, selection, records, settings)
    assert "slices" in sliced.reasons
    assert "slices" not in whole.reasons
    for left, right in zip(sliced.steps, whole.steps, strict=True):
        assert left.loss == pytest.approx(right.loss, rel=1e-5)
        assert left.grad_norm == pytest.approx(right.grad_norm, rel=1e-4)
    products: list[tuple[int, ...]] = []
    monkeypatch.undo()
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if str(function).startswith("aten.mm") and torch.is_tensor(out):
                products.append(tuple(out.shape))
            return out

    part = next(iter(selection.parameters))
    full = tuple(dict(model.net.named_parameters())[part].shape)
    with Products():
        train(model, selection, records, optim(lr=1e-3, max_steps=1, batch=8))
    assert full not in products, "no gradient of all of the matrix is worked out"


def test_a_picture_after_the_last_answer_keeps_its_place() -> None:
    model = tiny_model()
    asked = [record(f"q{i}", "What is it?", "seven", shade=i) for i in range(4)]
    ending = records(*(Record(id=one.id, messages=(*one.messages, one.messages[0])) for one in asked))
    training = train(model, attention(model), ending, optim())
    assert training.reasons["features"].startswith("yes")
    assert training.reasons["head"].startswith("yes")


def test_text_needs_no_tower() -> None:
    for family in ("llava", "llama"):
        model = tiny_model(family)
        training = train(model, attention(model), examples(pictures=False), optim())
        assert training.reasons["features"] == "no: there are no pictures"
        assert training.delta.elements > 0


def test_records_with_and_without_pictures_go_together() -> None:
    model = tiny_model()
    mixed = records(*examples(4), *(record(f"t{i}", "What is it?", "seven") for i in range(4)))
    training = train(model, attention(model), mixed, optim(batch=8))
    assert training.reasons["features"].startswith("yes")
    assert len(training.steps) == 4


def test_a_model_that_ignores_injected_features_is_trained_on_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    plain = train(model, attention(model), examples(), optim(cache_features=False))
    own = type(model.net).forward

    @functools.wraps(own)
    def deaf(self: Any, *args: Any, mm_encoder_outputs: Any = None, **options: Any) -> Any:
        return own(self, *args, **options)

    monkeypatch.setattr(type(model.net), "forward", deaf)
    training = train(model, attention(model), examples(), optim())
    assert training.reasons["features"].startswith("no: the first samples' logits differ by")
    assert training.delta.digest == plain.delta.digest


def test_a_model_whose_head_mixes_positions_gets_the_whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    own = type(model.net.lm_head).forward

    def mixing(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        result = own(self, hidden)
        return result - result.mean(dim=1, keepdim=True) if self is model.net.lm_head else result

    monkeypatch.setattr(type(model.net.lm_head), "forward", mixing)
    training = train(model, attention(model), examples(), optim())
    assert training.reasons["head"].startswith("no: the first samples' logits differ by")
    assert len(training.steps) == 4


def test_no_graph_is_built_below_the_first_selected_component() -> None:
    model = tiny_model("llama")
    graphs: dict[int, bool] = {}
    for number, layer in enumerate(model.net.model.layers):
        layer.register_forward_hook(lambda module, args, output, number=number: graphs.__setitem__(number, output.requires_grad))
    for checkpointing in (False, True):
        next(fit(model, model.map.select(("language.layers.1.mlp.down",)), examples(pictures=False), optim(checkpointing=checkpointing)))
        assert graphs == {0: False, 1: True}


def test_the_network_is_the_base_again_and_the_delta_makes_the_child() -> None:
    model = tiny_model()
    settings = optim()
    training = train(model, attention(model), examples(), settings)
    assert manifest(model.net).id == model.id
    child = apply(model, training.delta)
    assert child.id == training.delta.child == manifest(model.net).id
    again = tiny_model()
    list(fit(again, attention(again), examples(), settings))
    assert manifest(again.net).id == child.id


def test_an_exception_in_between_puts_the_base_back() -> None:
    model = tiny_model()

    def stop(step: Step) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(model, attention(model), examples(), optim(), session=Session(on_step=stop))
    assert manifest(model.net).id == model.id


def test_gradients_modes_and_hooks_are_as_they_were_before() -> None:
    model = tiny_model()
    train(model, attention(model), examples(), optim())  # transformers puts hooks of its own on at the first pass, and leaves them
    model.net.train()
    for parameter in model.net.parameters():
        parameter.requires_grad_(True)
    hooks = [(len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.net.modules()]
    train(model, attention(model), examples(), optim(checkpointing=True))
    assert all(module.training for module in model.net.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.net.parameters())
    assert not model.net.is_activation_checkpointing
    assert hooks == [(len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.net.modules()]


def test_stepping_in_the_backward_pass_gives_the_same_steps_and_frees_gradients() -> None:
    model = tiny_model("phi3")
    selection = model.map.select(("language.layers.*.attn.q", "language.layers.1.mlp.{gate,up,down}"))
    records = examples(8, pictures=False)
    plain = train(model, selection, records, optim(clip=None))
    alive: list[int] = []

    def count(*_: Any) -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.net.parameters()))

    first = model.net.get_parameter("model.layers.0.self_attn.qkv_proj.weight")
    handle = first.register_hook(count)
    early = train(model, selection, records, optim(clip=None, in_backward=True))
    handle.remove()
    assert max(alive) == 0, "every later layer's gradient is gone when the first layer's comes"
    assert early.delta.child == plain.delta.child
    for left, right in zip(early.steps, plain.steps, strict=True):
        assert left.grad_norm == pytest.approx(right.grad_norm, rel=1e-5)
    with pytest.raises(ValueError, match="set clip to null"):
        optim(in_backward=True)


def test_leaving_early_keeps_what_was_learned() -> None:
    model = tiny_model()
    chosen = attention(model)
    kept = outside(model.net, chosen)
    for step in fit(model, chosen, examples(), optim()):
        if step.n == 2:
            break
    assert manifest(model.net).id != model.id
    assert same(outside(model.net, chosen), kept)


def test_dropout_of_a_selected_part_stays_off() -> None:
    model = tiny_model("llama")
    plain, _ = trained(model)
    model.net.config.attention_dropout = 0.5
    for layer in model.net.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.net.train()
    assert [step.loss for step in trained(model)[0]] == [step.loss for step in plain]


def test_overlong_samples_are_counted_and_left_out() -> None:
    model = tiny_model()
    encoder = Encoder(model.processor)
    lengths = sorted(len(encoder.encode(one).input_ids) for one in examples())
    limit = lengths[5]
    training = train(model, attention(model), examples(), optim(max_length=limit))
    assert training.skipped == {f"longer than {limit} tokens": sum(length > limit for length in lengths)}
    with pytest.raises(DataError, match="longer than 2 tokens"):
        train(model, attention(model), examples(), optim(max_length=2))


def test_a_loss_that_is_not_finite_names_the_step_and_the_samples() -> None:
    model = tiny_model()
    broken = model.net.get_input_embeddings()
    encoder = Encoder(model.processor)
    samples = [encoder.encode(one) for one in (*examples(3), record("odd", "Is it a ~?", "dog", shade=1))]
    rare = next(token for token in samples[-1].input_ids if all(token not in sample.input_ids for sample in samples[:-1]))
    with torch.no_grad():
        broken.weight[rare] = math.nan
    with pytest.raises(Diverged, match=r"step 1: the loss is nan.*samples: odd\. "):
        train(model, attention(model), records(*examples(3), record("odd", "Is it a ~?", "dog", shade=1)), optim())


def test_a_selected_part_that_no_gradient_reaches_is_a_violation() -> None:
    model = tiny_model()
    with pytest.raises(SelectionViolated, match="vision"):
        train(model, model.map.select(("vision",)), examples(pictures=False), optim())


def test_a_batch_that_does_not_fit_is_refused_before_anything_moves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from selectune.training import room

    monkeypatch.setattr(room, "free", lambda _device="cpu": 60_000)
    model = tiny_model("llama")
    with pytest.raises(DoesNotFit, match=r"optim\.batch: a batch of 12 does not fit: .* are free; .*optim\.micro_batch=\d+"):
        train(model, attention(model), examples(pictures=False), optim(batch=12), session=Session(checkpoint_dir=tmp_path / "states"))
    assert manifest(model.net).id == model.id
    assert not (tmp_path / "states").exists()


def test_an_empty_selection_is_refused_before_anything_is_done() -> None:
    model = tiny_model()
    from selectune.components import Selection

    with pytest.raises(InputError, match="the selection is empty"):
        train(model, Selection(patterns=(), components=(), full_shapes={}), examples(), optim())


def test_a_small_step_in_bf16_is_no_violation() -> None:
    model = tiny_model("llama", torch.bfloat16)
    training = train(model, model.map.select(("language.norm",)), examples(pictures=False), optim(lr=1e-6, max_steps=1, weight_decay=0.0))
    assert training.steps[0].grad_norm > 0


def test_features_are_shared_between_trainings() -> None:
    model = tiny_model()
    cache = FeatureCache()
    session = Session(features=cache)
    train(model, attention(model), examples(), optim(batch=12), session=session)
    assert cache.misses == 12
    train(model, attention(model), examples(), optim(batch=12), session=session)
    assert cache.misses == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluating_in_between_changes_nothing(dtype: torch.dtype) -> None:
    """Law 5."""
    model = tiny_model(dtype=dtype)
    suite = Suite(tasks=(Task(name="seen", records=examples(6), kind="generate", scorer="exact", max_new_tokens=2, role="target"),))
    cache = FeatureCache()
    alone = train(model, attention(model), examples(), optim(), session=Session(features=cache))
    watched = train(model, attention(model), examples(), optim(), session=Session(on_step=lambda step: evaluate(model, suite)))
    assert watched.delta.digest == alone.delta.digest
