"""Tiny tokenizers, processors and chat templates for the tests of records: nothing is loaded, everything is made here."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast, ProcessorMixin, Qwen2_5_VLProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

CORPUS = [
    "What is this? It is a cat. How many dogs are there? There are 3 dogs. Yes. No. The answer is a red circle.",
    "USER: Is it so? ASSISTANT: yes, and a blue square.\nQuestion: What time is it?\nAnswer: half past two.\n\n",
]
SPECIAL = [
    "<unk>",
    "<pad>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<video>",
]

# Each states what one family's own template does, in the fewest words.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE"
    "{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAVA = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for p in m['content'] if p['type'] == 'image' %}{{ 'IMAGE\n' }}{% endfor %}"
    "{% if m['role'] != 'assistant' %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{% generation %}{{ p['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ 'IMAGE\n' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %} "
    "{% elif m['role'] == 'assistant' %}ASSISTANT: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}</s>{% else %}"
    "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LOOSE = VICUNA.replace("{% if add_generation_prompt %}ASSISTANT:", "{% if add_generation_prompt %}ASSISTANT: ")
"""Vicuna with a space at the end of its generation prompt: alone it is a token of its own, before an answer it is the answer's."""
EMBEDDED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{% for p in m['content'] if p['type'] == 'image' %}IMAGE{% endfor %}"
    "{{ '\nQuestion: ' }}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}{{ '\nAnswer:' }}"
    "{% elif m['role'] == 'assistant' %}{% generation %}{{ ' ' + m['content'][0]['text'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'][0]['text'] + '\n' }}{% endif %}{% endfor %}"
)
QWEN = CHATML.replace("IMAGE", "<|vision_start|>IMAGE<|vision_end|>")
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "llava": LLAVA, "vicuna": VICUNA, "loose": LOOSE, "embedded": EMBEDDED}


@cache
def _backend(trim: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    from tokenizers import processors

    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 8, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def tokenizer(template: str = CHATML, *, pad: str = "<pad>", eos: str = "</s>", trim: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 400 tokens with the special tokens of several families."""
    copy = Tokenizer.from_str(_backend(trim).to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=copy,
        unk_token="<unk>",
        pad_token=pad,
        eos_token=eos,
        bos_token="<s>",
        chat_template=template.replace("IMAGE", ""),
        clean_up_tokenization_spaces=False,
    )


def llava(template: str = LLAVA, **options: Any) -> LlavaProcessor:
    """LLaVA-1.5's processor for pictures of 28 x 28 in patches of 14: four image tokens each."""
    image = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LlavaProcessor(
        image_processor=image,
        tokenizer=tokenizer(template, **options),
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=template.replace("IMAGE", "<image>"),
        image_token="<image>",
    )


class PicturesOnlyQwen(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video part, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_token, self.image_token_id = "<|image_pad|>", tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.video_token, self.video_token_id = "<|video_pad|>", tokenizer.convert_tokens_to_ids("<|video_pad|>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen() -> PicturesOnlyQwen:
    """Qwen2.5-VL's way: as many image tokens as the picture's size asks for."""
    image = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}, patch_size=14, merge_size=2)
    template = QWEN.replace("IMAGE", "<|image_pad|>")
    return PicturesOnlyQwen(image, tokenizer(QWEN, eos="<|im_end|>"), chat_template=template)


def png(color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    """An encoded picture of one colour."""
    with io.BytesIO() as file:
        Image.new("RGB", size, color).save(file, format=kind)
        return file.getvalue()
