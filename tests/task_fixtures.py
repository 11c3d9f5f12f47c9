"""Small files of exactly the shipped tasks' schemas: columns and types of the data sets on the hub, pictures and odd rows included."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pillow

TEXT, TEXTS, INT = Value("string"), List(Value("string")), Value("int64")
BIRDS = tuple(f"Bird {index}" for index in range(26))
LISTED = "\n".join(f"{chr(65 + index)}. {name}" for index, name in enumerate(BIRDS))
DIRECTLY = "\nAnswer with the option's letter from the given choices directly."
INTEGER = "\nAnswer with integer and nothing else. For example, if the answer is 1, you should output 1."
PHRASE = "\nAnswer the question using a single word or phrase."


def png(shade: int) -> dict[str, Any]:
    """A picture as `datasets` keeps one: its bytes, and a path that is empty."""
    with io.BytesIO() as file:
        Pillow.new("RGB", (8, 8), (shade, 255 - shade, 40)).save(file, format="PNG")
        return {"bytes": file.getvalue(), "path": None}


@dataclass(frozen=True, kw_only=True)
class Small:
    """A few rows of a task's data set, and what has to come of them."""

    path: str
    """In a copy of the hub's folder."""
    features: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...] = ()
    ids: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Of the first record."""

    def dataset(self) -> Dataset:
        """The rows as `datasets` has them; a column that a row lacks is null."""
        whole = [{name: row.get(name) for name in self.features} for row in self.rows]
        return Dataset.from_list(whole, features=Features(dict(self.features)))

    def write(self, folder: Path) -> Path:
        """The folder, with the rows in it as the hub has them."""
        path = folder / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.dataset().to_parquet(path)
        return folder


ABCD = ("A", "B", "C", "D")
DOC = {
    "questionId": TEXT,
    "question": TEXT,
    "question_types": TEXTS,
    "image": Image(),
    "docId": INT,
    "ucsf_document_id": TEXT,
    "ucsf_document_page_no": TEXT,
    "answers": TEXTS,
    "data_split": TEXT,
}
INFO = {
    "questionId": TEXT,
    "question": TEXT,
    "answers": TEXTS,
    "answer_type": TEXTS,
    "image": Image(),
    "image_url": TEXT,
    "operation/reasoning": TEXTS,
    "ocr": TEXT,
    "data_split": TEXT,
}
PLAIN = {"image": Image(), "question": TEXT, "answer": TEXT}
TEXTVQA = {
    "image_id": TEXT,
    "question_id": Value("int32"),
    "question": TEXT,
    "question_tokens": TEXTS,
    "image": Image(),
    "image_width": Value("int32"),
    "image_height": Value("int32"),
    "flickr_original_url": TEXT,
    "flickr_300k_url": TEXT,
    "answers": TEXTS,
    "image_classes": TEXTS,
    "set_name": TEXT,
    "ocr_tokens": TEXTS,
}
SEED = {
    "answer": TEXT,
    "choice_a": TEXT,
    "choice_b": TEXT,
    "choice_c": TEXT,
    "choice_d": TEXT,
    "data_id": TEXT,
    "data_type": TEXT,
    "question": TEXT,
    "question_id": TEXT,
    "question_type_id": Value("int16"),
    "image": List(Image()),
    "segment": List(INT),
}
SCIENCE = {
    "image": Image(),
    "question": TEXT,
    "choices": TEXTS,
    "answer": Value("int8"),
    **dict.fromkeys(("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"), TEXT),
}
STAR = {
    "index": INT,
    "question": TEXT,
    "image": Image(),
    "answer": TEXT,
    "category": TEXT,
    "l2_category": TEXT,
    "meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT},
}
SCHOOL = {
    "task": "closed choice",
    "grade": "grade2",
    "subject": "natural science",
    "topic": "biology",
    "category": "",
    "skill": "",
    "lecture": "",
}
OPTIONS = "A. {}\nB. {}\nC. {}\nD. {}"
STAR_ASKED = "Which one is it?\nOptions: A: a cat, B: a dog, C: a bird, D: a fish"
ROOM = "In which direction does it point?\nA. Left\nB. Right\nC. Up\n"
ONLY = "Please answer directly with only the letter of the correct option and nothing else."
ONE_WORD = "How many cars are there? Please answer directly with a single word or number."

SMALL: Mapping[str, Small] = {
    "cub-200": Small(
        path="data/train-00000-of-00001.parquet",
        features=PLAIN,
        rows=[
            {"image": png(1), "question": f"<image>\nWhich bird is it?\n{LISTED}", "answer": "C"},
            {"image": png(2), "question": f"What is {{'default': 1}}?\n{LISTED}\n<image>", "answer": "z"},
        ],
        prompts=(f"Which bird is it?\n{LISTED}{DIRECTLY}", f"What is {{'default': 1}}?\n{LISTED}{DIRECTLY}"),
        answers=("C", "Z"),
        choices=(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),) * 2,
        meta={"options": BIRDS},
    ),
    "pixmocount": Small(
        path="data/train-00000-of-00001.parquet",
        features=PLAIN,
        rows=[
            {"image": png(1), "question": "How many dogs are in this image?\n<image>", "answer": "There are 3 dogs in this image."},
            {"image": png(2), "question": "How many 2nd hands are in this image?", "answer": "There is 1 2nd hand in this image."},
        ],
        prompts=(
            f"How many dogs are in this image?{INTEGER}",
            f"How many 2nd hands are in this image?{INTEGER}",
        ),
        answers=("There are 3 dogs in this image.", "There is 1 2nd hand in this image."),
    ),
    "pathvqa": Small(
        path="data/test-00000-of-00003-e9adadb4799f44d3.parquet",
        features=PLAIN,
        rows=[
            {"image": png(1), "question": "is a tumour there?", "answer": "yes"},
            {"image": png(2), "question": "where?", "answer": "liver"},
        ],
        prompts=tuple(
            f"Look at the medical image and answer the following question: {asked}\nFor questions that can be answered with a yes or no,"
            " just answer yes or no. Otherwise, provide an answer in the medical domain."
            for asked in ("is a tumour there?", "where?")
        ),
        answers=("yes", "liver"),
        meta={"ranked": ("yes", "no")},
    ),
    "textvqa": Small(
        path="data/validation-00000-of-00001.parquet",
        features=TEXTVQA,
        rows=[
            {
                "image_id": "a",
                "question_id": 34602,
                "question": "what is The brand?",
                "image": png(1),
                "answers": ["nous", *["dakota"] * 9],
            },
            {"image_id": "a", "question_id": 34603, "question": "who?", "image": png(1), "answers": ["", *["joe"] * 8, "joe's"]},
        ],
        prompts=(f"What is the brand?{PHRASE}", f"Who?{PHRASE}"),
        answers=("dakota", "joe"),
        ids=("34602", "34603"),
        meta={"image_id": "a", "answers": ("nous", *["dakota"] * 9)},
    ),
    "clock": Small(
        path="data/train-00000-of-00001.parquet",
        features=PLAIN,
        rows=[{"image": png(1), "question": "What time does the clock show in this image?\n<image>", "answer": "03:45"}],
        prompts=(
            "What time does the clock show in this image?\nAnswer with the time in HH:MM format. For example, if it's 3:45, output 3:45.",
        ),
        answers=("03:45",),
    ),
    "ai2d": Small(
        path="data/test-00000-of-00001.parquet",
        features={"question": TEXT, "options": TEXTS, "answer": TEXT, "image": Image()},
        rows=[
            {"question": "Which eats grass?", "options": ["fox", "hare", "owl", "{question}"], "answer": "1", "image": png(1)},
            {"question": "Which label is the root?", "options": ["F", "B", "E", "A"], "answer": "0", "image": png(2)},
        ],
        prompts=(
            f"Which eats grass?\n{OPTIONS.format('fox', 'hare', 'owl', '{question}')}{DIRECTLY}",
            f"Which label is the root?\n{OPTIONS.format('F', 'B', 'E', 'A')}{DIRECTLY}",
        ),
        answers=("B", "A"),
        choices=(ABCD, ABCD),
        meta={"options": ("fox", "hare", "owl", "{question}")},
    ),
    "chartqa": Small(
        path="data/test-00000-of-00001-e2cd0b7a0f9eb20d.parquet",
        features={"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()},
        rows=[
            {"type": "human_test", "question": "How many?", "answer": "14", "image": png(1)},
            {"type": "augmented_test", "question": "Which colour?", "answer": "Blue", "image": png(2)},
        ],
        prompts=("How many?\nAnswer the question with a single word.", "Which colour?\nAnswer the question with a single word."),
        answers=("14", "Blue"),
        meta={"type": "human_test"},
    ),
    "docvqa": Small(
        path="DocVQA/validation-00000-of-00006.parquet",
        features=DOC,
        rows=[
            {
                "questionId": "49153",
                "question": "What is the total?",
                "question_types": ["table"],
                "image": png(1),
                "docId": 14465,
                "answers": ["0.28", "$0.28"],
            },
            {"questionId": "24580", "question": "Who signed?", "question_types": None, "image": png(2), "docId": 7, "answers": ["J. Doe"]},
        ],
        prompts=(f"What is the total?{PHRASE}", f"Who signed?{PHRASE}"),
        answers=("0.28", "J. Doe"),
        ids=("49153", "24580"),
        meta={"docId": 14465, "question_types": ("table",), "answers": ("0.28", "$0.28")},
    ),
    "infovqa": Small(
        path="InfographicVQA/validation-00000-of-00002.parquet",
        features=INFO,
        rows=[
            {
                "questionId": "98313",
                "question": "Which share?",
                "answers": ["40%", "40 percent"],
                "answer_type": ["single span"],
                "image": png(1),
            }
        ],
        prompts=(f"Which share?{PHRASE}",),
        answers=("40%",),
        ids=("98313",),
        meta={"answer_type": ("single span",)},
    ),
    "realworldqa": Small(
        path="data/test-00000-of-00002.parquet",
        features={"image": Image(), "image_path": TEXT, "question": TEXT, "answer": TEXT},
        rows=[
            {"image": png(1), "image_path": "0.webp", "question": f" {ROOM}{ONLY}\n", "answer": "B"},
            {"image": png(2), "image_path": "1.webp", "question": ONE_WORD, "answer": "3"},
        ],
        prompts=(f"{ROOM}{ONLY}", ONE_WORD),
        answers=("B", "3"),
        choices=(("A", "B", "C"), ()),
        meta={"options": ("Left", "Right", "Up")},
    ),
    "seedbench": Small(
        path="data/test-00000-of-00062-4f8b86bcb2d9ff7c.parquet",
        features=SEED,
        rows=[
            {
                "answer": "B",
                "choice_a": "One",
                "choice_b": "Two",
                "choice_c": "Three",
                "choice_d": "Four",
                "data_type": "image",
                "question": "How many towels?",
                "question_id": "101669",
                "question_type_id": 5,
                "image": [png(1)],
                "segment": None,
            },
            {
                "answer": "A",
                "choice_a": "run",
                "choice_b": "sit",
                "choice_c": "eat",
                "choice_d": "cut",
                "data_type": "video",
                "question": "What is done?",
                "question_id": "v1",
                "question_type_id": 10,
                "image": [png(2), png(3)],
                "segment": [0, 9],
            },
        ],
        prompts=(f"How many towels?\n{OPTIONS.format('One', 'Two', 'Three', 'Four')}{DIRECTLY}",),
        answers=("B",),
        choices=(ABCD,),
        ids=("101669",),
        meta={"options": ("One", "Two", "Three", "Four"), "question_type_id": 5},
    ),
    "scienceqa-img": Small(
        path="ScienceQA-IMG/test-00000-of-00001.parquet",
        features=SCIENCE,
        rows=[
            {"image": png(1), "question": "Which is true?", "choices": ["yes", "no"], "answer": 1, "hint": "Plants grow.", **SCHOOL},
            {"image": png(2), "question": "Which is a bird?", "choices": ["fox", "owl", "elk"], "answer": 1, "hint": "", **SCHOOL},
        ],
        prompts=(f"Context: Plants grow.\nWhich is true?\nA. yes\nB. no{DIRECTLY}", f"Which is a bird?\nA. fox\nB. owl\nC. elk{DIRECTLY}"),
        answers=("B", "B"),
        choices=(("A", "B"), ("A", "B", "C")),
        meta={"options": ("yes", "no"), "subject": "natural science", "grade": "grade2"},
    ),
    "mmstar": Small(
        path="mmstar.parquet",
        features=STAR,
        rows=[
            {
                "index": 0,
                "question": f"{STAR_ASKED}\n",
                "image": png(1),
                "answer": "D",
                "category": "coarse perception",
                "l2_category": "image emotion",
                "meta_info": {"source": "MMBench", "split": "val", "image_path": "images/0.jpg"},
            }
        ],
        prompts=(f"{STAR_ASKED}{DIRECTLY.removesuffix('.')}",),
        answers=("D",),
        choices=(ABCD,),
        ids=("0",),
        meta={"category": "coarse perception", "l2_category": "image emotion"},
    ),
    "mmlu": Small(
        path="all/test-00000-of-00001.parquet",
        features={"question": TEXT, "subject": TEXT, "choices": TEXTS, "answer": ClassLabel(names=list(ABCD))},
        rows=[{"question": " Find all c. ", "subject": "abstract_algebra", "choices": ["0", "1", "2", "3"], "answer": 1}],
        prompts=("Find all c.\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:",),
        answers=("B",),
        choices=(ABCD,),
        meta={"subject": "abstract_algebra"},
    ),
    "gsm8k": Small(
        path="main/test-00000-of-00001.parquet",
        features={"question": TEXT, "answer": TEXT},
        rows=[{"question": "How much does she make?", "answer": "16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $18.\n#### 1,018"}],
        prompts=("Question: How much does she make?\nAnswer:",),
        answers=("1,018",),
    ),
    "wikitext": Small(
        path="wikitext-2-raw-v1/test-00000-of-00001.parquet",
        features={"text": TEXT},
        rows=[{"text": ""}, {"text": " = Robert = \n"}, {"text": ""}, {"text": " He was an actor . \n"}],
        prompts=("", ""),
        answers=(" = Robert = \n", " He was an actor . \n"),
    ),
}
"""By task: its rows, as the hub has them."""
