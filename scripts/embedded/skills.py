"""Makes the skills of the embedded model from package data: rows of picture, question and answer, in splits that share no picture.

Real: clothes (photographs, Fashion-MNIST), digits (handwriting, scikit-learn). Third-party artwork: shapes, colours, yes-no (easy-VQA),
kinds and captions (Noto emoji, OFL), flags (public-domain drawings to train, Noto's to test). Synthetic, drawn here: counting, clocks,
words. Text of our own: questions, prose.
"""

from __future__ import annotations

import gzip
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import pictures
from .plain_text import PROSE, QUESTIONS

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
FASHION = Path("/usr/share/datasets/fashion-mnist")
EMOJI_LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
CLOTHES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
NUMBERS = tuple(str(n) for n in range(1, 10))
WORDS = """
apple bread chair river house green light water paper music garden window bridge summer winter yellow orange silver market doctor letter
number flower animal street school engine camera button island
""".split()  # noqa: SIM905 (thirty quoted words would be harder to read)
COUNTRIES = {
    "fr": "France",
    "de": "Germany",
    "it": "Italy",
    "es": "Spain",
    "jp": "Japan",
    "cn": "China",
    "us": "America",
    "gb": "Britain",
    "ca": "Canada",
    "br": "Brazil",
    "ru": "Russia",
    "in": "India",
    "ch": "Switzerland",
    "se": "Sweden",
    "gr": "Greece",
    "tr": "Turkey",
    "ar": "Argentina",
    "kr": "Korea",
    "za": "South Africa",
    "eg": "Egypt",
    "ua": "Ukraine",
    "ie": "Ireland",
    "pl": "Poland",
    "at": "Austria",
}
KINDS = {
    "animal": r"animal-.*|cat-face|monkey-face",
    "plant": r"plant-.*",
    "food": r"food-.*",
    "face": r"face-.*",
    "hand": r"hand.*",
    "person": r"person.*|family",
    "building": r"place-(building|religious)",
    "vehicle": r"transport-(ground|water|air)",
    "clothing": r"clothing",
    "symbol": r"arrow|religion|zodiac|av-symbol|math|punctuation|other-symbol|alphanum|geometric|transport-sign|warning|keycap",
}
NAMED = ("animal", "plant", "food", "building", "vehicle", "clothing")


def row(skill: str, split: str, key: object, picture: Image.Image | None, question: str, answer: str, **more: Any) -> Row:
    """One example; `choices` for a closed set of answers, `cluster` for rows that share a picture."""
    identity = f"{skill}/{split}/{key}"
    return {
        "id": identity,
        "image": picture,
        "question": question,
        "answer": answer,
        "choices": more.get("choices"),
        "answers": more.get("answers"),
        "cluster": more.get("cluster", identity),
        "split": split,
        "source": more["source"],
        "synthetic": more.get("synthetic", False),
    }


