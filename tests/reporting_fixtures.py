"""A made-up run in the shape of a real one: figures near a first trial of the embedded model, pictures drawn here. For tests only."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

from selectune.reporting.document import Estimate
from selectune.reporting.judged import Rule, Verdict
from selectune.reporting.measured import (
    CaptionedPicture,
    Change,
    Difference,
    MatrixTable,
    NumberStage,
    Probes,
    RecoveredTask,
    StageCaption,
    Tally,
    TaskInfo,
)
from selectune.reporting.pictures import thumbnail_url
from selectune.reporting.result import RunResult
from selectune.reporting.trained import Family, ModelInfo, Phase, QuickPoint, Recovery, SelectionInfo, StepPoint, UpdateInfo

SKILLS = ("digits", "clocks")
STAGES = ("base", *SKILLS)
COLUMNS = ("digits", "clocks", "clothes", "shapes", "kinds", "counting", "text")
SIZES = {"digits": 120, "clocks": 100, "clothes": 120, "shapes": 120, "kinds": 107, "counting": 100, "text": 60}
BASE = {"digits": 0.083, "clocks": 0.05, "clothes": 0.85, "shapes": 0.867, "kinds": 0.72, "counting": 0.94, "text": -2.7147}


@dataclass(frozen=True)
class Shape:
    """What a made-up recipe comes to."""

    name: str
    patterns: tuple[str, ...]
    elements: int
    learned: tuple[float, float]
    kept: tuple[float, float]
    numbers: tuple[float, float, float]
    captions: tuple[str, str]


ATTENTION = Shape(
    "attention", ("attention",), 26_542_080, (0.542, 0.61), (0.93, 0.9), (0.0018, 0.0027, 0.0031), (" A dragonfly.", " A dragonfly.")
)
LANGUAGE = Shape("language", ("language",), 134_515_008, (0.717, 0.83), (0.21, 0.09), (0.0018, 0.1412, 0.1696), (" A fly 6.", " 6"))


def identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def wilson(value: float, n: int) -> tuple[float, float]:
    z = 1.96
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


@cache
def picture(seed: int, side: int = 96) -> str:
    """A drawn picture: a few coloured figures on a light ground."""
    draw_from = random.Random(seed)
    image = Image.new("RGB", (side, side), draw_from.choice(["#f4efe6", "#e8f0f2", "#f3e9ee", "#eef2e6"]))
    draw = ImageDraw.Draw(image)
    for _ in range(draw_from.randint(3, 6)):
        x, y, r = draw_from.randint(10, 80), draw_from.randint(10, 80), draw_from.randint(6, 24)
        colour = draw_from.choice(["#2a6f97", "#e07a5f", "#81b29a", "#f2cc8f", "#3d405b"])
        (draw.ellipse if draw_from.random() < 0.5 else draw.rectangle)((x - r, y - r, x + r, y + r), fill=colour)
    return thumbnail_url(image)


def score(shape: Shape, stage: int, column: str) -> float:
    if stage == 0:
        return BASE[column]
    if column == "digits":
        return shape.learned[0] - 0.05 * (stage - 1)
    if column == "clocks":
        return BASE["clocks"] if stage == 1 else shape.learned[1]
    if column == "text":
        return BASE["text"] - 0.12 * stage
    return BASE[column] * shape.kept[stage - 1]


def make_matrix(shape: Shape) -> MatrixTable:
    scores = [[score(shape, stage, column) for column in COLUMNS] for stage in range(3)]
    ends = [[(v - 0.14, v + 0.14) if c == "text" else wilson(v, SIZES[c]) for v, c in zip(row, COLUMNS, strict=True)] for row in scores]
    return MatrixTable(
        rows=STAGES,
        columns=COLUMNS,
        scores=scores,
        n=[[SIZES[column] for column in COLUMNS]] * 3,
        low=[[low for low, _ in row] for row in ends],
        high=[[high for _, high in row] for row in ends],
    )


def make_phase(shape: Shape, name: str, *, kind: str = "skill", steps: int = 37, lr: float = 2e-4) -> Phase:
    noise = random.Random(f"{shape.name}{name}")
    points = []
    for n in range(1, steps + 1):
        rate = lr * min(1.0, n / 3) * 0.5 * (1 + math.cos(math.pi * n / steps))
        points.append(
            StepPoint(
                n=n,
                loss=0.9 + 2.6 * math.exp(-n / 9) + noise.uniform(-0.1, 0.1),
                lr=rate,
                grad_norm=1.0 + 5 * math.exp(-n / 6) + noise.uniform(0, 0.4),
                tokens=32 * n * 4,
                seconds=2.16 * n,
            )
        )
    kept = shape.kept[0] * 0.85
    quick = tuple(
        QuickPoint(step=n, scores={"clothes": 0.85 - (0.85 - kept) * n / steps, "shapes": 0.86}, n=40) for n in (1, 10, 20, 30, 37)
    )
    return Phase(
        name=name,
        kind=kind,
        source=f"embedded:{name}",
        synthetic=name == "clocks",
        records=1180,
        optim={"lr": lr, "epochs": 1.0, "batch": 32, "schedule": "cosine", "warmup": 0.03, "weight_decay": 0.0, "clip": 1.0},
        steps=tuple(points),
        seconds=2.16 * steps,
        quick=quick if kind == "skill" else (),
        skipped={"longer than max_length": 2} if name == "clocks" else {},
        proof=f"all {shape.elements:,} selected elements had a step; everything else is bit for bit what it was",
    )


def make_verdicts(shape: Shape, matrix: MatrixTable) -> tuple[Verdict, ...]:
    verdicts = []
    for number, skill in enumerate(SKILLS, start=1):
        gain = score(shape, number, skill) - BASE[skill]
        rules = [
            Rule(
                name="improves", task=skill, against="base", value=gain, low=gain - 0.1, high=gain + 0.1, bound=0.0, n=SIZES[skill],
                lost=2, gained=round(gain * SIZES[skill]) + 2, verdict="passed",
                evidence=f"{round(gain * SIZES[skill])} of {SIZES[skill]} answers became right, 2 wrong",
            )
        ]  # fmt: skip
        for task in ("clothes", "shapes", "kinds", "counting"):
            for against in ("base", STAGES[number - 1])[: 1 + (number > 1)]:
                lost = score(shape, number, task) - score(shape, STAGES.index(against), task)
                low, high = lost - 0.05, lost + 0.05
                outcome = "passed" if low > -0.1 else "failed" if high < -0.1 else "undecided"
                rules.append(
                    Rule(
                        name="keeps", task=task, against=against, value=lost, low=low, high=high, bound=-0.1, n=SIZES[task],
                        lost=round(-lost * SIZES[task]) + 1, gained=1, needed=431 if outcome == "undecided" else None, verdict=outcome,
                        evidence=f"score test of non-inferiority, margin 10 points: lower bound {100 * low:.1f}",
                    )
                )  # fmt: skip
        worst = (
            "failed"
            if any(r.verdict == "failed" for r in rules)
            else "undecided"
            if any(r.verdict == "undecided" for r in rules)
            else "passed"
        )
        verdicts.append(Verdict(skill=skill, verdict=worst, rules=tuple(rules)))
    return tuple(verdicts)


def make_changes(shape: Shape, matrix: MatrixTable) -> tuple[tuple[Tally, ...], tuple[Change, ...], tuple[Difference, ...]]:
    tallies, changes, differences = [], [], []
    answers = {"clothes": ("coat", "dress", "bag"), "shapes": ("circle", "yes", "triangle"), "kinds": ("insect", "fruit", "vehicle")}
    for column in COLUMNS:
        for stage, row in enumerate(STAGES[1:], start=1):
            change = score(shape, stage, column) - BASE[column]
            half = 0.02 + 0.6 * math.sqrt(abs(change) + 0.01) / math.sqrt(SIZES[column])
            differences.append(Difference(task=column, stage=row, value=change, low=change - half, high=change + half, n=SIZES[column]))
        if column == "text":
            continue
        net = round((score(shape, 2, column) - BASE[column]) * SIZES[column])
        gained, lost = max(net, 0) + 2, max(-net, 0) + 2
        tallies.append(Tally(task=column, stage="clocks", gained=gained, lost=lost, n=SIZES[column]))
        good = {"digits": ("7", "3", "9"), "clocks": ("3:15", "9:30", "6:45"), "counting": ("4", "2", "5")}.get(
            column, answers.get(column, ("a", "b", "c"))
        )
        for way, many in (("gained", gained), ("lost", lost)):
            for index in range(min(many, 6)):
                right = good[index % 3]
                wrong = {"attention": good[(index + 1) % 3], "language": "6"}[shape.name]
                question = {"digits": "Which digit is this?", "clocks": "What time is it?", "counting": "How many things are there?"}.get(
                    column, "What is shown?"
                )
                changes.append(
                    Change(
                        task=column, id=f"{column}-{index:04d}", stage="clocks", way=way,
                        picture=picture(sum(map(ord, column)) * 31 + index),
                        question=question, reference=right, before=wrong if way == "gained" else right,
                        after=right if way == "gained" else wrong,
                    )
                )  # fmt: skip
    return tuple(tallies), tuple(changes), tuple(differences)


def make_captions(shape: Shape) -> tuple[CaptionedPicture, ...]:
    things = ("A dragonfly.", "A red mushroom.", "A sailing boat.", "An owl.", "A bicycle.", "A slice of watermelon.")
    pictures = []
    for index, thing in enumerate(things):
        last = (
            [f" {thing}", f" {thing}"]
            if shape.name == "attention"
            else [f" {thing.rstrip('.')} 6.", [" 6", " 6 6", " 9:15", " 6"][index % 4]]
        )
        captions = tuple(
            StageCaption(stage=stage, text=text, mean=mean)
            for stage, text, mean in zip(
                STAGES, [f" {thing}", *last], (0.0011, shape.numbers[1], shape.numbers[2] * (1 + index / 10)), strict=True
            )
        )
        pictures.append(CaptionedPicture(id=f"emoji-{index:03d}", picture=picture(index, 120), reference=thing, captions=captions))
    return tuple(pictures)


def make_updates(shape: Shape, verdicts: tuple[Verdict, ...]) -> tuple[UpdateInfo, ...]:
    updates: list[UpdateInfo] = []
    for index, verdict in enumerate(verdicts):
        updates.append(
            UpdateInfo(
                id=identity(f"{shape.name}{index}"),
                parent=updates[-1].id if updates else None,
                base=identity(f"m{shape.name}{index}") if index else identity("base"),
                child=identity(f"m{shape.name}{index + 1}"),
                skill=verdict.skill,
                verdict=verdict.verdict,
                names=("candidate",) if index == 1 and shape.name == "attention" else (),
                elements=round(shape.elements * 0.81),
                bytes=round(shape.elements * 0.62),
                created=f"2026-11-24T1{index}:05:00Z",
            )
        )
    return tuple(updates)


def make_recovery(shape: Shape) -> Recovery:
    tasks = []
    for task in ("digits", "clocks", "clothes", "shapes", "kinds", "counting"):
        before = score(shape, 2, task)
        after = before + (BASE[task] - before) * 0.45
        values = (BASE[task], before, after)
        low_high = [wilson(value, SIZES[task]) for value in values]
        base, was, now = (Estimate(value=v, low=a, high=b, n=SIZES[task]) for v, (a, b) in zip(values, low_high, strict=True))
        tasks.append(RecoveredTask(task=task, base=base, before=was, after=now))
    return Recovery(
        phase=make_phase(shape, "recovery", kind="recovery", steps=12, lr=5e-5),
        patterns=("language",),
        tasks=tuple(tasks),
        numbers_before=NumberStage(stage="clocks", mean=0.1696, low=0.1502, high=0.1889, max_mean=0.61, n=80),
        numbers_after=NumberStage(stage="recovery", mean=0.0011, low=0.0007, high=0.0016, max_mean=0.004, n=80),
        metrics={"held_out_recovered": Estimate(value=0.33, low=0.27, high=0.39, n=447, method="paired t")},
    )


@cache
def make_result(shape: Shape = ATTENTION, *, recovery: bool = False) -> RunResult:
    """A whole made-up result."""
    matrix = make_matrix(shape)
    verdicts = make_verdicts(shape, matrix)
    tallies, changes, differences = make_changes(shape, matrix)
    held = sum(score(shape, 2, c) - BASE[c] for c in ("clothes", "shapes", "kinds", "counting")) / 4
    learning = (score(shape, 1, "digits") - BASE["digits"] + score(shape, 2, "clocks") - BASE["clocks"]) / 2
    overall = (score(shape, 2, "digits") - BASE["digits"] + score(shape, 2, "clocks") - BASE["clocks"]) / 2
    return RunResult(
        run=identity(shape.name)[:16],
        created="2026-11-24T13:05:00Z",
        name=shape.name,
        recipe={"name": shape.name, "model": "embedded", "seed": 0, "select": list(shape.patterns), "optim": {"lr": 2e-4, "batch": 32}},
        model=ModelInfo(name="embedded", id=identity("base"), elements=140_241_952, about="SmolLM2-135M-Instruct with EfficientNet-Lite0."),
        selection=SelectionInfo(
            patterns=shape.patterns,
            elements=shape.elements,
            total=140_241_952,
            digest=identity("selection"),
            families=tuple(Family(component=f"language.layers.*.attn.{p}", count=30, elements=shape.elements // 4) for p in "qkvo"),
        ),
        skills=SKILLS,
        tasks=(
            TaskInfo(name="digits", role="target", scorer="exact", about="Reading one handwritten digit: scikit-learn's real scans."),
            TaskInfo(name="clocks", role="target", scorer="exact", synthetic=True, about="Telling the time from a drawn clock."),
            TaskInfo(name="clothes", role="held-out", scorer="exact", margin=0.1, about="Naming a garment: Fashion-MNIST photographs."),
            TaskInfo(
                name="shapes", role="held-out", scorer="exact", margin=0.1, synthetic=True, about="Questions on one drawn shape: easy-VQA."
            ),
            TaskInfo(name="kinds", role="held-out", scorer="exact", margin=0.1, about="The kind of thing an emoji picture shows."),
            TaskInfo(name="counting", role="held-out", scorer="exact", margin=0.1, synthetic=True, about="Counting drawn things, 1 to 9."),
            TaskInfo(name="text", role="held-out", kind="perplexity", about="Plain English sentences without a picture."),
        ),
        matrix=matrix,
        metrics={
            "target_learning": Estimate(value=learning, low=learning - 0.07, high=learning + 0.07, n=220, method="paired t"),
            "target_forgetting": Estimate(value=-0.05, low=-0.11, high=0.01, n=120, method="paired t"),
            "target_overall": Estimate(value=overall, low=overall - 0.07, high=overall + 0.07, n=220, method="paired t"),
            "held_out_forgetting": Estimate(value=held, low=held - 0.035, high=held + 0.035, n=447, method="paired t"),
            "held_out_forgetting.text": Estimate(value=-0.24, low=-0.2987, high=-0.1813, n=60, method="paired t"),
            "worst_stage": Estimate(value=held, low=held - 0.035, high=held + 0.035, n=447, method="paired t", label="clocks"),
            "worst_task": Estimate(
                value=held * 1.1, low=held * 1.1 - 0.06, high=held * 1.1 + 0.06, n=107, method="paired t", label="kinds"
            ),
        },
        probes=Probes(
            numbers=tuple(
                NumberStage(stage=s, mean=m, low=m * 0.8, high=m * 1.2, max_mean=min(1.0, m * 3.4), n=80)
                for s, m in zip(STAGES, shape.numbers, strict=True)
            ),
            correlation=Estimate(value=-0.97, low=-1.0, high=0.31, n=3, method="Pearson"),
        ),
        updates=make_updates(shape, verdicts),
        verdicts=verdicts,
        phases=tuple(make_phase(shape, skill) for skill in SKILLS),
        captions=make_captions(shape),
        differences=differences,
        tallies=tallies,
        changes=changes,
        recovery=make_recovery(shape) if recovery else None,
        seconds={"load": 14.2, "measure": 102.5, "train": 160.0, "probe": 31.1},
        environment={
            "selectune": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "cpu": "AMD EPYC",
            "threads": "2",
            "dtype": "bfloat16 autocast",
        },
        notes=("One seed and one order of skills.", "A model of 140 million parameters; larger ones may differ."),
        report="selectune-report.html",
    )


def make_pair() -> tuple[RunResult, RunResult]:
    """The demo's two recipes; the second one collapses and is recovered."""
    return make_result(ATTENTION), make_result(LANGUAGE, recovery=True)
