"""How fast we train, as it is and with `optim.compile`, beside HF Trainer, TRL's SFTTrainer and a loop written by hand.

    python benchmarks/train.py                                        # the embedded model, `attention`
    python benchmarks/train.py --model tiny --steps 2 --rounds 1      # seconds: does the script run?

Every arm has the same records, trained parameters, batch and dtype. Arms take turns, round by round, so that a machine that grows busy
slows all of them. A round's figure is the median over its steps without the first, an arm's the median over its rounds; CPU seconds are
given too, which a busy machine disturbs less. Ours runs with features cached, which is what a second epoch or a second skill on the same
pictures sees. The others decode and preprocess a batch's pictures when they collate it, as their users do; their texts are encoded
beforehand.

`required` counts the multiplications and additions that the task asks for: a forward pass and the gradients of the activations over all P
weights of the language layers (4 P a token), and those of the Pt trained ones (2 Pt).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from selectune.components import Selection
from selectune.models import Model, load
from selectune.recipe import Data, Optim
from selectune.records import Encoder, Records, collate, read_records
from selectune.training import FeatureCache, Session, fit

LR = 1e-4


@dataclass(frozen=True, kw_only=True)
class Race:
    """What all arms have in common."""

    model: Model
    selection: Selection
    records: Records
    samples: list[dict[str, Any]]
    batch: int
    steps: int
    cache: FeatureCache
    encoder: Encoder

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tensors = collate([row["sample"] for row in rows], self.model.tokenizer.pad_token_id or 0)
        return {**tensors, **self.encoder.pixels(*(row["sample"].pictures for row in rows))}

    def rows(self, step: int) -> list[dict[str, Any]]:
        return [self.samples[(step * self.batch + place) % len(self.samples)] for place in range(self.batch)]


class Rows(Dataset[dict[str, Any]]):
    """The samples as Hugging Face's trainers want them."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


Moment = tuple[float, float]
"""Wall and CPU time, in seconds."""


def now() -> Moment:
    return time.perf_counter(), time.process_time()


