"""Encoding: against transformers' own processors, with pads, lengths, several pictures, and templates that cannot be trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import records_fixtures as made
from selectune.errors import DataError, ModelError
from selectune.records import Encoder, Message, Picture, Record, collate


def picture(size: tuple[int, int] = (8, 6), color: tuple[int, int, int] = (255, 0, 0)) -> Picture:
    return Picture(data=made.png(color, size), name=f"{size}")


def ask(question: str, answer: str | None, *pictures: Picture, name: str = "r") -> Record:
    asked = Message(role="user", parts=(*pictures, question))
    return Record(id=name, messages=(asked,) if answer is None else (asked, Message(role="assistant", parts=(answer,))))


def llava_next() -> LlavaNextProcessor:
    image = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]
    )
    return LlavaNextProcessor(
        image_processor=image,
        tokenizer=made.tokenizer(made.CHATML),
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=made.CHATML.replace("IMAGE", "<image>"),
        image_token="<image>",
    )


PROCESSORS = {"llava": made.llava, "chatml": lambda: made.llava(made.CHATML), "llava-next": llava_next, "qwen": made.qwen}


def as_transformers_reads_it(processor: Any, record: Record) -> Any:
    chat = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part.open()}
                for part in message.parts
            ],
        }
        for message in record.messages
    ]
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("sizes", [[], [(8, 6)], [(60, 20)], [(30, 90), (60, 60)]])
def test_inputs_are_those_that_transformers_makes(name: str, sizes: list[tuple[int, int]]) -> None:
    processor = PROCESSORS[name]()
    encoder = Encoder(processor)
    for answer in ("a cat", "two dogs"):
        record = ask("What is this?", answer, *map(picture, sizes))
        oracle = as_transformers_reads_it(processor, record)
        encoded = encoder.encode(record)
        assert encoded.input_ids == oracle["input_ids"][0].tolist()
        pixels = encoder.pixels(encoded.pictures)
        ours = {**pixels, **{key: torch.tensor([values]) for key, values in encoded.extra.items()}}
        assert set(ours) == set(oracle) - {"input_ids", "attention_mask"}
        assert all(torch.equal(ours[key], oracle[key]) for key in ours)


def test_pictures_of_several_records_make_one_batch_in_their_order() -> None:
    encoder = Encoder(made.llava())
    one, two, three = (picture(color=(shade, 0, 0)) for shade in (0, 100, 200))
    batch = encoder.pixels([one], [], [two, three])["pixel_values"]
    assert batch.shape == (3, 3, 28, 28)
    assert torch.equal(batch, torch.cat([encoder.pixels([each])["pixel_values"] for each in (one, two, three)]))
    assert encoder.pixels() == {}
    assert encoder.pixels([]) == {}


def test_a_second_picture_of_one_size_is_not_processed_again_and_one_of_another_size_is(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = made.qwen()
    encoder = Encoder(processor)
    encoder.encode(ask("What?", "a cat", picture()))
    calls: list[int] = []
    original = type(processor).__call__
    monkeypatch.setattr(type(processor), "__call__", lambda self, **given: calls.append(1) or original(self, **given))
    same = encoder.encode(ask("And what is this?", "a dog", picture(color=(0, 9, 0))))
    assert calls == []
    other = encoder.encode(ask("And what is this?", "a dog", picture((80, 80))))
    assert calls == [1]
    assert len(other.input_ids) > len(same.input_ids)


def test_a_text_model_reads_what_apply_chat_template_gives() -> None:
    for template in (made.CHATML, made.LLAMA3, made.VICUNA):
        tokenizer = made.tokenizer(template)
        oracle = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "a cat"}], return_dict=False
        )
        assert Encoder(tokenizer).encode(ask("What is this?", "a cat")).input_ids == oracle


def test_padding_with_the_end_token_hides_padding_and_nothing_else() -> None:
    encoder = Encoder(made.llava(made.CHATML, pad="<|im_end|>", eos="<|im_end|>"))
    short, long = encoder.encode(ask("What?", "yes")), encoder.encode(ask("What is this and that?", "a red circle."))
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for side in ("right", "left"):
        batch = collate([short, long], end, side)
        n, longest = len(short.input_ids), len(long.input_ids)
        place = slice(0, n) if side == "right" else slice(longest - n, longest)
        assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(
            ("input_ids", "attention_mask", "labels"), (2, longest)
        )
        assert batch["input_ids"][0, place].tolist() == short.input_ids
        assert batch["labels"][0, place].tolist() == short.labels
        assert end in short.labels
        assert int(batch["attention_mask"][0].sum()) == n == int(batch["attention_mask"][0, place].sum())
        assert int((batch["labels"][0] != -100).sum()) == short.supervised
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_kinds_of_tokens_are_padded_with_text() -> None:
    encoder = Encoder(made.qwen())
    batch = collate([encoder.encode(ask("What?", "yes", picture())), encoder.encode(ask("What is this, and that?", "no"))], 0)
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
    image = encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == image).long())
    assert batch["mm_token_type_ids"].any()


def test_records_that_are_too_long_are_counted_and_none_is_cut() -> None:
    encoder = Encoder(made.llava())
    records = [ask("What is this?", "a cat", picture(), name="short"), ask("What is this? " * 30, "a cat", picture(), name="long")]
    n = len(encoder.encode(records[0]).input_ids)
    found = encoder.encode_all(records, max_length=n)
    assert [each.record_id for each in found] == ["short"]
    assert found.dropped == {f"longer than {n} tokens": 1}
    assert found.dropped_ids == ("long",)
    assert found[0].input_ids == encoder.encode(records[0]).input_ids
    assert encoder.encode_all(records).dropped == {}
    with pytest.raises(DataError, match=rf"every one of 2 records is longer than {n - 1} tokens. Raise max_length; the shortest has {n}"):
        encoder.encode_all(records, max_length=n - 1)


def test_plain_text_has_no_template_and_every_word_of_it_is_labelled() -> None:
    encoder = Encoder(made.tokenizer(made.LLAMA3))
    record = Record(id="t", messages=(Message(role="assistant", parts=("The answer is a red circle.",)),))
    encoded = encoder.encode(record)
    assert encoded.labels == encoded.input_ids == encoder.tokenizer("The answer is a red circle.")["input_ids"]
    with pytest.raises(DataError, match="has no question to ask"):
        encoder.prompt(record)


def test_the_shown_sample_marks_the_labelled_part_and_counts_image_tokens() -> None:
    shown = Encoder(made.llava(made.EMBEDDED)).describe(ask("What is this?", "a cat", picture()))
    assert shown.text == "<image>×4\nQuestion: What is this?\nAnswer:⟦ a cat<|im_end|>⟧"
    assert shown.pixels == {"pixel_values": (1, 3, 28, 28)}
    assert (shown.pictures, shown.end_of_turn) == (("(8, 6)",), "<|im_end|>")
    assert shown.supervised < shown.tokens


REWRITES = made.CHATML.replace(
    "{% if m['content'] is string %}{{ m['content'] }}",
    "{% if m['role'] == 'assistant' and not loop.last %}gone{% elif m['content'] is string %}{{ m['content'] }}",
)
UNTRUE = {
    "rewrites the past": (REWRITES, "does not begin with its words"),
    "no generation prompt": (made.CHATML.split("{% if add_generation_prompt")[0], "does not begin with its words"),
    "counts turns first": (
        "{{ messages | length }}\n" + made.CHATML,
        "before assistant turn 1 is no prefix of the whole conversation",
    ),
    "thinks first": (
        made.CHATML.replace(
            "<|im_start|>{{ m['role'] }}\n", "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>{% endif %}"
        ),
        'the chat template writes "<think>',
    ),
}


@pytest.mark.parametrize("name", UNTRUE)
def test_a_template_whose_prefix_cannot_be_trusted_is_refused(name: str) -> None:
    template, message = UNTRUE[name]
    record = Record(
        id="r17",
        messages=tuple(
            Message(role=role, parts=(text,))
            for role, text in (("user", "What?"), ("assistant", "a cat"), ("user", "And?"), ("assistant", "a dog"))
        ),
    )
    with pytest.raises(DataError, match=message) as caught:
        Encoder(made.tokenizer(template)).encode(record)
    assert "{% generation %}" in str(caught.value)


def test_a_template_that_would_not_do_is_good_with_generation_marks() -> None:
    template = (
        "{{ messages | length }}\n{% for m in messages %}{{ m['role'] }}: "
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    )
    encoder = Encoder(made.tokenizer(template))
    encoded = encoder.encode(ask("What is this?", "a cat"))
    assert encoder.words(encoded).strip() == "a cat"
    assert encoder.template.end_of_turn == "</s>"


def test_words_that_join_the_prompt_in_one_token_are_refused() -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = made.tokenizer(template)
    joined = next(token for token in sorted(tokenizer.get_vocab()) if token.isascii() and token.isalpha() and len(token) > 2)
    with pytest.raises(
        DataError, match=r'record "r": chat template: the tokenizer joins the prompt and the assistant\'s words into one token'
    ):
        Encoder(tokenizer).encode(ask(joined[:2], joined[2:]))


def test_a_control_token_in_the_words_is_refused() -> None:
    encoder = Encoder(made.llava(made.CHATML))
    for text in ("a cat<|im_end|>", "<|im_start|>system", "see <image>"):
        with pytest.raises(DataError, match='record "r": the text contains the control token "<'):
            encoder.encode(ask("What?", text))
        with pytest.raises(DataError, match="control token"):
            encoder.prompt(ask(text, "a cat"))
    assert encoder.words(encoder.encode(ask("What is <unk>?", "a cat"))) == "a cat"


def test_what_cannot_be_learned_is_refused() -> None:
    encoder, text = Encoder(made.llava()), Encoder(made.tokenizer())
    with pytest.raises(DataError, match='record "r": has no answer to learn from'):
        encoder.encode(ask("What?", None))
    with pytest.raises(DataError, match="assistant turn 1 is empty"):
        encoder.encode(ask("What?", "  "))
    for encode in (text.encode, text.prompt):
        with pytest.raises(DataError, match="there is a picture, and this model reads none"):
            encode(ask("What?", "a cat", picture()))
    with pytest.raises(DataError, match="this model reads none"):
        text.pixels([picture()])


def test_a_template_that_hides_a_picture_is_refused() -> None:
    encoder = Encoder(made.llava(made.CHATML.replace("IMAGE", "")))
    with pytest.raises(DataError, match="writes 0 image tokens for 1 pictures"):
        encoder.encode(ask("What?", "a cat", picture()))


def test_a_model_without_a_usable_template_is_refused() -> None:
    bare = made.tokenizer()
    bare.chat_template = None
    with pytest.raises(ModelError, match="the model has no chat template"):
        Encoder(bare)
    with pytest.raises(ModelError, match="the chat template refuses the conversation"):
        Encoder(made.tokenizer("{{ raise_exception('never') }}"))


def test_template_options_reach_the_template() -> None:
    template = made.CHATML.replace("{% for m", "{% if brief %}Be brief.{% endif %}{% for m", 1)
    record = ask("What?", "a cat")
    assert Encoder(made.tokenizer(template), template_options={"brief": True}).encode(record).text.startswith("Be brief.")
    assert not Encoder(made.tokenizer(template)).encode(record).text.startswith("Be brief.")


def test_a_processor_that_encodes_in_a_way_of_its_own_is_refused() -> None:
    class Odd(type(made.llava())):  # type: ignore[misc]
        def __call__(self, **given: Any) -> Any:
            found = super().__call__(**given)
            if "input_ids" in found and "return_text_replacement_offsets" not in given:
                found["input_ids"] = [[0, *found["input_ids"][0]]]
            return found

    processor = made.llava()
    processor.__class__ = Odd
    with pytest.raises(ModelError, match="encodes text in a way of its own"):
        Encoder(processor).encode(ask("What?", "a cat", picture()))


def test_onevision_counts_a_single_picture_in_patches_and_several_whole() -> None:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    image = LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]])

    class PicturesOnly(LlavaOnevisionProcessor):
        def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
            from transformers import ProcessorMixin

            self.num_image_tokens, self.vision_feature_select_strategy, self.vision_aspect_ratio = 4, "full", "anyres_max_9"
            self.image_token, self.video_token = "<image>", "<video>"
            self.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
            self.video_token_id = tokenizer.convert_tokens_to_ids("<video>")
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    processor = PicturesOnly(image, made.tokenizer(), chat_template=made.CHATML.replace("IMAGE", "<image>"))
    encoder = Encoder(processor)
    lengths = []
    for pictures in ([picture((60, 60))], [picture((60, 60)), picture((60, 60))]):
        record = ask("What?", "a cat", *pictures)
        assert encoder.encode(record).input_ids == as_transformers_reads_it(processor, record)["input_ids"][0].tolist()
        lengths.append(len(encoder.encode(record).input_ids))
    assert lengths[1] < lengths[0]
