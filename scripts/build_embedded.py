"""Makes the embedded model's alignment and skills from package data alone: python scripts/build_embedded.py [--out DIR] [--steps N].

Needs, besides `make install` and `pip install scikit-learn peft easy-vqa==1.0 --no-deps`: the Debian packages fonts-noto-color-emoji,
fonts-dejavu-core, dataset-fashion-mnist and unicode-data, and two npm archives unpacked (`npm pack emoji-datasource-twitter@16.0.0
svg-country-flags@1.2.10`).
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from embedded import alignment, skills

from selectune.embedded import parts

PACKAGE = Path(__file__).parent.parent / "src/selectune/embedded"
# Rows that are shipped; alignment sees more of the training side than is shipped.
SHIPPED = {"train": 1000, "validation": 150, "test": 300}
ALIGNED = {"train": 1, "validation": 0, "test": 0}


def training_rows(twitter: Path) -> list[dict[str, Any]]:
    """What alignment learns from: only the training side of the held-out skills."""
    drawn = skills.easy_vqa({"train": 2000, "validation": 0, "test": 0})
    rows = list(skills.clothes({"train": 3000, "validation": 0, "test": 0}))
    rows += drawn["shapes"] + drawn["colours"] + drawn["yes-no"]
    rows += list(skills.kinds({"train": 2, "validation": 0, "test": 0}, twitter))
    rows += list(skills.captions({"train": 400, "validation": 0, "test": 0}, twitter))
    rows += list(skills.clocks({"train": 2000, "validation": 0, "test": 0}))
    return [row for row in rows if row["split"] == "train"]


def shipped_rows(twitter: Path, drawings: Path) -> dict[str, list[dict[str, Any]]]:
    """Every skill that is shipped, with its three splits."""
    drawn = skills.easy_vqa(SHIPPED)
    target = {"train": 1280, "validation": 150, "test": 300}
    return {
        "clothes": list(skills.clothes(SHIPPED)),
        **drawn,
        "kinds": list(skills.kinds({"train": 1, "validation": 1, "test": 1})),
        "captions": list(skills.captions({"train": 300, "validation": 40, "test": 70})),
        "clocks": list(skills.clocks({"train": 1000, "validation": 144, "test": 288})),
        "questions": list(skills.questions()),
        "prose": list(skills.prose()),
        "digits": list(skills.digits({"train": 1180, "validation": 200, "test": 417})),
        "counting": list(skills.counting(target)),
        "words": list(skills.words({**target, "train": 640})),
        "flags": list(skills.flags({"train": 960, "validation": 144, "test": 240}, drawings, twitter)),
    }


def write_skills(found: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """One Parquet file a skill, pictures as bytes in the `datasets` image schema."""
    from datasets import Dataset, Features, Image, List, Value

    features = Features(
        {
            "id": Value("string"),
            "image": Image(),
            "question": Value("string"),
            "answer": Value("string"),
            "choices": List(Value("string")),
            "answers": List(Value("string")),
            "cluster": Value("string"),
            "split": Value("string"),
            "source": Value("string"),
            "synthetic": Value("bool"),
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        Dataset.from_list(rows, features=features).to_parquet(out / f"{name}.parquet")
        print(name, dict(Counter(row["split"] for row in rows)), f"{(out / f'{name}.parquet').stat().st_size / 1e6:.2f} MB", flush=True)


def main() -> None:
    """Skills first, then features, then the alignment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE)
    parser.add_argument(
        "--artwork", type=Path, required=True, help="folder with the two npm archives unpacked as tw/package and flags/package"
    )
    parser.add_argument("--steps", type=int, default=alignment.Settings().steps)
    parser.add_argument("--skills-only", action="store_true")
    options = parser.parse_args()
    twitter, drawings = options.artwork / "tw/package/img/twitter/64", options.artwork / "flags/package"
    started = time.monotonic()
    write_skills(shipped_rows(twitter, drawings), options.out / "skills")
    if options.skills_only:
        return
    net, processor = parts.skeleton(), parts.processor()
    rows = training_rows(twitter)
    pictures: dict[Any, int] = {}
    numbers = [pictures.setdefault((row["image"].size, row["image"].tobytes()), len(pictures)) for row in rows]
    unique = dict(zip(numbers, (row["image"] for row in rows), strict=True))
    print(
        f"{len(rows)} examples, {len(unique)} pictures, {time.monotonic() - started:.0f} s",
        Counter(row["id"].split("/")[0] for row in rows),
        flush=True,
    )
    rehearsed = alignment.rehearsal(net.to(torch.bfloat16), processor.tokenizer)
    print(f"rehearsal {len(rehearsed)}, {time.monotonic() - started:.0f} s", flush=True)
    raw = alignment.features(net, processor, [unique[n] for n in range(len(unique))])
    net.model.vision_tower.float()
    alignment.standardise(net, raw)
    examples = alignment.encode(rows, processor, numbers) + rehearsed
    alignment.align(net, examples, raw, alignment.Settings(steps=options.steps), options.out)
    print(f"done in {(time.monotonic() - started) / 60:.1f} min")


if __name__ == "__main__":
    main()
