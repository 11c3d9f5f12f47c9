"""What `evaluate` measures is what plain code would measure, item by item, and it goes to disk and back whole."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from evaluation_fixtures import llama, llava, picture, questions, record, records, text
from selectune.errors import DataError, InputError, NoMatch, StorageError
from selectune.evaluation import Measurement, Reference, Sample, Suite, Task, evaluate
from selectune.evaluation.asking import asker, batches
from selectune.evaluation.features import tower
from selectune.evaluation.undisturbed import undisturbed
from selectune.evaluation.writing import end_tokens, until_end
from selectune.models import Model
from selectune.records import Encoder, Message, Record


@pytest.fixture(scope="module")
def words_model() -> Model:
    return llama()


@pytest.fixture(scope="module")
def picture_model() -> Model:
    return llava()


def suite(*tasks: Task) -> Suite:
    return Suite(tasks=tasks)


def plainly(model: Model, one: Record, steps: int) -> list[int]:
    """Greedy ids by one whole forward a token, one record at a time, from pixels: no batch, no padding, no cache."""
    encoder = Encoder(model.processor)
    prompt = encoder.prompt(one)
    ids, ends = list(prompt.input_ids), end_tokens(asker(model))
    pixels = encoder.pixels(prompt.pictures) if prompt.pictures else {}
    for _ in range(steps):
        with torch.no_grad():
            logits = model.net(input_ids=torch.tensor([ids]), **pixels).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] in ends:
            break
    return until_end(ids[len(prompt.input_ids) :], ends)


def loglikelihood(model: Model, one: Record, answer: str) -> float:
    """The sum over the labelled tokens of a record with this answer, by one whole forward from pixels."""
    encoder = Encoder(model.processor)
    row = encoder.encode(replace(one, messages=(*one.prompt, Message(role="assistant", parts=(answer,)))))
    pixels = encoder.pixels(row.pictures) if row.pictures else {}
    with torch.no_grad():
        logs = model.net(input_ids=torch.tensor([row.input_ids]), **pixels).logits[0].double().log_softmax(-1)
    return sum(float(logs[at - 1, label]) for at, label in enumerate(row.labels) if label != -100)


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_batched_cached_generation_writes_what_a_plain_loop_writes(
    words_model: Model, picture_model: Model, pictures: bool, batch: int
) -> None:
    model = picture_model if pictures else words_model
    asked = questions(7, pictures=pictures)
    samples = evaluate(model, suite(Task(name="q", records=asked, max_new_tokens=6)), batch=batch).of("q")
    decode = model.tokenizer.decode
    assert [sample.output for sample in samples.values()] == [
        decode(plainly(model, one, 6), skip_special_tokens=True).strip() for one in asked
    ]
    assert list(samples) == [one.id for one in asked]
    assert [sample.reference for sample in samples.values()] == [one.answer for one in asked]
    assert len({sample.output for sample in samples.values()}) > 1


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_choice_is_scored_by_the_sum_over_its_words_and_the_end_token(
    words_model: Model, picture_model: Model, pictures: bool, batch: int
) -> None:
    model = picture_model if pictures else words_model
    asked = questions(5, pictures=pictures)
    samples = evaluate(model, suite(Task(name="q", records=asked, kind="choice")), batch=batch).of("q")
    for one, sample in zip(asked, samples.values(), strict=True):
        wanted = [loglikelihood(model, one, choice) for choice in one.meta["choices"]]
        assert sample.extra["logprobs"] == pytest.approx(wanted, rel=1e-4)
        assert sample.output == one.meta["choices"][int(np.argmax(wanted))]
        assert sample.score == float(sample.output == one.answer)
        assert sample.extra["tokens"] == [3, 2, 4, 2]


def test_a_choice_that_begins_another_gains_nothing_from_it(words_model: Model) -> None:
    asked = records(record("q", "What is it?", "a red fish", choices=["a red", "a red fish"]))
    sample = evaluate(words_model, suite(Task(name="q", records=asked, kind="choice"))).samples[0]
    assert sample.extra["logprobs"] == pytest.approx(
        [loglikelihood(words_model, asked[0], choice) for choice in ("a red", "a red fish")], rel=1e-4
    )


def test_both_readings_of_a_question_are_kept_when_asked_for(picture_model: Model) -> None:
    asked = questions(4)
    both = evaluate(picture_model, suite(Task(name="q", records=asked, likelihoods=True)))
    ranked = evaluate(picture_model, suite(Task(name="q", records=asked, kind="choice")))
    for written, likely in zip(both.samples, ranked.samples, strict=True):
        assert written.extra["choice"]["output"] == likely.output
        assert written.extra["choice"]["score"] == likely.score
        assert written.prompt_digest == likely.prompt_digest
    free = evaluate(picture_model, suite(Task(name="q", records=asked)))
    assert all("choice" not in sample.extra for sample in free.samples)
    assert [sample.output for sample in free.samples] == [sample.output for sample in both.samples]


@pytest.mark.parametrize("batch", [1, 8])
def test_a_perplexity_is_that_of_one_whole_forward(words_model: Model, batch: int) -> None:
    texts = records(text("a", "a cat and a dog in the picture"), text("b", "seven"), text("c", "one two three four seven fish " * 5))
    measured = evaluate(words_model, suite(Task(name="t", records=texts, kind="perplexity")), batch=batch)
    total, tokens = 0.0, 0
    for one, sample in zip(texts, measured.samples, strict=True):
        ids = torch.tensor([words_model.tokenizer(one.answer)["input_ids"]])
        with torch.no_grad():
            loss = float(words_model.net(input_ids=ids, labels=ids).loss)
        assert sample.score == pytest.approx(-loss, rel=1e-5)
        assert sample.extra["tokens"] == ids.shape[1] - 1
        total, tokens = total + loss * sample.extra["tokens"], tokens + sample.extra["tokens"]
    assert measured.headline("t") == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert measured.score("t") == pytest.approx(np.mean([sample.score for sample in measured.samples]))


def test_a_caption_is_scored_by_token_f1_with_the_nearest_reference(picture_model: Model) -> None:
    said = evaluate(picture_model, suite(Task(name="c", records=questions(1)))).samples[0].output
    asked = records(replace(questions(1)[0], meta={"answers": ["something else", f"the {said}"]}))
    sample = evaluate(picture_model, suite(Task(name="c", records=asked, kind="caption"))).samples[0]
    assert sample.score == 1
    assert sample.reference == "a cat"


def test_writing_stops_at_the_end_token_though_it_is_the_padding_token_too(words_model: Model) -> None:
    model = llama(seed=3)
    end = model.tokenizer.eos_token_id
    assert model.tokenizer.pad_token_id == end
    asked = questions(9, pictures=False)
    free = [plainly(model, one, 4) for one in asked]
    # Every second token that the model would write is made the end: the head's row of the end token takes the place of that token's.
    victim = free[0][1]
    with torch.no_grad():
        head = model.net.lm_head.weight
        head[end], head[victim] = head[victim].clone(), head[end].clone()
    samples = evaluate(model, suite(Task(name="q", records=asked, max_new_tokens=4)), batch=4).samples
    lengths = [sample.extra["tokens"] for sample in samples]
    assert lengths == [len(plainly(model, one, 4)) for one in asked]
    assert len(set(lengths)) > 1


def test_the_templates_end_of_turn_ends_an_answer_though_the_configuration_names_another() -> None:
    model = llama()
    model.net.generation_config.eos_token_id = 7
    assert end_tokens(asker(model)) == sorted({7, model.tokenizer.convert_tokens_to_ids("<|im_end|>")})
    assert until_end([4, 5, 7, 5], [0, 7]) == [4, 5]
    assert until_end([4, 5], [0, 7]) == [4, 5]


def test_greedy_is_greedy_whatever_the_generation_configuration_says(words_model: Model) -> None:
    asked = suite(Task(name="q", records=questions(4, pictures=False), max_new_tokens=6))
    plain = evaluate(words_model, asked)
    model = llama()
    settings = model.net.generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty, settings.num_beams = True, 5.0, 50.0, 3
    model.net.generation_config.max_length = 3
    assert [sample.output for sample in evaluate(model, asked).samples] == [sample.output for sample in plain.samples]
    assert model.net.generation_config is settings
    assert settings.repetition_penalty == 50.0


def test_pictures_go_through_the_vision_tower_once_until_its_weights_change() -> None:
    model = llava()
    asked = suite(Task(name="q", records=questions(4)), Task(name="c", records=questions(3), kind="choice"))
    seen: list[int] = []
    hook = model.net.model.vision_tower.register_forward_hook(lambda module, given, made: seen.append(1))
    first = evaluate(model, asked)
    assert len(seen) == 4
    assert evaluate(model, asked).samples == first.samples
    with torch.no_grad():
        model.net.lm_head.weight.mul_(-1)
    assert [sample.output for sample in evaluate(model, asked).samples] != [sample.output for sample in first.samples]
    assert len(seen) == 4
    with torch.no_grad():
        model.net.model.multi_modal_projector.linear_1.weight.mul_(3)
    moved = evaluate(model, asked)
    assert len(seen) == 8
    hook.remove()
    fresh = llava()
    fresh.net.load_state_dict(model.net.state_dict())
    assert evaluate(fresh, asked).samples == moved.samples


def test_the_feature_cache_goes_with_its_network() -> None:
    from selectune.evaluation import features

    before = len(features._CACHES)
    model = llava()
    tower(model)
    assert len(features._CACHES) == before + 1
    del model
    import gc

    gc.collect()
    assert len(features._CACHES) <= before


def test_evaluation_leaves_modes_gradients_and_random_states_as_they_were(picture_model: Model) -> None:
    net = picture_model.net
    net.train()
    net.model.vision_tower.eval()
    net.lm_head.weight.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    wanted = [parameter.requires_grad for parameter in net.parameters()]
    states = [random.getstate(), tuple(np.random.get_state()[1]), torch.get_rng_state()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = evaluate(picture_model, suite(Task(name="q", records=questions(3), likelihoods=True)))
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == wanted
    assert random.getstate() == states[0]
    assert tuple(np.random.get_state()[1]) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    net.eval().requires_grad_(True)
    assert evaluate(picture_model, suite(Task(name="q", records=questions(3), likelihoods=True))).samples == measured.samples


def test_even_an_evaluation_that_fails_leaves_the_model_as_it_was(words_model: Model) -> None:
    words_model.net.train()

    def measure() -> None:
        with undisturbed(words_model.net):
            torch.rand(3)
            assert not words_model.net.training
            raise KeyError("stop")

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        measure()
    assert words_model.net.training
    assert torch.equal(torch.get_rng_state(), before)
    words_model.net.eval()


def test_batches_hold_every_item_once_the_longest_first() -> None:
    lengths = [3, 9, 1, 9, 4]
    assert list(batches(lengths, 2)) == [[1, 3], [4, 0], [2]]
    assert list(batches(lengths, 4, tokens=10)) == [[1], [3], [4, 0], [2]]
    assert list(batches(lengths, 4, tokens=1)) == [[1], [3], [4], [0], [2]]


def test_progress_counts_the_records_of_each_task(words_model: Model) -> None:
    told: list[tuple[str, int, int]] = []
    tasks = [Task(name=kind, records=questions(5, pictures=False), kind=kind) for kind in ("generate", "choice", "perplexity")]
    evaluate(words_model, suite(*tasks), batch=2, progress=lambda *news: told.append(news))
    for task in tasks:
        counts = [(done, total) for name, done, total in told if name == task.name]
        assert counts[-1] == (5, 5)
        assert [done for done, _ in counts] == sorted({done for done, _ in counts})


def test_samples_of_one_picture_are_one_cluster_unless_the_record_says_otherwise(picture_model: Model) -> None:
    asked = records(
        record("a", "What is it?", "cat", shade=1),
        record("b", "Is it a cat?", "cat", shade=1),
        record("c", "What is it?", "cat", shade=2),
        record("d", "What is it?", "cat", shade=1, cluster="mine"),
        record("e", "What is it?", "cat"),
    )
    clusters = evaluate(picture_model, suite(Task(name="q", records=asked))).clusters("q")
    assert clusters == {"a": picture(1).digest, "b": picture(1).digest, "c": picture(2).digest, "d": "mine", "e": "e"}


def test_a_scorer_of_the_users_own_sees_the_output_and_the_whole_reference(words_model: Model) -> None:
    asked = questions(3, pictures=False)
    seen: list[tuple[str, Reference]] = []

    def mine(output: str, reference: Reference) -> float:
        seen.append((output, reference))
        return 0.25

    measured = evaluate(words_model, suite(Task(name="q", records=asked, scorer=mine)))
    assert set(measured.scores("q").values()) == {0.25}
    assert [reference.choices for _, reference in seen] == [("a cat", "seven", "a red fish", "dog")] * 3


def test_a_score_outside_0_to_1_names_the_record(words_model: Model) -> None:
    def wrong(output: str, reference: Reference) -> float:
        return math.nan

    with pytest.raises(DataError, match='task q: record "q0": its score is nan'):
        evaluate(words_model, suite(Task(name="q", records=questions(1, pictures=False), scorer=wrong)))


def test_a_reference_that_the_scorer_cannot_read_names_the_record(words_model: Model) -> None:
    with pytest.raises(DataError, match='task q: record "q0": the answer "a cat" is not a number'):
        evaluate(words_model, suite(Task(name="q", records=questions(1, pictures=False), scorer="number")))


def test_a_record_longer_than_the_models_reach_is_refused_not_cut(words_model: Model) -> None:
    asked = records(record("long", "a cat " * 200, "dog"))
    with pytest.raises(DataError, match=r'record "long": it has \d+ tokens and may write 8; the model reaches 256'):
        evaluate(words_model, suite(Task(name="q", records=asked)))
    offered = records(record("long", "What?", "dog", choices=["dog", "a cat " * 200]))
    with pytest.raises(DataError, match=r'record "long": it has \d+ tokens and may write 0; the model reaches 256'):
        evaluate(words_model, suite(Task(name="q", records=offered, kind="choice")))


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"records": records()}, DataError, "task q: it has no records"),
        ({"kind": "guess"}, InputError, '"guess" is no kind of task. Use one of: generate, choice, perplexity, caption'),
        ({"scorer": "exakt"}, NoMatch, "Did you mean exact"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens is 0"),
        ({"kind": "choice", "records": records(record("x", "What?", "cat"))}, DataError, 'record "x": it offers 0 choices'),
        (
            {"kind": "choice", "records": records(record("x", "What?", "cat", choices=["dog", "fish"]))},
            DataError,
            'its answer "cat" is 0 of its choices',
        ),
        ({"likelihoods": True, "records": records(record("x", "What?", "a", choices=["a", "a"]))}, DataError, '"a" is 2 of its choices'),
    ],
)
def test_a_task_that_cannot_be_measured_is_refused_when_it_is_made(change: dict[str, Any], error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        Task(**({"name": "q", "records": questions(2, pictures=False)} | change))


def test_a_suite_has_tasks_with_names_of_their_own() -> None:
    task = Task(name="q", records=questions(1, pictures=False))
    with pytest.raises(InputError, match='two tasks are called "q"'):
        suite(task, task)
    with pytest.raises(InputError, match="it has no tasks"):
        suite()


def test_a_suites_digest_tells_what_is_measured_and_how() -> None:
    one, two = questions(2, pictures=False), questions(3, pictures=False)
    task = Task(name="q", records=one)
    same = suite(task, Task(name="r", records=two)).digest
    assert suite(Task(name="r", records=two), Task(name="q", records=one, role="target")).digest == same
    others = [
        suite(Task(name="s", records=one)),
        suite(Task(name="q", records=two)),
        suite(Task(name="q", records=one, scorer="contains")),
        suite(Task(name="q", records=one, max_new_tokens=9)),
        suite(Task(name="q", records=one, kind="caption")),
        suite(Task(name="q", records=one, likelihoods=True)),
    ]
    assert len({other.digest for other in others} | {suite(task).digest}) == 7


def made(samples: Sequence[Sample], **change: Any) -> Measurement:
    about = {"stage": "base", "model_id": "a" * 64, "suite": "b" * 64, "seconds": 1.5, "kinds": {"q": "generate"}} | change
    return Measurement(samples=tuple(samples), **about)


def sample(name: str = "x", score: float = 1.0, **change: Any) -> Sample:
    about = {"task": "q", "cluster": "k", "prompt_digest": "c" * 64, "output": "é ⟦\n", "reference": "cat"} | change
    return Sample(id=name, score=score, **about)


def test_a_measurement_comes_back_from_disk_as_it_was(tmp_path: Path, words_model: Model) -> None:
    tasks = (
        Task(name="q", records=questions(3, pictures=False), likelihoods=True),
        Task(name="t", records=records(text("a", "a cat and a dog")), kind="perplexity"),
    )
    measured = evaluate(words_model, suite(*tasks), stage="base é")
    measured.save(tmp_path / "m.parquet")
    assert Measurement.load(tmp_path / "m.parquet") == measured
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.column_names == ["task", "id", "cluster", "prompt_digest", "output", "reference", "score", "extra"]
    assert measured.environment["torch"] == torch.__version__


def test_half_a_file_a_strangers_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "m.parquet"
    made([sample(str(i)) for i in range(50)]).save(whole)
    (tmp_path / "half.parquet").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    pq.write_table(pq.read_table(whole).replace_schema_metadata({}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"half\.parquet: not a whole Parquet file"):
        Measurement.load(tmp_path / "half.parquet")
    with pytest.raises(DataError, match=r"other\.parquet: a Parquet file, but no measurement"):
        Measurement.load(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"none\.parquet: there is no such file"):
        Measurement.load(tmp_path / "none.parquet")


def test_a_measurement_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").mkdir()
    with pytest.raises(StorageError, match=r"m\.parquet: cannot be written"):
        made([sample()]).save(tmp_path / "m.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]


def test_a_measurement_refuses_nan_and_one_id_twice() -> None:
    with pytest.raises(DataError, match='measurement "base": task q: sample "x": its score is nan'):
        made([sample(score=math.nan)])
    with pytest.raises(DataError, match='measurement "base": task q: sample "x": it is there 2 times'):
        made([sample(), sample()])


def test_a_measurement_counts_and_averages_by_task() -> None:
    measured = made([sample("a", 1.0), sample("b", 0.0), sample("a", 0.5, task="r")], kinds={"q": "generate", "r": "caption"})
    assert measured.tasks == ("q", "r")
    assert (measured.n("q"), measured.score("q"), measured.scores("r")) == (2, 0.5, {"a": 0.5})
    assert measured.headline("q") == 0.5
    with pytest.raises(NoMatch, match=r'"z" was not measured. It has: q, r\.'):
        measured.score("z")


def test_two_models_with_other_weights_have_other_ids_and_equal_prompts(words_model: Model) -> None:
    asked = suite(Task(name="q", records=questions(2, pictures=False)))
    one, other = evaluate(words_model, asked), evaluate(llama(seed=1), asked)
    assert one.model_id == words_model.id
    assert one.model_id != other.model_id
    assert [s.prompt_digest for s in one.samples] == [s.prompt_digest for s in other.samples]
