"""Near duplicates between training and test: pictures by their looks, texts by their words."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from selectune.embedded import skill
from selectune.errors import DataError
from selectune.pipeline.preparing import read_examples
from selectune.recipe import Data, parse_recipe
from selectune.records import Message, Picture, Record, Records, leakage, likeness, read_records, shingles


def drawn(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of a few shapes."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(one) for one in rng.integers(0, 255, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(8):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        pen.ellipse((x - 25, y - 15, x + 25, y + 15), fill=tuple(int(one) for one in rng.integers(0, 255, 3)))
    return image


def picture(image: Image.Image, kind: str = "PNG", **options: object) -> Picture:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return Picture(data=file.getvalue())


def record(name: str, text: str, *pictures: Picture) -> Record:
    return Record(id=name, messages=(Message(role="user", parts=(*pictures, text)), Message(role="assistant", parts=("yes",))))


def records(*items: Record) -> Records:
    return Records(items=items, name="made")


def test_a_picture_saved_with_loss_or_in_another_size_is_found_once_and_a_different_one_is_not() -> None:
    train = records(*(record(f"t{seed}", "What?", picture(drawn(seed))) for seed in range(6)))
    half = drawn(2).resize((80, 60), Image.Resampling.BILINEAR)
    test = records(
        record("lossy", "What?", picture(drawn(1), "JPEG", quality=60)),
        record("half", "Where?", picture(half)),
        record("same", "What?", picture(drawn(3))),
        record("other", "What?", picture(drawn(77))),
    )
    found = [(leak.kind, leak.train, leak.test) for leak in leakage(train, test)]
    assert found == [("bytes", ("t3",), ("same",)), ("likeness", ("t1",), ("lossy",)), ("likeness", ("t2",), ("half",))]


def test_one_shape_in_two_colours_is_two_pictures() -> None:
    red, blue = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    for image, colour in ((red, (200, 60, 60)), (blue, (60, 60, 200))):
        ImageDraw.Draw(image).rectangle((16, 16, 47, 47), fill=colour)
    one, two = likeness.seen(red), likeness.seen(blue)
    assert int(np.bitwise_count(one.bits ^ two.bits).sum()) <= likeness.MOST_BITS
    assert leakage(records(record("a", "What?", picture(red))), records(record("b", "What?", picture(blue)))) == []


@pytest.mark.slow
def test_no_two_different_pictures_of_an_embedded_skill_look_the_same_and_re_encoded_ones_do() -> None:
    for name in ("shapes", "clocks", "flags"):
        train, test = (read_records(Data(source=str(skill(name)), split=split)) for split in ("train", "test"))
        assert [leak for leak in leakage(train, test) if leak.kind == "likeness"] == []
        once = list(dict.fromkeys(one.pictures[0] for one in test))[:60]
        again = [picture(one.open(), "JPEG", quality=60) for one in once]
        pairs = list(likeness.alike([likeness.look(one) for one in again], [likeness.look(one) for one in once]))
        assert len({i for i, j in pairs if i == j}) >= 57


def test_a_picture_is_decoded_once_for_all_that_it_is_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = Picture.open
    monkeypatch.setattr(Picture, "open", lambda self: opened.append(self.digest) or real(self))
    train = records(record("a", "What?", picture(drawn(901))))
    for number in range(3):
        leakage(train, records(record("b", "What?", picture(drawn(902, (100 + number, 80))))))
    assert opened.count(train[0].pictures[0].digest) == 1


def brute(left: list[likeness.Look], right: list[likeness.Look]) -> set[tuple[int, int]]:
    def same(one: likeness.Look, two: likeness.Look) -> bool:
        bits = int(np.bitwise_count(one.bits ^ two.bits).sum())
        apart = float(np.sqrt(np.mean(((one.colours.astype(float) - two.colours.astype(float)) / 255) ** 2)))
        return bits <= likeness.MOST_BITS and apart <= likeness.MOST_COLOUR

    return {(i, j) for i, one in enumerate(left) for j, two in enumerate(right) if same(one, two)}


@given(seed=st.integers(0, 1000), block=st.sampled_from([1, 50, 1 << 20]))
@settings(max_examples=25, deadline=None)
def test_every_pair_that_a_plain_loop_finds_is_found_in_blocks(seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 255, (4, 768)).astype(float)
    bits = rng.integers(0, 2**64, (4, 4), dtype=np.uint64)

    def near(kind: int) -> likeness.Look:
        colours = np.clip(centres[kind] + rng.normal(0, rng.uniform(0, 9), 768), 0, 255).astype(np.uint8)
        return likeness.Look(bits=bits[kind] ^ np.uint64(int(rng.integers(0, 2**13))), colours=colours)

    left, right = ([near(int(rng.integers(4))) for _ in range(12)] for _ in range(2))
    before, likeness.BLOCK = likeness.BLOCK, block
    try:
        assert set(likeness.alike(left, right)) == brute(left, right)
    finally:
        likeness.BLOCK = before


def test_the_work_for_pictures_is_not_that_of_all_pairs_in_python() -> None:
    rng = np.random.default_rng(0)
    n = 5000
    shade = rng.uniform(0, 200, (n, 1))
    colours = np.clip(shade + rng.normal(0, 30, (n, 768)), 0, 255).astype(np.uint8)
    looks = [likeness.Look(bits=rng.integers(0, 2**64, 4, dtype=np.uint64), colours=colours[i]) for i in range(n)]
    started = time.perf_counter()
    assert set(likeness.alike(looks, looks)) == {(i, i) for i in range(n)}
    assert time.perf_counter() - started < 5  # 25 million pairs; a loop takes minutes


STORY = "A farmer has 12 hens and sells eggs on the market every morning before the sun is up over the hill by the river. How many?"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (STORY.upper(), "text"),
        (STORY.replace(".", " ;").replace("hill", "hills"), "wording"),
        (STORY.replace("How many?", "How many eggs?"), "wording"),
        (STORY.replace("12", "15"), None),
        ("What is the opposite of hot?", None),
    ],
)
def test_a_question_in_nearly_the_same_words_is_found_unless_its_numbers_differ(text: str, kind: str | None) -> None:
    train = records(record("t1", STORY), record("t2", "What is the opposite of up?"))
    found = [(leak.kind, leak.train, leak.test) for leak in leakage(train, records(record("s", text)))]
    assert found == ([] if kind is None else [(kind, ("t1",), ("s",))])


@given(st.text(min_size=0, max_size=80), st.text(min_size=0, max_size=80))
@settings(max_examples=100, deadline=None)
def test_the_jaccard_index_is_that_of_the_sets_of_shingles(left: str, right: str) -> None:
    def plainly(text: str) -> set[bytes]:
        data = " ".join(shingles._WORDS.findall(shingles.plain(text))).encode().ljust(shingles.LENGTH)
        return {data[at : at + shingles.LENGTH] for at in range(len(data) - shingles.LENGTH + 1)}

    one, two = plainly(left), plainly(right)
    assert shingles.jaccard(shingles.shingled(left), shingles.shingled(right)) == pytest.approx(len(one & two) / len(one | two))


def test_min_hash_brings_together_what_a_plain_loop_finds() -> None:
    rng = np.random.default_rng(1)
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(300)]
    left = [" ".join(rng.choice(words, 30)) for _ in range(60)]
    right = [" ".join([*text.split()[:-1], "other"]) if i % 2 else " ".join(rng.choice(words, 30)) for i, text in enumerate(left)]
    sides = [[shingles.shingled(text) for text in side] for side in (left, right)]
    plainly = {(i, j) for i in range(60) for j in range(60) if shingles.jaccard(sides[0][i], sides[1][j]) >= shingles.LEAST}
    assert set(shingles.alike(*sides)) == plainly
    assert len(plainly) >= 25


RECIPE = """
name: leaky
model: embedded
select: [attention]
optim: {batch: 1}
leakage: LEAKAGE
skills:
  - {name: cats, train: train.jsonl, test: test.jsonl, validation: validation.jsonl}
