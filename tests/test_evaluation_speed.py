"""The fast ways of asking give what the plain way gives, are taken only where they do, and compute once what is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, strategies
from transformers import JambaConfig, JambaForCausalLM, MistralConfig, MistralForCausalLM, T5Config, T5ForConditionalGeneration

from evaluation_fixtures import llama, llava, picture, questions, record, records, text, tokenizer
from selectune.delta import Delta, applied
from selectune.errors import ModelError
from selectune.evaluation import Suite, Task, evaluate, evaluator, writing
from selectune.evaluation.asking import Shared, asker
from selectune.evaluation.evaluator import evaluate_versions, in_turn
from selectune.evaluation.plans import groups, waves
from selectune.evaluation.undisturbed import undisturbed
from selectune.hashing import manifest
from selectune.models import Model, assemble
from selectune.records import Encoded, Message, Picture, Records
from selectune.training import FeatureCache, Session, train
from selectune.training.features import Tower
from test_evaluation_families import asked, next_model, qwen_model
from training_fixtures import optim, tiny_model

UPPER = ("language.layers[1:].attn.*",)


def suite(asked_for: Records, **more: Any) -> Suite:
    return Suite(tasks=(Task(name="q", records=asked_for, **{"max_new_tokens": 5, **more}),))


def plainly(model: Model, wanted: Suite, monkeypatch: pytest.MonkeyPatch, batch: int = 3) -> list[str]:
    """What `generate` alone writes."""
    with monkeypatch.context() as patch:
        patch.setattr(writing, "settled", lambda asker, prompts: False)
        return [sample.output for sample in evaluate(model, wanted, batch=batch).samples]


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "qwen3_moe", "gpt_neox", "gpt2", "falcon", "bloom", "gpt_bigcode"])
def test_answers_of_text_models_are_those_of_generate(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    wanted = suite(questions(9, pictures=False))
    fast = evaluate(model, wanted, batch=3)
    assert [sample.output for sample in fast.samples] == plainly(model, wanted, monkeypatch)
    assert fast.environment["way.pooled"].startswith("yes: "), fast.environment


def test_several_questions_on_one_picture_read_it_once_and_are_answered_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (llava(), qwen_model(), next_model()):
        one = asked()[0].pictures[0] if model.name != "tiny-llava" else picture(3)
        ways = ("What is in the picture?", "What is it?", "Is it a cat, a dog or a red fish in the picture?", "What time is it?")
        rows = [replace(record(f"q{n}", "", "a cat"), messages=_on(one, words)) for n, words in enumerate(ways * 2)]
        wanted = suite(records(*rows))
        fast = evaluate(model, wanted, batch=8)
        assert fast.environment["way.divided"].startswith("yes"), fast.environment
        assert [sample.output for sample in fast.samples] == plainly(model, wanted, monkeypatch, batch=1)
        alone = [evaluate(model, suite(records(row))).samples[0].output for row in rows]
        assert [sample.output for sample in fast.samples] == alone


def _on(one: Picture, words: str) -> tuple[Message, ...]:
    return (Message(role="user", parts=(one, words)), Message(role="assistant", parts=("a cat",)))


def test_a_beginning_is_computed_once_for_all_that_share_it() -> None:
    model = llava()
    rows = records(*(replace(record(f"q{n}", "", "a cat"), messages=_on(picture(n % 2), "What is it?" + " Is it?" * n)) for n in range(8)))
    seen: list[int] = []
    evaluate(model, suite(rows), batch=8)  # settles the ways
    hook = model.net.model.language_model.layers[0].mlp.register_forward_hook(lambda module, given, made: seen.append(made[..., 0].numel()))
    evaluate(model, suite(rows, max_new_tokens=1), batch=8)
    hook.remove()
    with undisturbed(model.net):
        prompts = [asker(model).encoder.prompt(row) for row in rows]
    plan = groups(prompts, 8, image=model.net.config.image_token_id, share=True)
    assert len(plan) == 1
    assert len(plan[0].firsts) == 2, "two pictures"
    assert sum(seen) == plan[0].computed(prompts) < groups(prompts, 8)[0].computed(prompts)


def _windowed() -> Model:
    torch.manual_seed(0)
    words = tokenizer()
    config = MistralConfig(**_sizes(len(words)), sliding_window=8)
    return assemble("tiny-mistral", MistralForCausalLM(config), words)


def _mixing() -> Model:
    torch.manual_seed(0)
    words = tokenizer()
    sizes = _sizes(len(words)) | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1}
    config = JambaConfig(**sizes, use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4)
    return assemble("tiny-jamba", JambaForCausalLM(config), words)


def _sizes(vocabulary: int) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None}
    return {**sizes, **ends, "vocab_size": vocabulary, "initializer_range": 0.4, "max_position_embeddings": 256}


@pytest.mark.parametrize(("make", "reason"), [(_windowed, "layers of other kinds: DynamicSliding"), (_mixing, "no: ")])
def test_a_model_whose_memory_is_of_another_kind_is_asked_by_generate_and_says_why(make: Any, reason: str) -> None:
    model = make()
    rows = questions(6, pictures=False)
    found = evaluate(model, suite(rows, likelihoods=True), batch=2)
    assert reason in found.environment["way.pooled"]
    assert found.environment["way.pooled"].startswith("no")
    for row, sample in zip(rows, found.samples, strict=True):
        with undisturbed(model.net):
            ids = asker(model).encoder.prompt(row).input_ids
            made = model.net.generate(torch.tensor([ids]), max_new_tokens=5)[0, len(ids) :]
        assert sample.output == model.tokenizer.decode(writing.until_end(made.tolist(), [0]), skip_special_tokens=True).strip()
        assert len(sample.extra["choice"]["logprobs"]) == 4


def test_a_model_with_an_encoder_is_asked_by_generate_and_its_likelihoods_are_refused() -> None:
    torch.manual_seed(0)
    words = tokenizer()
    ends = {"decoder_start_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 40.0}
    model = assemble("tiny-t5", T5ForConditionalGeneration(T5Config(vocab_size=len(words), **sizes, **ends)), words)
    rows = questions(6, pictures=False)
    found = evaluate(model, suite(rows), batch=1)
    assert found.environment["way.pooled"] == "no: the model has an encoder, which reads a prompt at once"
    assert len({sample.output for sample in found.samples} - {""}) > 1
    for row, sample in zip(rows, found.samples, strict=True):
        with undisturbed(model.net):
            ids = asker(model).encoder.prompt(row).input_ids
            made = model.net.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, 1:]
        assert sample.output == words.decode(writing.until_end(made.tolist(), [0]), skip_special_tokens=True).strip()
    for task in (
        suite(rows, likelihoods=True),
        suite(rows, kind="choice"),
        suite(records(text("t", "Some plain words.")), kind="perplexity"),
    ):
        with pytest.raises(ModelError, match="it has an encoder, and records are laid out for a decoder"):
            evaluate(model, task)


def test_a_model_that_continues_otherwise_than_generate_is_found_out() -> None:
    """One that looks at how many rows there are, say: the logits on trial show it."""
    model = llama()
    hook = model.net.lm_head.register_forward_hook(
        lambda module, given, made: made + torch.arange(made.shape[-1]) if len(made) == 2 else made
    )
    found = evaluate(model, suite(questions(4, pictures=False)))
    hook.remove()
    assert found.environment["way.pooled"].startswith("no: the first prompts' logits differ"), found.environment


def test_finished_answers_leave_and_waiting_prompts_take_their_places() -> None:
    model = llama(seed=3)
    rows = questions(40, pictures=False)
    wanted = suite(rows, max_new_tokens=6)
    evaluate(model, wanted, batch=2)
    steps: list[int] = []
    hook = model.net.register_forward_hook(lambda module, given, made: steps.append(len(made.logits)))
    found = evaluate(model, wanted, batch=2)
    hook.remove()
    lengths = [sample.extra["tokens"] for sample in found.samples]
    assert max(steps) == 8, "four batches side by side"
    with undisturbed(model.net):
        prompts = [asker(model).encoder.prompt(row) for row in rows]
    beginnings = sum(len(group.firsts) for group in groups(prompts, 2, share=True))
    # A prompt takes a row of one pass, and each further token a row of one step; the end token too, unless the limit came first.
    assert sum(steps) - beginnings == sum(length if length == 6 else length + 1 for length in lengths)


def test_of_equally_likely_tokens_the_first_is_written_as_generate_does(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = llama(seed=3)
    head = plain.net.get_output_embeddings().weight
    half = len(head) // 2
    with torch.no_grad():
        head[half : 2 * half] = head[:half]
    model = assemble("tied", plain.net.to(torch.bfloat16), plain.processor)
    wanted = suite(questions(9, pictures=False))
    found = evaluate(model, wanted, batch=3)
    assert found.environment["way.pooled"].startswith("yes: ")
    said = [sample.output for sample in found.samples]
    assert said == plainly(model, wanted, monkeypatch)
    assert len(set(said)) > 1


def test_the_same_measurement_twice_is_the_same_to_the_last_bit() -> None:
    for model, rows in ((llava(), questions(7)), (qwen_model(), asked())):
        wanted = Suite(tasks=(Task(name="q", records=rows, likelihoods=True), Task(name="c", records=rows, kind="choice")))
        first = evaluate(model, wanted, batch=3)
        assert evaluate(model, wanted, batch=3).samples == first.samples


def _versions(model: Model, n: int = 3) -> tuple[dict[str, tuple[Delta, ...]], Any]:
    """A chain of updates of the upper layer's attention."""
    selection = model.map.select(UPPER)
    chain: tuple[Delta, ...] = ()
    found: dict[str, tuple[Delta, ...]] = {"base": ()}
    version = model
    with ExitStack() as stack:
        for number in range(n):
            rows = questions(8, pictures=model.is_vision)
            delta = train(version, selection, rows, optim(max_steps=2, batch=4, lr=0.05), session=Session(seed=number)).delta
            version = stack.enter_context(applied(version, delta))
            chain = (*chain, delta)
            found[f"stage {number}"] = chain
    return found, selection


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2"])
def test_versions_are_measured_as_one_by_one_and_what_lies_below_is_computed_once(family: str) -> None:
    model = tiny_model(family)
    versions, _ = _versions(model)
    rows = questions(9, pictures=family == "llava")
    wanted = Suite(
        tasks=(
            Task(name="q", records=rows, likelihoods=True, max_new_tokens=3),
            Task(name="c", records=rows, kind="choice"),
            Task(name="t", records=records(text("a", "a cat and a dog"), text("b", "seven fish in the picture")), kind="perplexity"),
        )
    )
    alone = {}
    for stage, chain in versions.items():
        with _applied(model, chain) as version:
            alone[stage] = evaluate(version, wanted, stage=stage, batch=4)
    before = model.id
    lower: list[int] = []
    path = next(c.parameter for c in model.map.components if c.name.startswith("language.layers.0.mlp.")).rpartition(".")[0]
    model.net.get_submodule(path).register_forward_hook(lambda module, given, made: lower.append(made[..., 0].numel()))
    counts = []
    shared = Shared(selection=model.map.select(UPPER))
    found = {}
    for stage, chain in versions.items():
        lower.clear()
        found |= evaluate_versions(model, {stage: chain}, wanted, batch=4, shared=shared)
        counts.append(sum(lower))
    assert model.id == before
    for stage, measurement in found.items():
        assert measurement.model_id == alone[stage].model_id
        assert measurement.environment["way.frozen"].startswith("yes"), measurement.environment
        for left, right in zip(measurement.samples, alone[stage].samples, strict=True):
            assert (left.id, left.output, left.prompt_digest) == (right.id, right.output, right.prompt_digest)
            assert left.score == pytest.approx(right.score, rel=1e-5)
            if left.task != "t":
                assert left == right, "the same groups, and so the same bits"
    assert len({tuple(sample.output for sample in one.samples) for one in found.values()}) > 1
    assert counts[1] < counts[0] / 2, "only answers go through the lower layers again"
    again = evaluate_versions(model, versions, wanted, batch=4)
    for stage, measurement in again.items():
        assert measurement.samples == found[stage].samples, "what the deltas touch says where they begin"


