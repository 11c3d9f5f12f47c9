"""Your own training loop around a selection: selectune sets what may move, proves it, keeps the update and judges it.

python examples/own_loop.py            needs nothing but the package and `selectune embedded install`; about a minute on two cores
"""

from __future__ import annotations

import torch

import selectune
from selectune import Data, Suite, Task, read_records
from selectune.records import Encoder, collate

STEPS, BATCH, RATE = 8, 12, 3e-4


def main() -> None:
    """Teaches handwritten digits for a few steps, and says what moved, what was learned and what was lost."""
    model = selectune.load("embedded")
    selection = model.map.select(["attention"])
    train = read_records(Data(source="embedded:digits", split="train", limit=STEPS * BATCH))
    tests = {name: read_records(Data(source=f"embedded:{name}", split="test", limit=24)) for name in ("digits", "clothes")}
    suite = Suite(tasks=tuple(Task(name=name, records=records) for name, records in tests.items()))
    before = selectune.evaluate(model, suite, stage="before")

    encoder = Encoder(model.processor)
    samples = encoder.encode_all(train, None).items
    with selectune.capture(model, selection, still="report", meta={"trainer": "own loop"}) as captured:
        optimizer = torch.optim.AdamW([parameter for parameter in model.net.parameters() if parameter.requires_grad], lr=RATE)
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            batch = collate(part, model.tokenizer.pad_token_id) | encoder.pixels(*(sample.pictures for sample in part))
            loss = model.net(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"step {start // BATCH + 1} of {STEPS}: loss {loss.item():.3f}")

    delta = captured.delta
    delta.save("own-loop.delta")
    print(f"{delta.moved():,} of {delta.elements:,} selected numbers moved; nothing else did")
    after = selectune.evaluate(captured.updated(model), suite, stage="after", base=before)
    for task in before.tasks:
        print(f"{task}: {before.score(task):.1%} before, {after.score(task):.1%} after (n = {after.n(task)})")
    parent = selectune.revert(captured.updated(model), delta)
    print(f"taken off again: {parent.id == delta.parent}")


if __name__ == "__main__":
    main()
