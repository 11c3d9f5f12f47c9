"""Tiny models with a real byte-level tokenizer, and records for them: what the tests of evaluation and probes measure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from selectune.models import Model, assemble
from selectune.records import Message, Picture, Record, Records

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% if m['content'] is string %}{{ '\nQuestion: ' + m['content'] }}{% else %}"
    "{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else '\nQuestion: ' + p['text'] }}{% endfor %}{% endif %}"
    "{{ '\nAnswer:' }}"
    "{% else %}{{ ' ' + (m['content'] if m['content'] is string else m['content'][0]['text']) + '<|im_end|>' }}{% endif %}{% endfor %}"
)
CORPUS = ["What is in the picture? Question: Answer: a cat, a dog, a red fish, one two three four seven seven fish"] * 4
SIDE = 8


def tokenizer(corpus: Sequence[str] = CORPUS, size: int = 330) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose padding token is its end token, as SmolLM2's is."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_end|>", "<image>"]
    made.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>")
    wrapped.chat_template = TEMPLATE
    return wrapped


def _text_config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.4,
    )


def llama(seed: int = 0, words: PreTrainedTokenizerFast | None = None) -> Model:
    """A tiny Llama, with a tokenizer of its own or with this one."""
    torch.manual_seed(seed)
    words = tokenizer() if words is None else words
    return assemble("tiny-llama", LlamaForCausalLM(_text_config(len(words))), words)


def llava(seed: int = 0) -> Model:
    """A tiny LLaVA: four image tokens from a picture of 8 by 8."""
    torch.manual_seed(seed)
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=4, projection_dim=32
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text_config(len(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    processor: Any = LlavaProcessor(
        images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE
    )
    return assemble("tiny-llava", LlavaForConditionalGeneration(config), processor)


def picture(shade: int) -> Picture:
    """A picture of one colour and one bright spot."""
    image = Image.new("RGB", (SIDE, SIDE), (shade * 23 % 256, shade * 57 % 256, shade * 91 % 256))
    image.putpixel((shade % SIDE, shade // SIDE % SIDE), (255, 255, 255))
    with io.BytesIO() as file:
        image.save(file, format="PNG")
        return Picture(data=file.getvalue(), name=f"shade-{shade}")


def record(name: str, question: str, answer: str, *, shade: int | None = None, **meta: Any) -> Record:
    """One question, with a picture where a shade is given, and its answer."""
    parts = (question,) if shade is None else (picture(shade), question)
    return Record(id=name, messages=(Message(role="user", parts=parts), Message(role="assistant", parts=(answer,))), meta=meta)


def text(name: str, words: str) -> Record:
    """A record that is the assistant's words alone."""
    return Record(id=name, messages=(Message(role="assistant", parts=(words,)),))


def records(*items: Record) -> Records:
    """These records as a source."""
    return Records(items=items, name="made")


def questions(n: int, *, pictures: bool = True) -> Records:
    """Questions of several lengths with answers of several lengths."""
    asked = ("What is in the picture?", "What is it?", "Is it a cat, a dog or a red fish in the picture?")
    said = ("a cat", "seven", "a red fish", "dog")
    rows = (record(f"q{i}", asked[i % 3], said[i % 4], shade=i if pictures else None, choices=said) for i in range(n))
    return records(*rows)