@contextmanager
def _applied(model: Model, chain: tuple[Delta, ...]) -> Iterator[Model]:
    with ExitStack() as stack:
        version = model
        for delta in chain:
            version = stack.enter_context(applied(version, delta))
        yield version


def test_versions_in_turn_keep_what_neighbours_share_and_end_where_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    versions, _ = _versions(model, 2)
    order = {name: versions[name] for name in ("stage 0", "stage 1", "base")} | {"again": versions["stage 1"]}
    put_on: list[str] = []
    plain = evaluator.applied
    monkeypatch.setattr(evaluator, "applied", lambda net, delta: put_on.append(delta.child) or plain(net, delta))
    ids = {stage: version.id for stage, version in in_turn(model, order)}
    first, second = (delta.child for delta in versions["stage 1"])
    assert ids == {"stage 0": first, "stage 1": second, "base": model.id, "again": second}
    assert put_on == [first, second, first, second], "the first stays on for the second"
    assert manifest(model.net).id == model.id


def test_a_frozen_layer_that_changed_is_computed_again() -> None:
    model = llama()
    shared = Shared(selection=model.map.select(UPPER))
    wanted = suite(questions(5, pictures=False))
    first = evaluate(model, wanted, shared=shared)
    kept = len(shared.features.store)
    with torch.no_grad():
        model.net.model.layers[0].mlp.up_proj.weight.mul_(-1)
    moved = evaluate(model, wanted, shared=shared)
    assert len(shared.features.store) == 2 * kept
    assert moved.samples == evaluate(model, wanted).samples != first.samples


