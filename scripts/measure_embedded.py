"""Measures every skill of the embedded model on its whole test split: python scripts/measure_embedded.py [--write, into the card]."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

from selectune import embedded, models, statistics
from selectune.evaluation import Measurement, Suite, Task, evaluate
from selectune.recipe import Data
from selectune.records import read_records

CARD = Path(embedded.__file__).parent / "README.md"
KINDS = {"captions": "caption", "questions": "choice", "prose": "perplexity"}


def tasks() -> list[Task]:
    """One task for each skill, on its test split."""
    found = []
    for name in embedded.SKILLS:
        records = read_records(Data(source=f"embedded:{name}", split="test"))
        found.append(
            Task(name=name, records=records, kind=KINDS.get(name, "generate"), role="target" if name in embedded.TARGETS else "held-out")
        )
    return found


def table(measurement: Measurement, found: list[Task]) -> str:
    """Markdown: skill, taught or not, score, interval, n."""
    lines = ["| skill | taught when built | score | 95 % interval | n |", "|--|--|--|--|--|"]
    for task in found:
        values = list(measurement.scores(task.name).values())
        clusters = list(measurement.clusters(task.name).values())
        estimate = statistics.score(values, clusters=clusters) if task.kind != "perplexity" else statistics.mean(values)
        taught = "no" if task.name in (*embedded.TARGETS, "questions", "prose") else "yes"
        name = f"{task.name}{' (synthetic)' if task.name in embedded.SYNTHETIC else ''}"
        if task.kind == "perplexity":
            low, high = math.exp(-estimate.high), math.exp(-estimate.low)
            lines.append(f"| {name}, perplexity | {taught} | {math.exp(-estimate.value):.1f} | {low:.1f} to {high:.1f} | {len(values)} |")
        else:
            kind = {"caption": ", token F1", "choice": ", likelihood choice"}.get(task.kind, "")
            line = f"{100 * estimate.value:.1f} % | {100 * estimate.low:.1f} to {100 * estimate.high:.1f} | {len(values)}"
            lines.append(f"| {name}{kind} | {taught} | {line} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; with --write puts it into the card."""
    found = tasks()
    measurement = evaluate(models.load(embedded.NAME), Suite(tasks=tuple(found)), stage="base", batch=64)
    text = table(measurement, found)
    print(text, f"\n{measurement.seconds:.0f} s, model {measurement.model_id}")
    if "--write" in sys.argv:
        card = re.sub(
            r"(<!-- scores -->).*(<!-- /scores -->)", lambda m: f"{m[1]}\n{text}\n{m[2]}", CARD.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        CARD.write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
