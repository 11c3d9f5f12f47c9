"""A tiny model and a tiny task as lmms-eval takes them; what tests/recorded/lmms-eval was recorded with."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from evaluation_fixtures import llava

TASK = """\
task: tiny_colours
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.question
doc_to_messages: !function utils.messages
doc_to_target: answer
process_results: !function utils.result
generation_kwargs:
  max_new_tokens: 4
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact
    aggregation: !function utils.mean
    higher_is_better: true
  - metric: average
    aggregation: !function utils.mean
    higher_is_better: true
"""
FUNCTIONS = """\
def pictures(doc):
    return [doc["image"].convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def messages(doc, lmms_eval_specific_kwargs=None):
    picture = {"type": "image", "url": doc["image"].convert("RGB")}
    return [{"role": "user", "content": [picture, {"type": "text", "text": doc["question"]}]}]


def result(doc, results):
    right = float(doc["answer"] in results[0])
    return {"exact": right, "average": {"id": doc["question"], "score": right}}


def mean(rows):
    return sum(row["score"] if isinstance(row, dict) else row for row in rows) / len(rows)
"""


def write_model(folder: Path) -> Path:
    """A tiny LLaVA as a checkpoint."""
    model = llava()
    model.net.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


def write_task(folder: Path) -> Path:
    """A task of four questions about two pictures each asked twice."""
    folder.mkdir()
    rows = [
        {
            "image": Pictures.new("RGB", (8, 8), (40 * number, 0, 255 - 40 * number)),
            "question": f"What colour is picture {number // 2}?",
            "answer": ("red", "blue")[number % 2],
        }
        for number in range(4)
    ]
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(folder / "data.parquet")
    (folder / "tiny_colours.yaml").write_text(TASK.format(data=folder / "data.parquet"), "utf-8")
    (folder / "utils.py").write_text(FUNCTIONS, "utf-8")
    return folder
