"""Law 8: labels decode to the assistant's words and nothing else, image tokens excluded, for each chat template."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import records_fixtures as made
from selectune.records import Encoder, Message, Picture, Record

PROCESSORS = {
    **{f"{name} with pictures": made.llava(template) for name, template in made.TEMPLATES.items()},
    **{f"{name}, trimmed offsets": made.llava(template, trim=True) for name, template in made.TEMPLATES.items()},
    **{f"{name} alone": made.tokenizer(made.TEMPLATES[name]) for name in ("chatml", "llama3", "vicuna", "loose")},
    "pad is eos": made.llava(made.CHATML, pad="<|im_end|>", eos="<|im_end|>"),
    "qwen": made.qwen(),
}
ENCODERS = {name: Encoder(processor) for name, processor in PROCESSORS.items()}
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "llava": None, "vicuna": "</s>", "loose": "</s>", "embedded": "<|im_end|>"}


def conversation(words: list[str], *, picture: bool) -> Record:
    messages = [Message(role="system", parts=("Be brief.",))]
    for number, answer in enumerate(words):
        shown: tuple[str | Picture, ...] = (Picture(data=made.png()),) if picture and number == 0 else ()
        messages += [
            Message(role="user", parts=(*shown, f"Question {number}, and what is it?")),
            Message(role="assistant", parts=(answer,)),
        ]
    return Record(id="r", messages=tuple(messages))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("words", [["a cat"], ["5"], ["yes", "a red circle.", "Größe 3 \N{CAT FACE}"], ["two\nlines.\n\nthen a third"]])
def test_labels_decode_to_the_assistants_words(name: str, words: list[str]) -> None:
    encoder = ENCODERS[name]
    encoded = encoder.encode(conversation(words, picture=encoder.template.image_token is not None))
    assert [turn.strip() for turn in labelled_turns(encoder, encoded.labels)] == words


def labelled_turns(encoder: Encoder, labels: list[int]) -> list[str]:
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [encoder.tokenizer.decode(run, skip_special_tokens=True) for run in runs if run]


@pytest.mark.parametrize("name", ENCODERS)
@given(
    words=st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12), min_size=1, max_size=3
    )
)
@settings(max_examples=12, deadline=None)
def test_whatever_the_words_are_labels_decode_to_them(name: str, words: list[str]) -> None:
    encoder = ENCODERS[name]
    encoded = encoder.encode(conversation(words, picture=False))
    assert [turn.strip() for turn in labelled_turns(encoder, encoded.labels)] == words


@pytest.mark.parametrize("name", ENCODERS)
def test_no_image_token_is_ever_labelled(name: str) -> None:
    encoder = ENCODERS[name]
    if encoder.template.image_token is None:
        assert encoder.encode(conversation(["a cat"], picture=False)).pictures == ()
        return
    encoded = encoder.encode(conversation(["a cat", "a dog"], picture=True))
    image = encoder.tokenizer.convert_tokens_to_ids(encoder.template.image_token)
    assert encoded.input_ids.count(image) > 1 or name == "qwen"
    assert image not in encoded.labels


@pytest.mark.parametrize(("name", "end"), ENDS.items())
def test_the_end_of_turn_token_is_supervised_where_the_template_writes_one(name: str, end: str | None) -> None:
    encoder = ENCODERS[f"{name} with pictures"]
    assert encoder.template.end_of_turn == end
    labels = encoder.encode(conversation(["a cat", "a dog"], picture=True)).labels
    if end is not None:
        assert labels.count(encoder.tokenizer.convert_tokens_to_ids(end)) == 2


@pytest.mark.parametrize("name", ENCODERS)
def test_the_prompt_of_generation_is_exactly_what_stands_before_the_labels(name: str) -> None:
    encoder = ENCODERS[name]
    record = conversation(["a cat"], picture=encoder.template.image_token is not None)
    encoded, prompt = encoder.encode(record), encoder.prompt(record)
    first = next(index for index, label in enumerate(encoded.labels) if label != -100)
    assert prompt.input_ids == encoded.input_ids[:first]
    assert set(prompt.labels) == {-100}
