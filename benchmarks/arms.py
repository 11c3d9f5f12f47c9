"""The trainers that `train.py` and `gpu.py` race: each takes the same records, trained parameters, batch and dtype, and says when its steps
ended.

Ours runs from the second epoch on (`ours`) or in the first (`first`). The others decode and preprocess a batch's pictures when they collate
it, as their users do; their texts are encoded beforehand.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from selectune.components import Selection
from selectune.models import Model
from selectune.recipe import Optim
from selectune.records import Encoder, Records, collate
from selectune.training import FeatureCache, Session, fit
from selectune.training.forward import Forward

LR = 1e-4
RANK = 16

Moment = tuple[float, float]
"""Wall and CPU time, in seconds."""


@dataclass(kw_only=True)
class Race:
    """What all arms have in common."""

    model: Model
    selection: Selection
    records: Records
    samples: list[dict[str, Any]]
    batch: int
    steps: int
    """Counted steps; the first one of each arm is not."""
    encoder: Encoder
    cache: FeatureCache = field(default_factory=FeatureCache)
    """What `first` has kept, for `ours`."""

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tensors = collate([row["sample"] for row in rows], self.model.tokenizer.pad_token_id or 0)
        return {**tensors, **self.encoder.pixels(*(row["sample"].pictures for row in rows))}

    def rows(self, step: int) -> list[dict[str, Any]]:
        return [self.samples[(step * self.batch + place) % len(self.samples)] for place in range(self.batch)]

    @property
    def device(self) -> torch.device:
        return self.model.device


class Rows(Dataset[dict[str, Any]]):
    """The samples as Hugging Face's trainers want them."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def now() -> Moment:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Clock(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[Moment] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.ends.append(now())


def _spans(ends: Sequence[Moment]) -> list[Moment]:
    return [(late[0] - early[0], late[1] - early[1]) for early, late in itertools.pairwise(ends)]


def _optim(race: Race, **more: Any) -> Optim:
    # One step more than an epoch: states at the cut are kept only where samples come again.
    return Optim(lr=LR, batch=race.batch, max_steps=race.steps + 1, **more)


def ours(race: Race, **more: Any) -> list[Moment]:
    """From the second epoch on: what `first` has kept is there."""
    ends = [now() for _ in fit(race.model, race.selection, race.records, _optim(race, **more), session=Session(features=race.cache))]
    return _spans(ends)


def lora(race: Race) -> list[Moment]:
    """`ours` with low-rank matrices, of the rank that `peft` has."""
    return ours(race, adapter={"kind": "lora", "rank": RANK})


def compiled(race: Race) -> list[Moment]:
    """`ours` with the language layers compiled."""
    return ours(race, compile=True)


def first(race: Race) -> list[Moment]:
    """A first epoch, with nothing kept from before: the mean step, with the checks that see some samples before step 1 counted in."""
    race.cache = FeatureCache()
    before, settle = [0.0, 0.0], Forward.settle

    def timed(self: Forward, *args: Any, **options: Any) -> None:
        begin = now()
        settle(self, *args, **options)
        end = now()
        before[0], before[1] = end[0] - begin[0], end[1] - begin[1]

    Forward.settle = timed  # type: ignore[method-assign]
    try:
        steps, cpu = [], [time.process_time()]
        for step in fit(race.model, race.selection, race.records, _optim(race), session=Session(features=race.cache)):
            steps.append(step.seconds)
            cpu.append(time.process_time())
    finally:
        Forward.settle = settle  # type: ignore[method-assign]
    epoch = steps[: race.steps]
    # Of CPU time step 1's is not told apart from the preparations; the later ones' stands for it.
    return [((before[0] + sum(epoch)) / race.steps, (cpu[race.steps] - cpu[1]) / max(1, race.steps - 1))]


def plain(race: Race) -> list[Moment]:
    """A loop as one writes it by hand: the model's own loss, AdamW on the weights themselves."""
    return _loop(race, race.model.net)


def _loop(race: Race, net: Any) -> list[Moment]:
    net.train()
    chosen = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=LR)
    ends = []
    for step in range(race.steps + 1):
        batch = {name: value.to(race.device) for name, value in race.collate(race.rows(step)).items()}
        net(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(now())
    return _spans(ends)


def peft(race: Race) -> list[Moment]:
    """PEFT's LoRA on the selected weights, in the plain loop."""
    from peft import LoraConfig, LoraModel

    paths = sorted({name.removesuffix(".weight") for name, shape in race.selection.full_shapes.items() if len(shape) > 1})
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="|".join(re.escape(path) for path in paths))
    wrapped: Any = LoraModel(race.model.net, {"default": config}, "default")
    try:
        return _loop(race, race.model.net)
    finally:
        wrapped.unload()
        vars(race.model.net).pop("peft_config", None)


def _arguments(race: Race) -> dict[str, Any]:
    return {
        "output_dir": str(Path(tempfile.gettempdir()) / "selectune-benchmark"),
        "per_device_train_batch_size": race.batch,
        "max_steps": race.steps + 1,
        "learning_rate": LR,
        "use_cpu": race.device.type == "cpu",
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "bf16": False,
    }


def hf(race: Race) -> list[Moment]:
    """HF Trainer."""
    clock = Clock()
    arguments = TrainingArguments(**_arguments(race))
    trainer = Trainer(model=race.model.net, args=arguments, train_dataset=Rows(race.samples), data_collator=race.collate, callbacks=[clock])
    trainer.train()
    return _spans(clock.ends)


def trl(race: Race) -> list[Moment]:
    """TRL's SFTTrainer."""
    from datasets import Dataset as Table
    from trl import SFTConfig, SFTTrainer

    clock = Clock()
    numbers = Table.from_dict({"number": list(range(len(race.samples)))})
    arguments = SFTConfig(**_arguments(race), dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, gradient_checkpointing=False)
    trainer = SFTTrainer(
        model=race.model.net,
        args=arguments,
        train_dataset=numbers,
        data_collator=lambda rows: race.collate([race.samples[row["number"]] for row in rows]),
        processing_class=race.model.processor,
        callbacks=[clock],
    )
    trainer.train()
    return _spans(clock.ends)


ARMS: dict[str, Callable[[Race], list[Moment]]] = {
    "first": first,
    "ours": ours,
    "trl": trl,
    "hf": hf,
    "plain": plain,
    "lora": lora,
    "peft": peft,
    "compiled": compiled,
}
"""By name; `first` comes before `ours`, which uses what it kept."""
MINE = ("first", "ours", "lora", "compiled")


@contextmanager
def only(model: Model, selection: Selection) -> Iterator[None]:
    """Inside, the selection and nothing else needs gradients; afterwards its values are what they were."""
    parameters = dict(model.net.named_parameters())
    chosen = {name: parameters[name] for name in selection.parameters}
    before = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    model.net.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        model.net.eval()
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(before[name])
                parameter.grad = None
