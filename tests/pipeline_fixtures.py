"""Tiny models as folders, tiny records as files, and recipes over them: what the tests of the pipeline and the command line run."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

import evaluation_fixtures as tiny
from selectune.models import Model


def save_model(made: Model, folder: Path) -> Path:
    """The model and its processor, as `save_pretrained` writes them."""
    made.net.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return folder


def jsonl(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn(number: int) -> bytes:
    """A PNG of 8 by 8 pixels of noise that no other number has: plain colours next to each other would count as near duplicates."""
    image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (tiny.SIDE, tiny.SIDE, 3), dtype=np.uint8))
    with io.BytesIO() as file:
        image.save(file, format="PNG")
        return file.getvalue()


def question(number: int, answer: str, *, picture: bool = False) -> dict[str, object]:
    """A row of OpenAI messages; no two numbers ask the same."""
    text = f"What is in the picture {number}?"
    content: object = text
    if picture:
        url = f"data:image/png;base64,{base64.b64encode(drawn(number)).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"id": f"r{number}", "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def rows(start: int, count: int, answer: Callable[[int], str], *, picture: bool = False) -> list[dict[str, object]]:
    """Questions with answers by number."""
    return [question(number, answer(number), picture=picture) for number in range(start, start + count)]


def write_recipe(folder: Path, model: Path, *, pictures: bool = False, **changes: object) -> Path:
    """A recipe of two skills and two held-out tasks, with its records beside it. `changes` replace top-level keys."""
    answers = {"cats": lambda n: "a cat", "dogs": lambda n: "a dog", "fish": lambda n: "a red fish"}
    for index, (name, answer) in enumerate(answers.items()):
        jsonl(folder / f"{name}-train.jsonl", rows(1000 * index, 16, answer, picture=pictures))
        jsonl(folder / f"{name}-test.jsonl", rows(1000 * index + 500, 8, answer, picture=pictures))
    jsonl(folder / "plain.jsonl", [{"text": f"one two three four seven {'fish ' * n}"} for n in range(1, 7)])
    recipe: dict[str, object] = {
        "name": "tiny",
        "model": str(model),
        "select": ["attention"],
        "optim": {"lr": 0.05, "batch": 8, "max_steps": 12, "warmup": 0.0},
        "skills": [{"name": name, "train": f"{name}-train.jsonl", "test": f"{name}-test.jsonl"} for name in ("cats", "dogs")],
        "held_out": [
            {"name": "fish", "test": "fish-test.jsonl"},
            {"name": "plain", "test": "plain.jsonl", "kind": "perplexity", "margin": 0.5},
        ],
        "gate": {"min_n": 4},
        "eval_batch": 8,
    }
    if pictures:
        recipe["probe"] = {"numbers": "fish-train.jsonl", "max_new_tokens": 3}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path
