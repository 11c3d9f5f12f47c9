"""The number probe: which tokens are numbers, and how likely they are while a model whose logits are known captions pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evaluation_fixtures import TEMPLATE, llama, llava, questions, tokenizer
from selectune.errors import DataError, NoMatch
from selectune.models import Model
from selectune.probes import Caption, NumberReading, correlation, number_tokens, probe_class, probe_numbers, token_class

SPACED = ["one two 12 1st 22nd 3.5 1,000 Sixteen SIXTEEN hundred first phone the dog seven seventeen thirst thirteen 9x x9 .5 $"] * 3


def byte_level(corpus: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    return tokenizer(corpus, size)


def sentence_piece(corpus: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with the mark ▁ for a space, as Llama 2's."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "</s>"], show_progress=False, max_token_length=20)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def whole_words(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer in which exactly these, with the mark Ġ for a space, are tokens besides single bytes."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: index for index, token in enumerate(["<|im_end|>", *sorted(alphabet)])}
    merges = []
    for word in words:
        piece = word[0]
        for character in word[1:]:
            if (merge := (piece, character)) not in merges:
                merges.append(merge)
            piece += character
            vocabulary.setdefault(piece, len(vocabulary))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>")
    wrapped.chat_template = TEMPLATE
    return wrapped


def said(words: PreTrainedTokenizerFast) -> set[str]:
    return {words.decode([index]).strip() for index in number_tokens(words).tolist()}


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_digits_ordinals_decimals_and_words_are_numbers_in_any_tokenizer(make: object) -> None:
    words = make(SPACED, 420)  # type: ignore[operator]
    found = said(words)
    vocabulary = {words.decode([index]).strip() for index in words.get_vocab().values()}
    for token in ("one", "two", "12", "Sixteen", "SIXTEEN", "hundred", "seven", "seventeen", "thirteen", "9"):
        assert token in vocabulary, "the fixture must hold what it tests"
        assert token in found
    for token in ("the", "dog", "phone", "first", "thirst", "x", "$", "st", "nd"):
        assert token not in found
    for token in vocabulary & {"1st", "22nd", "3.5", "1,000", ".5"}:
        assert token in found


def test_a_number_counts_with_and_without_its_space_and_in_any_case() -> None:
    words = whole_words(["Ġone", "one", "ONE", "One", "Ġ12", "22nd", "3.5", "1,000", ".5", "Ġphone", "3x", "Ġnone"])
    ids = set(number_tokens(words).tolist())
    for token in ("Ġone", "one", "ONE", "One", "Ġ12", "22nd", "3.5", "1,000", ".5", "7"):
        assert words.convert_tokens_to_ids(token) in ids
    for token in ("Ġphone", "3x", "Ġnone", "Ġon", "o", "Ġ", "22n", "3.", "1,", "."):
        assert words.convert_tokens_to_ids(token) not in ids


def test_the_first_piece_of_a_split_number_counts_only_where_it_begins_nothing_else() -> None:
    alone = whole_words(["Ġsevent", "Ġthir", "Ġthirst", "Ġfou", "een"])
    ids = set(number_tokens(alone).tolist())
    assert alone.convert_tokens_to_ids("Ġsevent") in ids
    assert alone.convert_tokens_to_ids("Ġthir") not in ids
    assert alone.convert_tokens_to_ids("Ġfou") not in ids
    assert alone.convert_tokens_to_ids("Ġse") not in ids
    other = whole_words(["Ġsevent", "Ġseventowers"])
    assert other.convert_tokens_to_ids("Ġsevent") not in set(number_tokens(other).tolist())


def test_digits_of_other_scripts_and_special_tokens_are_no_numbers() -> None:
    words = whole_words(["Ġ" + "\u00d9\u013e"])
    words.add_special_tokens({"additional_special_tokens": ["<7>", "7"]})
    ids = set(number_tokens(words).tolist())
    assert words.convert_tokens_to_ids("<7>") not in ids
    assert words.convert_tokens_to_ids("8") in ids


def test_classes_are_found_by_name() -> None:
    words = whole_words(["Ġyes", "Yes", "Ġno", "Ġnot", "ĠA", "Ġa", "AB"])
    answers = token_class("yes-no", words)
    assert {words.decode([index]) for index in answers.all_ids.tolist()} == {" yes", "Yes", " no"}
    letters = {words.decode([index]) for index in token_class("letter", words).all_ids.tolist()}
    assert {" A", "A", "B", "Z"} <= letters
    assert not letters & {" a", "AB", "a"}
    with pytest.raises(NoMatch, match=r'"colour" is no class of tokens\. Use one of: number, yes-no, letter'):
        token_class("colour", words)


def planted(mass: float, *, says: str, seed: int = 0) -> tuple[Model, int]:
    """A model that, whatever it is shown, writes the token `says` with its number tokens at `mass` together.

    The last layer norm is set to zero weight, so the head sees nothing; a bias on the head makes the logits.
    """
    model = llava(seed)
    words, net = model.tokenizer, model.net
    numbers = token_class("number", words).ids
    token = words(says, add_special_tokens=False)["input_ids"]
    assert len(token) == 1
    size = net.lm_head.weight.shape[0]
    rest = 1 - mass
    probabilities = torch.full((size,), 0.1 * rest / (size - len(numbers) - 1))
    probabilities[numbers] = mass / len(numbers)
    bare = token_class("number", words).bare
    probabilities[bare] = 1e-12
    probabilities[token[0]] = 0.9 * rest if token[0] not in numbers else mass
    if token[0] in numbers:
        probabilities[numbers] = 1e-12
        probabilities[token[0]] = mass
    probabilities = probabilities / probabilities.sum()
    head = torch.nn.Linear(32, size)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(probabilities.log())
    net.lm_head = head
    return model, token[0]


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.45])
def test_the_mass_of_number_tokens_is_the_one_that_was_planted(mass: float) -> None:
    model, _ = planted(mass, says=" a")
    reading = probe_numbers(model, list(questions(5)), stage="base", max_new_tokens=4, batch=2)
    assert reading.stage == "base"
    assert reading.n == 5
    assert reading.mean == pytest.approx(mass, rel=0.02)
    assert reading.max_mean == pytest.approx(reading.mean)
    assert reading.low == pytest.approx(reading.mean, abs=1e-6)
    assert [caption.text for caption in reading.captions] == ["a a a a"] * 5
    assert [caption.id for caption in reading.captions] == ["q0", "q1", "q2", "q3", "q4"]
    assert all(len(caption.steps) == 4 for caption in reading.captions)


def test_the_step_that_ends_a_caption_counts_and_none_after_it() -> None:
    model, _ = planted(0.2, says="<|im_end|>")
    reading = probe_numbers(model, list(questions(3)), stage="base", max_new_tokens=5)
    assert [caption.text for caption in reading.captions] == [""] * 3
    assert [len(caption.steps) for caption in reading.captions] == [1, 1, 1]
    assert reading.mean == pytest.approx(0.2, rel=0.02)


def logits(model: Model, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.net(input_ids=torch.tensor([list(ids)])).logits[0].double().softmax(-1)
    return found


def test_every_step_is_the_sum_that_a_plain_forward_gives() -> None:
    from selectune.records import Encoder

    model = llama(seed=2)
    asked = questions(6, pictures=False)
    numbers = token_class("number", model.tokenizer)
    captions = probe_class(model, list(asked), numbers, max_new_tokens=5, batch=4)
    encoder = Encoder(model.processor)
    for record, caption in zip(asked, captions, strict=True):
        ids = list(encoder.prompt(record).input_ids)
        for step in caption.steps:
            row = logits(model, ids)[-1]
            mass = float(row[numbers.ids].sum())
            if ids[-1] not in set(numbers.lettered.tolist()):
                mass += float(row[numbers.bare].sum())
            assert step == pytest.approx(mass, abs=1e-5)
            ids.append(int(row.argmax()))
        assert caption.mean == pytest.approx(math.fsum(caption.steps) / len(caption.steps))
        assert caption.max == max(caption.steps)


def chain(model: Model, text: str) -> None:
    """Makes the model write this text and end, whatever it was asked: each token's embedding leads to the next one's logit."""
    words, net = model.tokenizer, model.net
    ids = [*words(text, add_special_tokens=False)["input_ids"], words.eos_token_id]
    start = words(":", add_special_tokens=False)["input_ids"][-1]
    assert len(set(ids)) == len(ids) <= 30
    with torch.no_grad():
        for layer in net.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        net.model.embed_tokens.weight.zero_()
        net.lm_head.weight.zero_()
        for place, (before, after) in enumerate(zip([start, *ids[:-1]], ids, strict=True)):
            net.model.embed_tokens.weight[before, place] = 1.0
            net.lm_head.weight[after, place] = 1.2


def test_the_later_pieces_of_a_number_that_was_written_count_too() -> None:
    model = llama(words=whole_words(["Ġele", "ven", "Ġdog"]))
    pieces = model.tokenizer(" eleven dog", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 2, "the fixture must split the number"
    chain(model, " eleven dog")
    numbers = token_class("number", model.tokenizer)
    counted = set(numbers.all_ids.tolist())
    assert not counted & set(pieces)
    caption = probe_class(model, list(questions(1, pictures=False)), numbers, max_new_tokens=12)[0]
    assert caption.text == "eleven dog"
    dog = len(model.tokenizer(" dog", add_special_tokens=False)["input_ids"])
    in_number = len(pieces) - dog
    assert min(caption.steps[:in_number]) > 0.3
    assert max(caption.steps[in_number:]) < 0.3


def test_a_word_that_holds_a_number_word_is_no_number() -> None:
    model = llama(words=whole_words(["Ġph", "one"]))
    chain(model, " phone")
    numbers = token_class("number", model.tokenizer)
    assert set(model.tokenizer(" phone", add_special_tokens=False)["input_ids"]) & set(numbers.bare.tolist()), (
        "it must hold the bare token one"
    )
    caption = probe_class(model, list(questions(1, pictures=False)), numbers, max_new_tokens=8)[0]
    assert caption.text == "phone"
    assert max(caption.steps) < 0.3


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = llava()
    model.net.train()
    before = torch.get_rng_state()
    first = probe_numbers(model, list(questions(3)), stage="a", max_new_tokens=3)
    assert model.net.training
    assert torch.equal(torch.get_rng_state(), before)
    assert probe_numbers(model, list(questions(3)), stage="a", max_new_tokens=3) == first


def caption(mean: float) -> Caption:
    return Caption(id=str(mean), text="", mean=mean, max=mean)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_a_readings_interval_holds_its_mean(means: list[float]) -> None:
    reading = NumberReading.of("s", [caption(mean) for mean in means])
    assert reading.low <= reading.mean <= reading.high
    assert reading.mean == pytest.approx(math.fsum(means) / len(means), abs=1e-12)


def test_a_reading_without_captions_is_refused() -> None:
    with pytest.raises(DataError, match='probe at stage "s": there are no captions'):
        NumberReading.of("s", [])


def test_the_correlation_of_number_mass_with_held_out_accuracy_is_over_stages() -> None:
    readings = [NumberReading.of(str(mean), [caption(mean), caption(mean)]) for mean in (0.0, 0.1, 0.2, 0.3, 0.4)]
    assert correlation(readings, [0.9, 0.8, 0.7, 0.6, 0.5]).value == pytest.approx(-1)
    assert correlation(readings, [0.9, 0.85, 0.7, 0.72, 0.5]).n == 5
