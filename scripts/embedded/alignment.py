"""Aligns the packaged towers: trains a projector and a low-rank update of the language tower on cached vision features."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from .plain_text import SEEDS

RANK, ALPHA = 16, 32
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long and how fast; figures and their reasons are in docs/design/log.md."""

    steps: int = 900
    batch: int = 32
    lr_projector: float = 1e-3
    lr_language: float = 6e-4
    warmup: int = 20
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, where the answer starts, and the row of the picture's features (-1 without a picture)."""

    ids: list[int]
    start: int
    picture: int


def features(net: LlavaForConditionalGeneration, processor: LlavaProcessor, pictures: list[Image.Image]) -> Tensor:
    """The tower's raw features of every picture: [pictures, 16, 2368] in bf16."""
    tower = net.model.vision_tower.to(torch.bfloat16).to(memory_format=torch.channels_last)
    rows, started = [], time.monotonic()
    with torch.inference_mode():
        for at in range(0, len(pictures), 32):
            pixels = processor.image_processor([p.convert("RGB") for p in pictures[at : at + 32]], return_tensors="pt")["pixel_values"]
            rows.append(tower.features(pixels.to(torch.bfloat16)))
            if at % 1600 == 0:
                print(f"features {at}/{len(pictures)} {time.monotonic() - started:.0f} s", flush=True)
    return torch.cat(rows)


def standardise(net: LlavaForConditionalGeneration, raw: Tensor) -> None:
    """Sets the tower's mean and scale per channel from the training pictures."""
    flat = raw.float().flatten(0, 1)
    net.model.vision_tower.feature_mean.copy_(flat.mean(dim=0))
    net.model.vision_tower.feature_scale.copy_(1.0 / flat.std(dim=0).clamp_min(1e-3))


def rehearsal(net: LlavaForConditionalGeneration, tokenizer: Any, *, copies: int = 8, length: int = 48) -> list[Example]:
    """What the language model says by itself, sampled before alignment: training on it keeps its own way of speaking."""
    torch.manual_seed(0)
    seeds = [seed for line in SEEDS.splitlines() for seed in line.split("|")]
    prompts = [f"<|im_start|>user\n{seed}<|im_end|>\n<|im_start|>assistant\n" for seed in seeds]
    tokenizer.padding_side = "left"
    found = []
    for _ in range(copies):
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = net.generate(**batch, max_new_tokens=length, do_sample=True, temperature=0.8, top_p=0.95)
        width = batch["input_ids"].shape[1]
        for prompt, mask, row in zip(batch["input_ids"], batch["attention_mask"], out, strict=True):
            ids = prompt[mask.bool()].tolist()
            reply = row[width:].tolist()
            reply = reply[: reply.index(2) + 1] if 2 in reply else reply
            found.append(Example(ids + reply, len(ids), -1))
    return found


def encode(rows: list[dict[str, Any]], processor: LlavaProcessor, numbers: list[int]) -> list[Example]:
    """Rows as token ids: `<image>` sixteen times, then the question, then the answer and the end token."""
    tokenizer = processor.tokenizer
    prompts = [("<image>" * 16 if n >= 0 else "") + f"\nQuestion: {row['question']}\nAnswer:" for row, n in zip(rows, numbers, strict=True)]
    heads = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    tails = tokenizer([f" {row['answer']}<|im_end|>" for row in rows], add_special_tokens=False)["input_ids"]
    return [Example(head + tail, len(head), n) for head, tail, n in zip(heads, tails, numbers, strict=True)]


