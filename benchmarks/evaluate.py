"""How fast we measure, beside lmms-eval's HF chat model at its default batch size and a batched `generate` loop.

    python benchmarks/evaluate.py --quick --json                     # about four minutes; prints, and writes nothing
    python benchmarks/evaluate.py                                    # five rounds; writes results/evaluate.json
    python benchmarks/evaluate.py --races tiny-qwen --rounds 1       # seconds: does the script run?

Arms take turns, round by round, so that a machine that grows busy slows all of them; an arm's figure is the median over its rounds.

* `lmms`: for each sample what `lmms_eval.models.chat.huggingface` (0.7.3) does at its default batch size of 1: chat template, processor,
  `generate` with its arguments, `batch_decode`. lmms-eval itself would want the model as a folder that transformers alone can read, which
  the embedded model is not; its own harness around these calls is left out, in its favour.
* `loop`: the same in batches of 32, in the records' order.
* `first`: `selectune.evaluate` with nothing kept: digests, trial of the fast ways, pictures and all.
* `ours`: the same with the pictures' features kept, as after the first stage of a run, or after a training on these pictures.
* `wide`: `ours` in batches of twice as many.

Five stages (a base and four updates) of `--staged` samples: `separate` measures each with nothing kept, `together` by `evaluate_versions`.
Their share is given twice: of measuring alone, the model being in memory, and with loading it, five times for once, as evaluations of five
folders by five commands do; what a process needs to start is left out. The answers of every arm must be those of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from surroundings import machine

from selectune.delta import Delta, applied, capture
from selectune.evaluation import Suite, Task, evaluate, trial
from selectune.evaluation.asking import Shared
from selectune.evaluation.evaluator import evaluate_versions, in_turn
from selectune.models import Model, load
from selectune.network import parameters
from selectune.recipe import Data
from selectune.records import Encoder, Record, Records, read_records
from selectune.training.machine import matrix_rate

RACES = ("digits", "yes-no", "tiny-qwen")
STAGES = ("attention", "upper-attention")
SELECTIONS = {"attention": ("attention",), "upper-attention": ("language.layers[50%:].attn.{q,k,v,o}",)}
MOST = 8
"""New tokens of an answer."""
RESULTS = Path(__file__).parent / "results" / "evaluate.json"
TESTS = Path(__file__).parents[1] / "tests"


@dataclass(kw_only=True)
class Race:
    """What every arm is given."""

    model: Model
    records: Records
    batch: int
    most: int = MOST
    some: int = 24
    """Samples that the slowest arm is given."""
    shared: Shared = field(default_factory=Shared)

    @property
    def suite(self) -> Suite:
        return Suite(tasks=(Task(name="race", records=self.records, max_new_tokens=self.most),))


Answers = list[str]


def _asked(processor: Any, rows: Sequence[Record]) -> Mapping[str, Any]:
    texts = []
    for row in rows:
        turns = []
        for turn in row.prompt:
            content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]
            turns.append({"role": turn.role, "content": content})
        texts.append(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    images = [picture.open() for row in rows for picture in row.pictures]
    made: Mapping[str, Any] = processor(text=texts, images=images or None, padding=True, return_tensors="pt")
    return made


def _generated(race: Race, rows: Sequence[Record]) -> Answers:
    processor, tokenizer, net = race.model.processor, race.model.tokenizer, race.model.net
    inputs = {name: value.to(race.model.device) for name, value in _asked(processor, rows).items()}
    ways: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "num_beams": 1, "use_cache": True}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    made = net.generate(**inputs, **ends, **ways, max_new_tokens=race.most)
    trimmed = [row[inputs["input_ids"].shape[1] :] for row in made]
    said = processor.batch_decode(trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [one.strip() for one in said]


def lmms(race: Race) -> Answers:
    """One sample at a time."""
    return [_generated(race, [row])[0] for row in race.records[: race.some]]


def loop(race: Race) -> Answers:
    """Batches in the records' order."""
    found: Answers = []
    for start in range(0, len(race.records), race.batch):
        found += _generated(race, race.records[start : start + race.batch])
    return found


def first(race: Race) -> Answers:
    """Ours, from nothing."""
    forget(race)
    return ours(race)


def ours(race: Race) -> Answers:
    """Ours, with the features of an earlier stage."""
    return [sample.output for sample in evaluate(race.model, race.suite, batch=race.batch, shared=race.shared).samples]


def wide(race: Race) -> Answers:
    """The same, twice as many at a time."""
    return ours(replace(race, batch=2 * race.batch))