held_out:
  - {name: fish, test: fish.jsonl}
"""


def test_a_recipe_is_refused_for_near_duplicates_over_all_skills_and_told_of_them_before_training(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    drawn(1).save(folder / "a.png")
    drawn(1).save(folder / "b.jpg", quality=60)
    drawn(2).save(folder / "c.png")
    for name, text in (("train", "a.png"), ("test", "c.png"), ("validation", "b.jpg"), ("fish", "b.jpg")):
        (folder / f"{name}.jsonl").write_text(f'{{"id": "{name}-1", "image": "{text}", "question": "What?", "answer": "cat"}}\n', "utf-8")
    recipe = {how: parse_recipe(RECIPE.replace("LEAKAGE", how), where="r.yaml", folder=folder) for how in ("refuse", "report")}
    what = r"1 of 1 test records of fish are in the training of cats too, such as fish-1 \(a picture that looks the same as train-1\)"
    with pytest.raises(DataError, match=what):
        read_examples(recipe["refuse"])
    examples = read_examples(recipe["report"])
    notes = examples.notes
    assert [(one.learned, one.task, one.train.id, one.test.id) for one in examples.leaks] == [
        ("cats", "fish", "train-1", "fish-1"),
        ("cats (validation)", "fish", "validation-1", "fish-1"),
    ]
    assert examples.leaks[0].train.picture != examples.leaks[0].test.picture
    assert notes[-1] == "1 of 1 validation records of cats are in its training too, such as validation-1"
    assert "such as fish-1 (a picture that looks the same as train-1)" in notes[0]