class Clock(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[Moment] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.ends.append(now())


def ours(race: Race, *, compiled: bool = False) -> list[Moment]:
    optim = Optim(lr=LR, batch=race.batch, max_steps=race.steps, compile=compiled)
    ends = []
    for _ in fit(race.model, race.selection, race.records, optim, session=Session(features=race.cache)):
        ends.append(now())
    return ends


def plain(race: Race) -> list[Moment]:
    race.model.net.train()
    chosen = [parameter for parameter in race.model.net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=LR)
    ends = []
    for step in range(race.steps):
        race.model.net(**race.collate(race.rows(step)), use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(now())
    return ends


def _arguments(race: Race) -> dict[str, Any]:
    return {
        "output_dir": str(Path(tempfile.gettempdir()) / "selectune-benchmark"),
        "per_device_train_batch_size": race.batch,
        "max_steps": race.steps,
        "learning_rate": LR,
        "use_cpu": race.model.device.type == "cpu",
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "bf16": False,
    }


def hugging_face(race: Race) -> list[Moment]:
    clock = Clock()
    arguments = TrainingArguments(**_arguments(race))
    trainer = Trainer(model=race.model.net, args=arguments, train_dataset=Rows(race.samples), data_collator=race.collate, callbacks=[clock])
    trainer.train()
    return clock.ends


def trl(race: Race) -> list[Moment]:
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
    return clock.ends


ARMS: dict[str, Callable[[Race], list[Moment]]] = {
    "ours": ours,
    "compiled": partial(ours, compiled=True),
    "plain": plain,
    "hf": hugging_face,
    "trl": trl,
}
OURS = ("ours", "compiled")


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


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a square matrix product: the median of nine."""
    left = torch.randn(size, size).to(dtype)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[1:])


def required(race: Race) -> float:
    """Floating-point operations a step needs: (4 P + 2 Pt) for each token that is no padding."""
    weights = {
        component for component in race.model.map.components if component.name.startswith("language.layers") and len(component.shape) > 1
    }
    trained = sum(component.elements for component in race.selection.components if component in weights)
    tokens = statistics.mean(len(row["sample"].input_ids) for row in race.samples) * race.batch
    return tokens * (4 * sum(component.elements for component in weights) + 2 * trained)


def prepare(name: str, options: argparse.Namespace) -> Race:
    if name == "tiny":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from training_fixtures import examples, tiny_model

        model, records = tiny_model(dtype=torch.bfloat16), examples(16)
    else:
        model = load(name)
        records = read_records(Data(source=options.data, split="train", limit=options.batch * options.steps))
    encoder = Encoder(model.processor)
    samples = [{"sample": encoder.encode(record)} for record in records]
    selection = model.map.select(options.select.split(","))
    return Race(
        model=model,
        selection=selection,
        records=records,
        samples=samples,
        batch=options.batch,
        steps=options.steps,
        cache=FeatureCache(),
        encoder=encoder,
    )


def measure(race: Race, rounds: int) -> dict[str, list[Moment]]:
    """Wall and CPU seconds a step, of every arm in every round."""
    race.cache.of(race.model, race.encoder, [picture for row in race.samples for picture in row["sample"].pictures])
    taken: dict[str, list[Moment]] = {name: [] for name in ARMS}
    for turn in range(rounds):
        names = list(ARMS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with only(race.model, race.selection):
                ends = ARMS[name](race)
            spans = [(late[0] - early[0], late[1] - early[1]) for early, late in itertools.pairwise(ends)]
            taken[name].append((statistics.median(wall for wall, _ in spans), statistics.median(cpu for _, cpu in spans)))
            wall, cpu = taken[name][-1]
            print(f"round {turn + 1} of {rounds}: {name} {wall:.2f} s a step, {cpu:.2f} CPU s", file=sys.stderr, flush=True)
    return taken


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """How many times as fast ours and ours compiled are as each of the others."""
    return {f"{mine}/{name}": other / seconds[mine] for mine in OURS for name, other in seconds.items() if name not in OURS}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="a model's name, or tiny")
    parser.add_argument("--data", default="embedded:digits")
    parser.add_argument("--select", default="attention", help="patterns, with commas between them")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes; else to stdout")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error("--steps must be at least 2: the first step is not counted")
    race = prepare(options.model, options)
    dtype = next(race.model.net.parameters()).dtype
    taken = measure(race, options.rounds)
    wall = {name: statistics.median(moment[0] for moment in moments) for name, moments in taken.items()}
    cpu = {name: statistics.median(moment[1] for moment in moments) for name, moments in taken.items()}
    peak, need = matmul_rate(dtype), required(race)
    result = {
        "model": options.model,
        "selection": options.select,
        "trained": race.selection.elements,
        "dtype": str(dtype),
        "device": race.model.device.type,
        "threads": torch.get_num_threads(),
        "batch": race.batch,
        "steps": race.steps,
        "rounds": options.rounds,
        "tokens_per_sample": statistics.mean(len(row["sample"].input_ids) for row in race.samples),
        "samples_per_second": {name: race.batch / seconds for name, seconds in wall.items()},
        "seconds_per_step": {name: [moment[0] for moment in moments] for name, moments in taken.items()},
        "cpu_seconds_per_step": {name: [moment[1] for moment in moments] for name, moments in taken.items()},
        "ratios": ratios(wall),
        "ratios_by_cpu_time": ratios(cpu),
        "matmul_flops_per_second": peak,
        "required_flops_per_step": need,
        "share_of_matmul_rate": {name: need / seconds / peak for name, seconds in wall.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "trl")},
    }
    text = json.dumps(result, indent=2)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text + "\n", encoding="utf-8")
        for name, value in result["ratios"].items():
            print(f"{name}: {value:.2f}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
