"""Two measurements side by side: what is paired, corrected, refused and warned of, and the page of what was lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline_fixtures import question
from selectune.errors import DataError, SameModel
from selectune.evaluation import Measurement, Suite, Task
from selectune.evaluation.measurement import Sample
from selectune.pipeline import compare
from selectune.pipeline.comparing import page, warnings
from selectune.recipe import Data
from selectune.records import read_rows
from selectune.reporting.comparison import render_comparison, write_comparison
from selectune.statistics import benjamini_hochberg, holm, mcnemar


def measured(stage: str, tasks: dict[str, Sequence[float]], *, model: str = "", said: str = "") -> Measurement:
    """A measurement with these scores; what was said tells the score, or is always the same."""
    samples = tuple(
        Sample(
            task=task, id=f"r{i}", cluster=f"{i}", prompt_digest="asked", output=said or f"answer {score}", reference="right", score=score
        )
        for task, scores in tasks.items()
        for i, score in enumerate(scores)
    )
    return Measurement(
        stage=stage, model_id=model or stage, suite="s", samples=samples, seconds=0.0, kinds=dict.fromkeys(tasks, "generate")
    )


BEFORE = measured("base", {"fish": [1.0] * 60 + [0.0] * 40, "cats": [1.0] * 50 + [0.0] * 50, "dogs": [1.0] * 100})
AFTER = measured("cats", {"fish": [0.0] * 9 + [1.0] * 54 + [0.0] * 37, "cats": [0.0] * 8 + [1.0] * 43 + [0.0] * 49, "dogs": [1.0] * 100})


def test_a_task_has_its_difference_its_interval_and_the_items_lost_and_gained() -> None:
    fish = compare(BEFORE, AFTER)[0]
    assert (fish.task, fish.before, fish.after, fish.n) == ("fish", 0.6, 0.54, 100)
    assert fish.lost == tuple(f"r{i}" for i in range(9))
    assert fish.gained == ("r60", "r61", "r62")
    assert fish.low is not None
    assert fish.high is not None
    assert fish.value == pytest.approx(-0.06)
    assert fish.low < fish.value < fish.high


@pytest.mark.parametrize("correction", ["holm", "benjamini-hochberg"])
def test_p_values_are_corrected_for_all_tasks(correction: str) -> None:
    rows = compare(BEFORE, AFTER, correction=correction)  # type: ignore[arg-type]
    single = [mcnemar(9, 3), mcnemar(8, 1), 1.0]
    assert [row.p_value for row in rows] == pytest.approx(single)
    assert [row.adjusted for row in rows] == pytest.approx((holm if correction == "holm" else benjamini_hochberg)(single))
    assert {row.correction for row in rows} == {correction}


def test_a_loss_that_one_task_alone_would_show_may_be_none_among_several() -> None:
    several = {row.task: row for row in compare(BEFORE, AFTER)}["cats"]
    only = [
        replace(one, samples=tuple(sample for sample in one.samples if sample.task == "cats"), kinds={"cats": "generate"})
        for one in (BEFORE, AFTER)
    ]
    alone = compare(*only)[0]
    assert alone.p_value == several.p_value < 0.05
    assert alone.worse
    assert not several.worse


def test_files_in_another_order_are_paired_by_id() -> None:
    turned = replace(AFTER, samples=AFTER.samples[::-1])
    assert [row.value for row in compare(BEFORE, turned)] == [row.value for row in compare(BEFORE, AFTER)]
    assert set(compare(BEFORE, turned)[0].lost) == set(compare(BEFORE, AFTER)[0].lost)


def test_an_id_that_one_side_lacks_is_refused_by_name() -> None:
    with pytest.raises(DataError, match='task fish: stages "base" and "cats": 1 sample ids are in one only, such as \'r0\''):
        compare(BEFORE, replace(AFTER, samples=AFTER.samples[1:]))


def test_a_score_that_is_no_number_is_refused_with_its_sample() -> None:
    with pytest.raises(DataError, match=r'task fish: sample "r3": its score is nan'):
        measured("base", {"fish": [1.0, 0.0, 1.0, float("nan")]})


def test_two_measurements_of_one_model_are_refused() -> None:
    with pytest.raises(SameModel, match=r'"base" and "again" are of the same weights \(base\): there is no update to compare'):
        compare(BEFORE, replace(BEFORE, stage="again"))


def test_equal_outputs_are_warned_of() -> None:
    scores: dict[str, Sequence[float]] = {"fish": [1.0, 0.0]}
    rows = compare(measured("base", scores, said="yes"), measured("cats", scores, said="yes"))
    assert warnings(rows) == ["fish: every output is the same in both, letter by letter; was the update applied?"]
    assert warnings(compare(BEFORE, AFTER)) == ["dogs: every output is the same in both, letter by letter; was the update applied?"]


def test_a_loss_within_the_noise_floor_is_said() -> None:
    flipped = replace(BEFORE, samples=tuple(replace(one, score=1 - one.score) if one.id in {"r1", "r2"} else one for one in BEFORE.samples))
    rows = {row.task: row for row in compare(BEFORE, AFTER, again=replace(flipped, stage="again"))}
    assert (rows["fish"].noise, rows["fish"].within_noise) == (0.02, False)
    assert rows["dogs"].within_noise is None
    many = replace(
        BEFORE, samples=tuple(replace(one, score=0.0) if one.id in {f"r{i}" for i in range(20)} else one for one in BEFORE.samples)
    )
    assert compare(BEFORE, AFTER, again=many)[0].within_noise


# The page


class Page(HTMLParser):
    """What a page asks for, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def suite(count: int = 100) -> Suite:
    rows = [question(number, "right", picture=True) | {"id": f"r{number}"} for number in range(count)]
    return Suite(tasks=tuple(Task(name=name, records=read_rows(rows, Data(source="rows"))) for name in ("fish", "cats", "dogs")))