def clothes(sizes: dict[str, int]) -> Iterator[Row]:
    """Fashion-MNIST's real photographs, 28 x 28 grey."""
    read = {"train": "train", "validation": "train", "test": "t10k"}
    skip = {"train": 0, "validation": 50_000, "test": 0}
    for split, count in sizes.items():
        images = np.frombuffer(
            gzip.decompress((FASHION / f"{read[split]}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
        ).reshape(-1, 28, 28)
        labels = np.frombuffer(gzip.decompress((FASHION / f"{read[split]}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
        for index in range(skip[split], skip[split] + count):
            picture = Image.fromarray(images[index]).convert("L")
            yield row(
                "clothes",
                split,
                index,
                picture,
                "What kind of clothing is this?",
                CLOTHES[labels[index]],
                choices=CLOTHES,
                source="Fashion-MNIST",
            )


def easy_vqa(sizes: dict[str, int]) -> dict[str, list[Row]]:
    """easy-VQA's pictures and questions as three skills: shapes, colours and yes-no; `sizes` counts rows of each skill."""
    import easy_vqa as package

    found: dict[str, list[Row]] = {"shapes": [], "colours": [], "yes-no": []}
    for split, questions, paths in (
        ("train", package.get_train_questions(), package.get_train_image_paths()),
        ("validation", package.get_train_questions(), package.get_train_image_paths()),
        ("test", package.get_test_questions(), package.get_test_image_paths()),
    ):
        done: dict[str, int] = defaultdict(int)
        for number, (question, answer, image) in enumerate(zip(*questions, strict=True)):
            # Pictures from 3,400 on are kept for validation.
            if (split == "train" and image >= 3400) or (split == "validation" and image < 3400):
                continue
            skill = "yes-no" if answer in ("yes", "no") else "shapes" if answer in ("circle", "rectangle", "triangle") else "colours"
            # Every third yes-no question is enough: there are ten for one about a shape.
            if done[skill] >= sizes[split] or (skill == "yes-no" and number % 3):
                continue
            done[skill] += 1
            text = question[0].upper() + question[1:]
            choices = {"yes-no": ("yes", "no"), "shapes": ("circle", "rectangle", "triangle")}.get(skill)
            picture = Image.open(paths[image]).convert("RGB")
            found[skill].append(
                row(skill, split, number, picture, text, answer, choices=choices, cluster=f"easy-vqa/{split}/{image}", source="easy-VQA")
            )
    return found


@cache
def emoji_names() -> dict[str, tuple[str, str, str]]:
    """Each drawable single emoji: its kind, its name and its split (by the code point, so artwork of one never crosses splits)."""
    found: dict[str, tuple[str, str, str]] = {}
    group = ""
    for line in EMOJI_LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup: "):
            group = line.removeprefix("# subgroup: ")
        match = re.fullmatch(r"([0-9A-F]+)( FE0F)?\s+; fully-qualified\s+# \S+ E[\d.]+ (.+)", line)
        kind = next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, group)), None)
        if match and kind:
            text = chr(int(match[1], 16))
            part = random.Random(f"split {match[1]}").random()
            split = "train" if part < 0.68 else "validation" if part < 0.76 else "test"
            found[text] = (kind, match[3], split)
    return found


def kinds(sizes: dict[str, int], twitter: Path | None = None) -> Iterator[Row]:
    """What kind of thing a picture shows; with `twitter`, second artwork of the training emoji is added (used to build, never shipped)."""
    for text, (kind, _, split) in emoji_names().items():
        for copy, cutout in enumerate(_artwork(text, twitter if split == "train" else None)):
            for look in range(sizes[split]):
                rng = random.Random(f"kinds {text} {copy} {look}")
                yield row(
                    "kinds",
                    split,
                    f"{ord(text):x}-{copy}-{look}",
                    pictures.on_paper(rng, cutout),
                    "What kind of thing is this?",
                    kind,
                    choices=tuple(KINDS),
                    cluster=f"emoji/{ord(text):x}",
                    source="Noto emoji" if copy == 0 else "Twemoji",
                )


def captions(sizes: dict[str, int], twitter: Path | None = None) -> Iterator[Row]:
    """`Describe the picture.`: a name for an emoji, shape and colour for a drawing, garment for a photograph; a third each."""
    for text, (kind, name, split) in emoji_names().items():
        if kind in NAMED:
            for copy, cutout in enumerate(_artwork(text, twitter if split == "train" else None)):
                rng = random.Random(f"captions {text} {copy}")
                yield _caption(split, f"{ord(text):x}-{copy}", pictures.on_paper(rng, cutout), name, f"emoji/{ord(text):x}", "Noto emoji")
    for item in clothes(dict(sizes)):
        yield _caption(item["split"], item["id"], item["image"], f"grey photo of a {item['answer']}", item["id"], item["source"])
    drawn: dict[str, dict[str, str]] = defaultdict(dict)
    images: dict[str, Row] = {}
    for skill, rows in easy_vqa({split: 2 * size for split, size in sizes.items()}).items():
        for item in rows:
            drawn[item["cluster"]][skill] = item["answer"]
            images[item["cluster"]] = item
    done: dict[str, int] = defaultdict(int)
    for cluster, facts in drawn.items():
        split = images[cluster]["split"]
        if {"shapes", "colours"} <= facts.keys() and done[split] < sizes[split]:
            done[split] += 1
            name = f"{facts['colours']} {facts['shapes']}"
            yield _caption(split, cluster, images[cluster]["image"], name, cluster, "easy-VQA")


def clocks(sizes: dict[str, int]) -> Iterator[Row]:
    """Drawn clocks at the quarters of the hour, answered as 3:15."""
    for split, count in sizes.items():
        for index in range(count):
            rng = random.Random(f"clocks {split} {index}")
            hour, minute = index % 12 + 1, (0, 15, 30, 45)[index // 12 % 4]
            yield row(
                "clocks",
                split,
                index,
                pictures.clock(rng, hour, minute),
                "What time does the clock show?",
                f"{hour}:{minute:02d}",
                source="drawn",
                synthetic=True,
            )


def counting(sizes: dict[str, int]) -> Iterator[Row]:
    """Drawn objects, one to nine."""
    for split, count in sizes.items():
        for index in range(count):
            rng = random.Random(f"counting {split} {index}")
            number = rng.randint(1, 9)
            picture = pictures.counting(rng, number)
            yield row(
                "counting",
                split,
                index,
                picture,
                "How many objects are there?",
                str(number),
                choices=NUMBERS,
                source="drawn",
                synthetic=True,
            )


def words(sizes: dict[str, int]) -> Iterator[Row]:
    """One printed word out of thirty."""
    for split, count in sizes.items():
        for index in range(count):
            rng = random.Random(f"words {split} {index}")
            text = rng.choice(WORDS)
            yield row(
                "words",
                split,
                index,
                pictures.word(rng, text),
                "What word is printed?",
                text,
                choices=tuple(WORDS),
                source="drawn",
                synthetic=True,
            )


def digits(sizes: dict[str, int]) -> Iterator[Row]:
    """scikit-learn's real handwritten digits, 8 x 8 grey, dark on light; split by position, as the writers of the last ones differ."""
    from sklearn.datasets import load_digits

    data = load_digits()
    start = 0
    for split, count in sizes.items():
        for index in range(start, start + count):
            picture = Image.fromarray((255 - data.images[index] / 16 * 255).astype(np.uint8))
            choices = tuple(str(n) for n in range(10))
            yield row(
                "digits",
                split,
                index,
                picture,
                "What digit is written here?",
                str(data.target[index]),
                choices=choices,
                source="scikit-learn digits",
            )
        start += count


def flags(sizes: dict[str, int], drawings: Path, twitter: Path) -> Iterator[Row]:
    """Flags of 24 countries; each split has another artist's artwork, laid on paper in many ways."""
    for split, count in sizes.items():
        for index in range(count):
            code = tuple(COUNTRIES)[index % len(COUNTRIES)]
            rng = random.Random(f"flags {split} {index}")
            letters = [0x1F1E6 + ord(letter) - ord("a") for letter in code]
            if split == "train":
                cutout = Image.open(drawings / "png250px" / f"{code}.png")
            elif split == "validation":
                cutout = Image.open(twitter / f"{letters[0]:x}-{letters[1]:x}.png")
            else:
                cutout = pictures.emoji("".join(map(chr, letters)))
            source = {"train": "svg-country-flags", "validation": "Twemoji", "test": "Noto emoji"}[split]
            yield row(
                "flags",
                split,
                index,
                pictures.on_paper(rng, cutout),
                "Which country has this flag?",
                COUNTRIES[code],
                choices=tuple(COUNTRIES.values()),
                cluster=f"flags/{split}/{code}",
                source=source,
            )


def questions() -> Iterator[Row]:
    """Everyday questions without a picture; the first twenty are for validation."""
    for index, line in enumerate(QUESTIONS.splitlines()):
        question, *choices = line.split("|")
        shuffled = random.Random(f"questions {index}").sample(choices, len(choices))
        yield row(
            "questions",
            "validation" if index < 20 else "test",
            index,
            None,
            question,
            choices[0],
            choices=tuple(shuffled),
            source="selectune",
        )


def prose() -> Iterator[Row]:
    """Plain sentences for perplexity: the whole text is the answer."""
    for index, line in enumerate(PROSE.splitlines()):
        yield row("prose", "test", index, None, "", line, source="selectune")


def _artwork(text: str, twitter: Path | None) -> Iterator[Image.Image]:
    """The font's picture, then Twitter's where there is one."""
    drawn = pictures.emoji(text)
    if drawn is not None:
        yield drawn
    if twitter is not None:
        for name in (f"{ord(text):04x}.png", f"{ord(text):04x}-fe0f.png"):
            if (twitter / name).is_file():
                yield Image.open(twitter / name).convert("RGBA")


def _caption(split: str, key: str, picture: Image.Image, name: str, cluster: str, source: str) -> Row:
    """A caption row: the name with its article."""
    article = "An" if name[0].lower() in "aeiou" else "A"
    return row("captions", split, key, picture, "Describe the picture.", f"{article} {name}.", cluster=cluster, source=source)