def align(net: LlavaForConditionalGeneration, examples: list[Example], raw: Tensor, settings: Settings, out: Path) -> None:
    """Trains and writes `alignment.safetensors` every 200 steps and at the end."""
    torch.manual_seed(settings.seed)
    net.to(torch.bfloat16).requires_grad_(False)
    # For 36 padded tokens in bf16 on a CPU, torch's fused attention takes 23 ms a layer going backward, plain matrix products 2 ms:
    # 3.4 against 2.5 s a step.
    net.set_attn_implementation("eager")
    tower = net.model.vision_tower
    standard = ((raw.float() - tower.feature_mean.float()) * tower.feature_scale.float()).to(torch.bfloat16)
    projector = net.model.multi_modal_projector.requires_grad_(True)
    adapted = get_peft_model(
        net.model.language_model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEARS, bias="none"), autocast_adapter_dtype=False
    )
    language = [p for p in adapted.parameters() if p.requires_grad]
    groups = [(list(projector.parameters()), settings.lr_projector), (language, settings.lr_language)]
    parameters = [p for group, _ in groups for p in group]
    masters = [[p.detach().float().clone() for p in group] for group, _ in groups]
    flat = [m for group in masters for m in group]
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": lr, "base": lr} for group, (_, lr) in zip(masters, groups, strict=True)], weight_decay=0.0, foreach=True
    )
    started, losses = time.monotonic(), []
    batches = order(examples, settings)
    for step in range(settings.steps):
        rate = min(1.0, (step + 1) / settings.warmup) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate
        loss = batch_loss(net, projector, adapted, [examples[i] for i in next(batches)], standard)
        loss.backward()
        for master, parameter in zip(flat, parameters, strict=True):
            master.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(flat, 1.0)
        optimizer.step()
        torch._foreach_copy_([p.data for p in parameters], flat)
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}/{settings.steps} loss {sum(losses[-25:]) / 25:.3f} {seconds / (step + 1):.2f} s/step",
                flush=True,
            )
        if (step + 1) % 200 == 0 or step + 1 == settings.steps:
            write(net, adapted, out)


def order(examples: list[Example], settings: Settings) -> Any:
    """Endless batches of indices: shuffled each epoch, of similar length within a window of eight batches, so that little is padding."""
    rng = random.Random(settings.seed)
    while True:
        shuffled = rng.sample(range(len(examples)), len(examples))
        window = settings.batch * 8
        batches = []
        for at in range(0, len(shuffled) - window + 1, window):
            near = sorted(shuffled[at : at + window], key=lambda i: len(examples[i].ids))
            batches += [near[k : k + settings.batch] for k in range(0, window, settings.batch)]
        rng.shuffle(batches)
        yield from batches


def batch_loss(net: Any, projector: Any, adapted: Any, batch: list[Example], standard: Tensor) -> Tensor:
    """Mean cross-entropy over the answers' tokens; the head is computed there alone."""
    width = max(len(e.ids) for e in batch)
    ids = torch.tensor([e.ids + [2] * (width - len(e.ids)) for e in batch])
    attention = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in batch])
    embedded = net.get_input_embeddings()(ids)
    pictures = [e.picture for e in batch if e.picture >= 0]
    if pictures:
        embedded = embedded.masked_scatter((ids == 6).unsqueeze(-1), projector(standard[pictures]))
    hidden = adapted(inputs_embeds=embedded, attention_mask=attention, use_cache=False).last_hidden_state
    rows = [(b, t) for b, e in enumerate(batch) for t in range(e.start - 1, len(e.ids) - 1)]
    at = torch.tensor(rows).T
    targets = ids[at[0], at[1] + 1]
    return functional.cross_entropy(functional.linear(hidden[at[0], at[1]], net.lm_head.weight).float(), targets)


def write(net: Any, adapted: Any, out: Path) -> None:
    """`alignment.safetensors`: projector, feature statistics, and for each linear layer `down` [rank, in] and `up` [out, rank], in bf16."""
    tensors = {f"projector.{name}": p.detach().clone() for name, p in net.model.multi_modal_projector.named_parameters()}
    tensors["vision.feature_mean"] = net.model.vision_tower.feature_mean.float().clone()
    tensors["vision.feature_scale"] = net.model.vision_tower.feature_scale.float().clone()
    for name, p in adapted.named_parameters():
        if ".lora_" in name:
            layer, _, side = name.removeprefix("base_model.model.").partition(".lora_")
            tensors[f"language.{layer}.{'down' if side[0] == 'A' else 'up'}"] = p.detach().to(torch.bfloat16).clone()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "alignment.safetensors", metadata={"selectune": f'{{"rank":{RANK},"scale":{ALPHA / RANK}}}'})