def test_training_and_evaluation_share_features_and_states_of_the_same_records() -> None:
    model = tiny_model("llava")
    rows, cache = questions(12), FeatureCache()
    selection = model.map.select(UPPER)
    wanted = Suite(tasks=(Task(name="t", records=rows, kind="perplexity"), Task(name="q", records=rows)))
    train(model, selection, rows, optim(max_steps=9, batch=4), session=Session(features=cache))
    assert cache.misses == 12
    states = len(cache)
    lower: list[int] = []
    evaluate(model, wanted, shared=Shared(features=cache, selection=selection))
    assert cache.misses == 12, "no picture is encoded again"
    hook = model.net.model.language_model.layers[0].mlp.register_forward_hook(lambda module, given, made: lower.append(1))
    only = Suite(tasks=wanted.tasks[:1])
    served = evaluate(model, only, shared=Shared(features=cache, selection=selection))
    hook.remove()
    assert not lower, "the training's states were enough"
    plain = evaluate(model, only)
    assert [one.score for one in served.samples] == pytest.approx([one.score for one in plain.samples], rel=1e-5)
    fresh = FeatureCache()
    evaluate(model, only, shared=Shared(features=fresh, selection=selection))
    assert len(fresh) == states, "and the reverse: the same are kept for a training"
    train(model, selection, rows, optim(max_steps=9, batch=4), session=Session(features=fresh))
    assert len(fresh) == states


