"""Models whose pictures have other sizes, other features and positions of their own are measured as their own code would."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from records_fixtures import EMBEDDED, qwen, tokenizer
from selectune.evaluation import Suite, Task, evaluate
from selectune.models import Model, assemble
from selectune.probes import number_tokens, probe_numbers
from selectune.records import Encoder, Message, Picture, Record, Records

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


@cache
def qwen_model() -> Model:
    """A tiny Qwen2.5-VL: positions in three dimensions, as many image tokens as a picture's size asks for."""
    torch.manual_seed(0)
    processor = qwen()
    words = processor.tokenizer
    text = SMALL | {
        "vocab_size": len(words),
        "max_position_embeddings": 512,
        "initializer_range": 0.4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32, "patch_size": 14}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [1]}
    named = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    named |= {f"vision_{end}_token_id": words.convert_tokens_to_ids(f"<|vision_{end}|>") for end in ("start", "end")}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **named)
    return assemble("tiny-qwen", Qwen2_5_VLForConditionalGeneration(config), processor)


@cache
def next_model() -> Model:
    """A tiny LLaVA-NeXT: a picture in as many tiles as its shape asks for."""
    torch.manual_seed(0)
    words = tokenizer(EMBEDDED, eos="<|im_end|>")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4, projection_dim=32
    )
    text = LlamaConfig(
        **SMALL,
        vocab_size=len(words),
        max_position_embeddings=512,
        initializer_range=0.4,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    grid = [[8, 16], [16, 8], [16, 16]]
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=grid,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_grid_pinpoints=grid, do_center_crop=False
    )
    processor = LlavaNextProcessor(
        images,
        words,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=EMBEDDED.replace("IMAGE", "<image>"),
        image_token="<image>",
    )
    return assemble("tiny-next", LlavaNextForConditionalGeneration(config), processor)


MODELS = {"qwen2.5-vl": qwen_model, "llava-next": next_model}
CHOICES = ("a cat", "3 dogs", "a red circle", "half past two")


def picture(number: int) -> Picture:
    """Pictures of several shapes."""
    width, height = ((56, 28), (28, 56), (84, 56), (28, 28))[number % 4]
    image = Image.new("RGB", (width, height), (number * 50 % 256, number * 90 % 256, number * 130 % 256))
    image.putpixel((number % 28, (number + number // 28) % 28), (255, 255, 255))
    with io.BytesIO() as file:
        image.save(file, format="PNG")
        return Picture(data=file.getvalue(), name=f"picture {number}")


def asked(n: int = 5) -> Records:
    """Questions on pictures of several shapes, and one without a picture."""
    rows = []
    for i in range(n):
        words = ("What is this?", "How many dogs are there? Is it a cat?", "What time is it?")[i % 3]
        parts = (words,) if i == n - 1 else (picture(i), words)
        turns = (Message(role="user", parts=parts), Message(role="assistant", parts=(CHOICES[i % 4],)))
        rows.append(Record(id=f"q{i}", messages=turns, meta={"choices": CHOICES}))
    return Records(items=tuple(rows), name="made")


def given(model: Model, record: Record, *, ask: bool) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The inputs of one record from pixels, with its labels."""
    encoder = Encoder(model.processor)
    row = encoder.prompt(record) if ask else encoder.encode(record)
    inputs = {"input_ids": torch.tensor([row.input_ids]), **{name: torch.tensor([values]) for name, values in row.extra.items()}}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs | (encoder.pixels(row.pictures) if row.pictures else {}), row.labels


@pytest.mark.parametrize("family", MODELS)
def test_answers_in_batches_are_those_of_the_models_own_generate_from_pixels(family: str) -> None:
    model = MODELS[family]()
    records = asked()
    samples = evaluate(model, Suite(tasks=(Task(name="q", records=records, max_new_tokens=5),)), batch=3).samples
    for record, sample in zip(records, samples, strict=True):
        inputs, _ = given(model, record, ask=True)
        written = model.net.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert sample.output == model.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert len({sample.output for sample in samples}) > 2


@pytest.mark.parametrize("family", MODELS)
def test_choices_are_scored_as_whole_records_from_pixels_would_be(family: str) -> None:
    model = MODELS[family]()
    records = asked()
    samples = evaluate(model, Suite(tasks=(Task(name="q", records=records, kind="choice"),)), batch=3).samples
    for record, sample in zip(records, samples, strict=True):
        for choice, found in zip(CHOICES, sample.extra["logprobs"], strict=True):
            answered = replace(record, messages=(*record.prompt, Message(role="assistant", parts=(choice,))))
            inputs, labels = given(model, answered, ask=False)
            with torch.no_grad():
                logs = model.net(**inputs).logits[0].double().log_softmax(-1)
            assert found == pytest.approx(sum(float(logs[at - 1, label]) for at, label in enumerate(labels) if label != -100), rel=1e-4)


@pytest.mark.parametrize("family", MODELS)
def test_the_probes_first_step_is_that_of_a_plain_forward_from_pixels(family: str) -> None:
    model = MODELS[family]()
    records = asked()
    numbers = number_tokens(model.tokenizer)
    reading = probe_numbers(model, list(records), stage="base", max_new_tokens=3)
    for record, caption in zip(records, reading.captions, strict=True):
        inputs, _ = given(model, record, ask=True)
        with torch.no_grad():
            shares = model.net(**inputs).logits[0, -1].double().softmax(-1)
        assert caption.steps[0] == pytest.approx(float(shares[numbers].sum()), rel=1e-3)
