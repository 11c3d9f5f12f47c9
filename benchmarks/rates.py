"""Which rate teaches a selection most: python benchmarks/rates.py [--steps 24] [--rates 5e-5 1e-4 2e-4 4e-4] [--out rates.json].

Trains the first skill of each demo recipe at each rate, on its training records, and scores it on validation records only: of the skill,
and of the held-out skills. One seed; intervals are for the samples, not for seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from selectune import models, statistics
from selectune.delta import applied
from selectune.evaluation import Suite, Task, evaluate
from selectune.recipe import Data, read_recipe
from selectune.records import read_records
from selectune.training import FeatureCache, Session, train

RECIPES = ("demo-attention", "demo-language")
HELD_OUT = ("clothes", "shapes", "colours", "yes-no", "kinds")


def suite(skill: str) -> Suite:
    """Validation records: 150 of the skill, 60 of each held-out one."""
    tasks = [Task(name=skill, records=read_records(Data(source=f"embedded:{skill}", split="validation", limit=150)), role="target")]
    tasks += [Task(name=name, records=read_records(Data(source=f"embedded:{name}", split="validation", limit=60))) for name in HELD_OUT]
    return Suite(tasks=tuple(tasks))


def main() -> None:
    """One line a rate and recipe; JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skill", default="digits")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4, 4e-4])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, tasks, found = models.load("embedded"), suite(options.skill), []
    records = read_records(Data(source=f"embedded:{options.skill}", split="train"))
    session = Session(features=FeatureCache())
    base = evaluate(model, tasks, stage="base", batch=64)
    print("base", {task: round(base.score(task), 3) for task in base.tasks}, f"{base.seconds:.0f} s", flush=True)
    for name in options.recipes:
        recipe = read_recipe(name)
        selection = model.map.select(recipe.select, tie=recipe.tie)
        for rate in options.rates:
            started = time.monotonic()
            optim = recipe.optim.model_copy(update={"lr": rate, "max_steps": options.steps})
            training = train(model, selection, records, optim, session=replace(session, seed=recipe.seed))
            with applied(model, training.delta) as child:
                after = evaluate(child, tasks, stage=f"{rate:g}", batch=64, base=base)
            learned = statistics.score(list(after.scores(options.skill).values()))
            held = sum(after.score(task) for task in HELD_OUT) / len(HELD_OUT)
            row = {
                "recipe": name,
                "lr": rate,
                "learned": [learned.value, learned.low, learned.high],
                "held_out": held,
                "loss": training.steps[-1].loss,
            }
            found.append(row | {"s_per_step": training.seconds / len(training.steps), "scores": {t: after.score(t) for t in after.tasks}})
            print(
                json.dumps(found[-1]), training.reasons, f"eval {after.seconds:.0f} s, all {time.monotonic() - started:.0f} s", flush=True
            )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