@given(
    strategies.lists(strategies.tuples(strategies.integers(0, 3), strategies.integers(1, 12)), min_size=1, max_size=40),
    strategies.integers(1, 8),
)
def test_a_plan_has_every_prompt_once_and_never_costs_more_than_without_sharing(rows: list[tuple[int, int]], batch: int) -> None:
    prompts = [
        Encoded(record_id=str(n), input_ids=[9, which, *range(20, 20 + size)], labels=[], pictures=(), text="", extra={})
        for n, (which, size) in enumerate(rows)
    ]
    plain, shared = groups(prompts, batch), groups(prompts, batch, share=True)
    for plan in (plain, shared):
        assert sorted(index for group in plan for index in group.indices) == list(range(len(prompts)))
        assert all(len(group.indices) <= batch for group in plan)
        assert [group for wave in waves(plan, batch) for group in wave] == plan
        for group in plan:
            for row, length in enumerate(group.length):
                first = prompts[group.indices[group.firsts[group.owners[row]]]].input_ids
                mine = prompts[group.indices[row]].input_ids
                assert 0 < length < len(mine)
                assert first[:length] == mine[:length]
    assert sum(group.computed(prompts) for group in shared) <= sum(group.computed(prompts) for group in plain)


def test_features_are_computed_in_the_tower_that_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of: list[int] = []
    plain = Tower.of
    monkeypatch.setattr(Tower, "of", lambda self, encoder, pictures: asked_of.append(len(pictures)) or plain(self, encoder, pictures))
    cache = FeatureCache()
    evaluate(llava(), suite(questions(4)), shared=Shared(features=cache))
    assert cache.misses == 4
    assert asked_of


@pytest.mark.parametrize(("same", "calls"), [(True, 1 + 8 + 3), (False, 1 + 8 + 20)])
def test_a_tower_sees_several_pictures_at_once_where_that_changes_no_bit(same: bool, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = llava(), []
    plain = model.net.get_image_features

    def counted(pixel_values: torch.Tensor, **named: Any) -> Any:
        seen.append(len(pixel_values))
        output = plain(pixel_values=pixel_values, **named)
        sums = [float(pixels.sum()) + (0 if same else len(pixel_values)) for pixels in pixel_values]
        output.pooler_output = [torch.full_like(one, value) for one, value in zip(output.pooler_output, sums, strict=True)]
        return output

    monkeypatch.setattr(model.net, "get_image_features", counted)
    cache = FeatureCache()
    with undisturbed(model.net):
        ready = asker(model, Shared(features=cache))
        pictures = [picture(number) for number in range(20)]
        found = ready.tower.of(ready.encoder, pictures)
        assert len(seen) == calls
        for one, features in zip(pictures, found, strict=True):
            assert torch.equal(ready.tower._compute(ready.encoder, [one])[0].tokens, features.tokens), "to the last bit what it is alone"