def forget(race: Race) -> None:
    """As in a new process."""
    race.shared = Shared()
    trial.forget(race.model.net)


ARMS: dict[str, Callable[[Race], Answers]] = {"lmms": lmms, "loop": loop, "first": first, "ours": ours, "wide": wide}
"""By name; `first` comes before those that use what it kept."""


@contextmanager
def as_loaded(model: Model) -> Iterator[None]:
    """As transformers loads a model, weights ask for gradients; without, a CPU takes slower kernels in `generate`."""
    wanted = {name: parameter.requires_grad for name, parameter in parameters(model.net).items()}
    model.net.requires_grad_(True)
    model.tokenizer.padding_side = "left"
    try:
        yield
    finally:
        for name, parameter in parameters(model.net).items():
            parameter.requires_grad_(wanted[name])


def run(name: str, race: Race, taken: dict[str, list[float]]) -> None:
    """One round of a race: seconds a sample of each arm; every arm's answers are compared."""
    answers: dict[str, Answers] = {}
    for arm, act in ARMS.items():
        with as_loaded(race.model):
            begin = time.perf_counter()
            answers[arm] = act(race)
            spent = (time.perf_counter() - begin) / len(answers[arm])
        taken.setdefault(arm, []).append(spent)
        print(f"{name}, {arm}: {1000 * spent:.2f} ms a sample", file=sys.stderr, flush=True)
    for arm, said in answers.items():
        check(name, arm, said, answers["ours"][: len(said)])


def check(name: str, arm: str, said: Answers, expected: Answers) -> None:
    """Raises SystemExit where an arm answers otherwise: then times are of different things."""
    odd = [pair for pair in zip(said, expected, strict=True) if pair[0] != pair[1]]
    if odd:
        raise SystemExit(f"{name}: {arm} answers {len(odd)} of {len(said)} samples otherwise, such as {odd[0][0]!r}, not {odd[0][1]!r}")