def test_the_page_shows_each_lost_and_gained_sample_with_its_picture_question_and_answers(tmp_path: Path) -> None:
    drawn = page(BEFORE, AFTER, compare(BEFORE, AFTER), suite())
    assert [(one.task, one.way) for one in drawn.changes[:12]].count(("fish", "lost")) == 9
    text = write_comparison(drawn, tmp_path / "page.html").read_text()
    found = Page(text)
    assert found.tags.count("img") == 9 + 3 + 8 + 1
    assert all(one.startswith(("data:image/", "#task-")) for one in found.asked)
    assert not re.search(r"(?:https?:)?//", "".join(one for one in found.asked if not one.startswith("data:")))
    words = " ".join(found.words)
    for expected in ("What is in the picture 0?", "answer 1.0", "answer 0.0", "right", "9 of 100", "3 of 100"):
        assert expected in words
    assert "adjusted by Holm" in words
    assert "No task is surely worse." in words


def test_the_page_escapes_what_models_and_people_wrote() -> None:
    evil = "<script>alert(1)</script>\u202e"
    before = replace(BEFORE, stage=evil, samples=tuple(replace(one, output=evil) for one in BEFORE.samples))
    text = render_comparison(page(before, AFTER, compare(before, AFTER), suite()))
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<script>") == 1
    assert "script-src &#39;sha256-" in text


def test_without_a_recipe_the_page_has_answers_and_no_pictures() -> None:
    text = render_comparison(page(BEFORE, AFTER, compare(BEFORE, AFTER)))
    assert "<img" not in text
    assert "answer 1.0" in text


def test_a_page_with_another_recipes_records_is_refused() -> None:
    with pytest.raises(DataError, match='task fish: the recipe has no record "r60"'):
        page(BEFORE, AFTER, compare(BEFORE, AFTER), suite(20))


def test_what_is_surely_worse_is_in_the_heading() -> None:
    bad = measured("cats", {"fish": [0.0] * 100, "cats": [1.0] * 50 + [0.0] * 50, "dogs": [1.0] * 100})
    assert "cats is surely worse at fish." in render_comparison(page(BEFORE, bad, compare(BEFORE, bad)))