def versions_of(model: Model, selection: str, count: int) -> dict[str, tuple[Delta, ...]]:
    """A base and updates one after another: weights moved by a thousandth of their size, at random."""
    chosen = model.map.select(SELECTIONS[selection])
    found: dict[str, tuple[Delta, ...]] = {"base": ()}
    chain: tuple[Delta, ...] = ()
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        version = model
        for number in range(1, count):
            before = {name: parameters(version.net)[name].detach().clone() for name in chosen.parameters}
            with capture(version, chosen) as captured, torch.no_grad():
                for name in chosen.parameters:
                    tensor = parameters(version.net)[name]
                    tensor.mul_(1 + 0.02 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
            with torch.no_grad():
                for name, values in before.items():
                    parameters(version.net)[name].copy_(values)
            chain = (*chain, captured.delta)
            version = stack.enter_context(applied(version, captured.delta))
            found[f"stage {number}"] = chain
    return found


def run_stages(name: str, race: Race, versions: Mapping[str, tuple[Delta, ...]], taken: dict[str, list[float]]) -> None:
    """One round of five stages, in both ways; every sample's answer and score is compared."""
    begin = time.perf_counter()
    separate = {}
    for stage, updated in in_turn(race.model, versions):
        forget(race)
        separate[stage] = evaluate(updated, race.suite, stage=stage, batch=race.batch, shared=race.shared)
    middle = time.perf_counter()
    trial.forget(race.model.net)
    together = evaluate_versions(race.model, versions, race.suite, batch=race.batch)
    end = time.perf_counter()
    for stage, measurement in together.items():
        check(f"{name}, {stage}", "separate", [row.output for row in separate[stage].samples], [row.output for row in measurement.samples])
        assert [row.score for row in measurement.samples] == [row.score for row in separate[stage].samples]
    for arm, spent in (("separate", middle - begin), ("together", end - middle)):
        taken.setdefault(arm, []).append(spent)
        print(f"{name}, {arm}: {spent:.1f} s", file=sys.stderr, flush=True)


def prepare(options: argparse.Namespace) -> tuple[dict[str, Race], list[float]]:
    """The races that are asked for, and the seconds that loading the embedded model took."""
    races: dict[str, Race] = {}
    loads: list[float] = []
    wanted = options.races.split(",") if options.races else []
    if options.stages or any(name != "tiny-qwen" for name in wanted):
        # The second time what a process brings with it for good is there, which five processes would each pay for.
        for _ in range(2):
            begin = time.perf_counter()
            model = load("embedded")
            loads.append(time.perf_counter() - begin)
    if options.stages:
        records = read_records(Data(source="embedded:digits", split="test", limit=options.staged))
        races["stages"] = Race(model=model, records=records, batch=options.batch)
    for name in wanted:
        if name == "tiny-qwen":
            sys.path.insert(0, str(TESTS))
            from test_evaluation_families import asked, qwen_model

            races[name] = Race(model=qwen_model(), records=asked(options.samples), batch=options.batch, some=options.some)
        else:
            records = read_records(Data(source=f"embedded:{name}", split="test", limit=options.samples))
            races[name] = Race(model=model, records=records, batch=options.batch, some=options.some)
    return races, loads


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", default=",".join(RACES), help="names, commas between them: tiny-qwen, or skills of the embedded model")
    parser.add_argument("--stages", default=",".join(STAGES), help="selections whose five stages are measured; empty: none")
    parser.add_argument("--samples", type=int, default=300, help="of each race")
    parser.add_argument("--staged", type=int, default=96, help="samples of the five stages")
    parser.add_argument("--some", type=int, default=48, help="of them for the slowest arm")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few minutes: fewer samples, two rounds")
    parser.add_argument("--json", action="store_true", help="print the result and write nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(given)
    if options.quick:
        options.samples, options.some, options.rounds = min(options.samples, 128), min(options.some, 24), min(options.rounds, 2)
    return options


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    options = arguments(given)
    described = machine()
    races, loads = prepare(options)
    raced = [name for name in options.races.split(",") if name]
    staged = [name for name in options.stages.split(",") if name]
    versions = {name: versions_of(races["stages"].model, name, 5) for name in staged}
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in raced}
    stages: dict[str, dict[str, list[float]]] = {name: {} for name in staged}
    for name in raced:
        ours(races[name])  # kernels and tables
    for _ in range(options.rounds):
        for name in raced:
            run(name, races[name], taken[name])
        for name in staged:
            run_stages(name, races["stages"], versions[name], stages[name])
    middle = {name: {arm: statistics.median(rounds) for arm, rounds in arms.items()} for name, arms in taken.items()}
    spent = {name: {arm: statistics.median(rounds) for arm, rounds in arms.items()} for name, arms in stages.items()}
    result = {
        "machine": described | {"load_after": list(os.getloadavg())},
        "samples": options.samples,
        "batch": options.batch,
        "staged": options.staged,
        "rounds": options.rounds,
        "samples_per_s": {name: {arm: 1 / seconds for arm, seconds in arms.items()} for name, arms in middle.items()},
        "ratios": ratios(middle),
        "five_stages_s": spent,
        "five_stages_share": {name: arms["together"] / arms["separate"] for name, arms in spent.items()},
        "five_stages_share_with_loading": {
            name: (arms["together"] + min(loads)) / (arms["separate"] + 5 * min(loads)) for name, arms in spent.items()
        },
        "load_s": loads,
        "bound": {name: bound(races[name], 1 / middle[name]["ours"]) for name in raced},
        "equal_answers": "checked in every round, item by item",
    }
    text = json.dumps(result, indent=2)
    if options.json:
        print(text)
    else:
        options.out.write_text(text + "\n", encoding="utf-8")
        for label, value in {**result["ratios"], **result["five_stages_share"]}.items():
            print(f"{label}: {value:.2f}", file=sys.stderr)
    return result


def ratios(spent: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How many times as fast, by race and pair of arms."""
    pairs = [(mine, other) for mine in ("first", "ours", "wide") for other in ("lmms", "loop")]
    return {f"{name}: {mine}/{other}": arms[other] / arms[mine] for name, arms in spent.items() for mine, other in pairs}


def bound(race: Race, rate: float) -> dict[str, float]:
    """What reading the prompts alone asks for: two operations for each weight of the layers and each token, at the rate of a square matrix
    product in the same dtype; and the share of it that `ours`, `rate` samples a second, comes to."""
    weights = sum(part.elements for part in race.model.map.components if part.name.startswith("language.layers.") and len(part.shape) > 1)
    tokens = statistics.mean(len(Encoder(race.model.processor).prompt(row).input_ids) for row in race.records)
    square = matrix_rate(race.model.net.dtype, device=race.model.device.type, times=9)
    most = square / (2 * weights * tokens)
    return {"tokens_per_sample": tokens, "square_product_per_s": square, "samples_per_s_at_most": most, "share": rate / most}


if __name__ == "__main__":
    main()
