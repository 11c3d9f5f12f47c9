"""Results, their report and their terminal tables."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from reporting_fixtures import LANGUAGE, make_pair, make_result, picture
from reporting_pages import Page, read_page, requests
from selectune import gates, statistics
from selectune.errors import DataError, InputError, StorageError
from selectune.evaluation.matrix import Matrix
from selectune.reporting import load_result, outcome, save_result, summary, terminal, thumbnail_url, wording, write_report
from selectune.reporting import page as pages
from selectune.reporting.charts import ticks, value_axis
from selectune.reporting.document import Estimate, write_whole
from selectune.reporting.figures import change_from_base, number_panels, trade_off, training
from selectune.reporting.judged import Verdict
from selectune.reporting.measured import CaptionedPicture, MatrixTable
from selectune.reporting.page import readable_json, render
from selectune.reporting.result import RunResult

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><b>",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}",
    "a\x1b[31m\x00b",
    "abc\u202egnp.exe",
    "]]><!--",
)


def hostile(text: str) -> RunResult:
    """A result in which every text that data can name is `text`."""
    result = make_result(LANGUAGE, recovery=True)
    document = json.loads(result.model_dump_json())
    document["name"] = document["model"]["name"] = document["model"]["about"] = text
    document["notes"] = [text]
    document["environment"] = {text: text}
    document["selection"]["patterns"] = [text]
    document["selection"]["families"][0]["component"] = text
    document["recipe"] = {text: text}
    document["skills"][0] = document["matrix"]["rows"][1] = document["matrix"]["columns"][0] = document["tasks"][0]["name"] = text
    document["tasks"][0]["about"] = document["tasks"][0]["scorer"] = text
    for group in ("changes", "tallies", "differences"):
        for one in document[group]:
            one["task"] = text if one["task"] == "digits" else one["task"]
    for field in ("id", "question", "reference", "before", "after", "against", "stage"):
        document["changes"][0][field] = text
    document["captions"][0]["id"] = document["captions"][0]["reference"] = text
    document["captions"][0]["captions"][0]["text"] = document["captions"][0]["captions"][0]["stage"] = text
    document["probes"]["numbers"][0]["stage"] = text
    document["verdicts"][0]["skill"] = text
    for field in ("name", "task", "against", "evidence"):
        document["verdicts"][0]["rules"][0][field] = text
    for field in ("id", "skill", "created", "base", "child"):
        document["updates"][0][field] = text
    document["updates"][0]["names"] = document["updates"][0]["notes"] = [text]
    sides = {side: {"id": text, "text": text, "picture": picture(3)} for side in ("train", "test")}
    document["leaks"] = [{"learned": text, "task": text, "how": text, "likeness": 0.97, "detail": text, "more": 2, **sides}]
    document["phases"][0]["source"] = document["phases"][0]["proof"] = document["phases"][0]["name"] = text
    document["phases"][0]["skipped"] = {text: 3}
    document["recovery"]["tasks"][0]["task"] = document["recovery"]["patterns"][0] = text
    document["seconds"] = {text: 1.0}
    document["metrics"][text] = document["metrics"]["worst_task"]
    document["metrics"]["worst_stage"]["label"] = text
    return RunResult.model_validate(document)


def markup(page: Page) -> tuple[set[str], set[tuple[str, str]]]:
    return page.tags, {(tag, name) for tag, name, _ in page.attributes}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_anywhere_stays_text(text: str) -> None:
    page = read_page(render([hostile(text)]))
    tags, attributes = markup(read_page(render([hostile("harmless")])))
    assert page.tags <= tags
    assert {(tag, name) for tag, name, _ in page.attributes} <= attributes
    assert requests(page) == []
    assert page.unclosed == []
    assert " ".join(wording.plain(text).split()) in " ".join(page.text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_or_reordering_character_reaches_the_page_or_the_terminal(text: str) -> None:
    result = hostile(text)
    screen = Console(file=io.StringIO(), width=160, color_system=None)
    screen.print(terminal.result_view(result))
    screen.print(terminal.outcome_lines([result]))
    for output in (render([result]), screen.file.getvalue()):  # type: ignore[attr-defined]
        assert not {"\x1b", "\x00", "\u202e"} & set(output)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_readable_json_parses_back_and_shows_every_hidden_character(text: str) -> None:
    written = readable_json({"a": text})
    assert json.loads(written) == {"a": text}
    assert wording.plain(written) == written


@pytest.mark.parametrize(
    "url",
    ["https://x/y.png", "javascript:alert(1)", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,A"B'],
)
def test_only_base64_pictures_can_be_pictures(url: str) -> None:
    with pytest.raises(ValidationError, match="data URL"):
        CaptionedPicture(id="a", picture=url, captions=())


def test_a_result_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    result = make_result(LANGUAGE, recovery=True)
    assert load_result(save_result(result, tmp_path / "deep" / "result.json")) == result


def test_a_damaged_result_is_named_with_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"run": 3, "colour": "red"}')
    with pytest.raises(DataError, match=r"result\.json: is not a result of this version: .*run: .*Give the result\.json") as caught:
        load_result(path)
    assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="cannot be read"):
        load_result(tmp_path / "absent.json")


def test_the_summary_has_the_keys_that_run_prints() -> None:
    document = make_result().summary()
    assert list(document) == ["run", "skills", "matrix", "metrics", "probes", "updates", "verdicts", "report"]
    assert {"rows", "columns", "scores", "n", "low", "high"} <= document["matrix"].keys()
    assert all({"value", "low", "high", "n"} <= metric.keys() for metric in document["metrics"].values())
    assert all({"stage", "mean", "low", "high"} <= read.keys() for read in document["probes"]["numbers"])
    assert all({"skill", "verdict", "rules"} == verdict.keys() for verdict in document["verdicts"])
    assert document["updates"] == [update.id for update in make_result().updates]


def test_several_recipes_are_a_list_in_the_summary() -> None:
    assert [one["recipe"] for one in summary(make_pair())["recipes"]] == ["attention", "language"]
    assert summary([make_result()]) == make_result().summary()


def test_a_number_that_is_none_becomes_null() -> None:
    estimate = Estimate.model_validate(SimpleNamespace(value=float("nan"), low=float("-inf"), high=0.5, n=3, method="t", label=None))
    assert (estimate.value, estimate.low, estimate.high) == (None, None, 0.5)


def test_what_other_modules_measure_is_taken_as_it_is() -> None:
    found = statistics.proportion(8, 10)
    assert Estimate.model_validate(found).model_dump() == dataclasses.asdict(found)
    grid = Matrix(rows=("base",), columns=("a",), scores=((0.5,),), low=((None,),), high=((None,),), n=((4,),))
    assert MatrixTable.model_validate(grid).model_dump() == dataclasses.asdict(grid)
    numbers = {"value": -0.1, "low": float("-inf"), "high": 0.1, "bound": -0.05, "n": 9, "lost": 2, "gained": 1, "needed": 70}
    rule = gates.Rule(name="held_out_kept", task="a", against="base", verdict="undecided", evidence="too few", method="t", **numbers)
    verdict = Verdict.model_validate(gates.Verdict(skill="b", verdict="undecided", rules=(rule,)))
    assert verdict.rules[0].model_dump() == dataclasses.asdict(rule) | {"low": None}


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ValidationError, match="low must have 1 rows of 2"):
        MatrixTable(rows=("base",), columns=("a", "b"), scores=((0.1, 0.2),), n=((1, 1),), low=((0.1,),), high=((0.1, 0.2),))


def test_a_report_is_written_whole_and_weighs_little(tmp_path: Path) -> None:
    path = write_report(make_pair(), tmp_path / "out" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert path.stat().st_size < 1_000_000
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_same_results_make_the_same_report() -> None:
    assert render(make_pair()) == render(make_pair())


def test_a_report_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a report needs a result"):
        write_report([], tmp_path / "report.html")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written .*Free space, or choose another folder"):
        write_report([make_result()], tmp_path / "file" / "report.html")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_whole(tmp_path / "a.html", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selectune.delta.files.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_pictures_beyond_the_budget_are_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PICTURE_BYTES", 20_000)
    html = render(make_pair())
    assert "pictures were left out to keep this file small" in html
    assert len(html) < len(render(make_pair())) + 1_000_000
    assert "no picture" in html


def test_synthetic_tasks_are_called_so_wherever_they_are_shown() -> None:
    page = read_page(render([make_result()]))
    assert page.text.count("synthetic") >= 3 * 6
    plain = make_result().model_copy(update={"tasks": tuple(t.model_copy(update={"synthetic": False}) for t in make_result().tasks)})
    assert read_page(render([plain])).text.count("synthetic") < 6


def test_the_headline_says_only_what_the_intervals_bear_out() -> None:
    def short(learned: Estimate | None, kept: Estimate | None) -> str:
        metrics = {name: one for name, one in (("target_learning", learned), ("held_out_forgetting", kept)) if one}
        return outcome.headline([make_result().model_copy(update={"metrics": metrics})])[0].short

    sure = Estimate(value=0.43, low=0.34, high=0.52, n=120)
    assert short(sure, Estimate(value=-0.021, low=-0.04, high=-0.002, n=400)) == "learned 43.0 points and lost 2.1"
    assert short(sure, Estimate(value=-0.021, low=-0.05, high=0.01, n=400)) == "learned 43.0 points and shows no sure loss"
    assert short(sure, Estimate(value=0.03, low=0.01, high=0.05, n=400)) == "learned 43.0 points and gained 3.0 on what it knew"
    unsure = Estimate(value=0.02, low=-0.04, high=0.08, n=100)
    assert short(unsure, Estimate(value=-0.3, low=-0.4, high=-0.2, n=400)) == "shows no sure learning and lost 30.0 points"
    assert short(None, None) == "has no measure of learning and has no held-out measure"
    assert short(Estimate(value=0.4, low=None, high=None, n=1), None).startswith("shows no sure learning")


def test_the_held_out_mean_leaves_perplexity_out_and_weighs_tasks_alike() -> None:
    mean = outcome.held_out_mean(make_result(), "base")
    assert mean.value == pytest.approx((0.85 + 0.867 + 0.72 + 0.94) / 4)
    assert mean.n == 120 + 120 + 107 + 100
    assert mean.low is not None
    assert 0 < mean.value - mean.low < 0.06


def test_a_verdict_says_why() -> None:
    failed, passed = make_result(LANGUAGE).verdicts[0], make_result().verdicts[0]
    assert outcome.reasons(failed) == "4 of 5 rules failed: counting, shapes, clothes, kinds"
    only = Verdict(skill="digits", verdict="passed", rules=passed.rules[:1])
    assert outcome.reasons(only) == "all 1 rules passed"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.share(0.725), "72.5\u202f%"),
        (wording.share(None), "–"),
        (wording.points(-0.0213), "−2.1"),
        (wording.points(-0.0001), "0.0"),
        (wording.points(0.43), "+43.0"),
        (wording.perplexity(-2.7147), "15.1"),
        (wording.perplexity_range(-3.0, -2.0), "7.4–20.1"),
        (wording.probability(0.16961), "0.1696"),
        (wording.count(26_542_080), "26\u202f542\u202f080"),
        (wording.short(26_542_080), "26.5\u202fM"),
        (wording.size(5_312_000), "5.3\u202fMB"),
        (wording.duration(133), "2\u202fmin 13\u202fs"),
        (wording.duration(3_725), "1\u202fh 02\u202fmin"),
        (wording.rate(5e-5), "5e-5"),
        (wording.rate(0.00025), "2.5e-4"),
        (wording.plain("a\u202eb\nc"), "a⟦U+202E⟧b\nc"),
    ],
)
def test_numbers_are_written_by_their_rules(written: str, expected: str) -> None:
    assert written == expected


@given(st.floats(-1e3, 1e3), st.floats(1e-4, 1e6))
@settings(max_examples=200, deadline=None)
def test_ticks_cover_their_range_with_a_few_even_steps(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + 1e-9 * abs(low) + 1e-6 * width
    assert found[-1] >= low + width - 1e-9 * abs(low) - 1e-6 * width
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) - min(steps) <= 1e-6 * max(steps)


def test_axis_labels_are_distinct() -> None:
    for top in (3e-14, 0.0042, 0.31, 1.0, 7.0, 1234.0):
        labels = [label for _, label in value_axis("x", [0.0, top]).ticks]
        assert len(set(labels)) == len(labels)


def test_figures_hold_each_recipe_and_stay_inside_their_frame() -> None:
    pair = make_pair()
    panels = [
        trade_off(pair),
        change_from_base(pair),
        *(number_panels(pair) or ()),
        *(one for figure in training(pair) for one in figure.panels),
    ]
    assert len(panels) == 4 + 4 + 4 + 3
    for panel in panels:
        assert panel is not None
        assert {"attention", "language"} >= {track.name for track in panel.tracks}
        for track in panel.tracks:
            for mark in track.marks:
                assert panel.left - 0.1 <= mark.x <= panel.right + 0.1
                assert panel.top - 0.1 <= mark.y <= panel.bottom + 0.1
                assert all(panel.top - 0.1 <= y <= panel.bottom + 0.1 for bar in mark.bars for y in (bar[1], bar[3]))


def test_the_trade_off_puts_learning_up_and_forgetting_left() -> None:
    panel = trade_off(make_pair())
    assert panel is not None
    attention, language = (track.marks[0] for track in panel.tracks)
    assert language.x < attention.x
    assert language.y < attention.y


def test_a_bare_result_still_makes_a_report() -> None:
    bare = make_result().model_copy(
        update={
            "probes": make_result().probes.model_copy(update={"numbers": (), "correlation": None}),
            "metrics": {}, "updates": (), "verdicts": (), "phases": (), "captions": (), "differences": (), "tallies": (), "changes": (),
            "seconds": {}, "environment": {}, "notes": (),
        }
    )  # fmt: skip
    page = read_page(render([bare]))
    assert page.unclosed == []
    assert "no gate was run" in page.text


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    result = make_result()
    steps = tuple(result.phases[0].steps[0].model_copy(update={"n": n}) for n in range(1, 5001))
    phase = result.phases[0].model_copy(update={"steps": steps, "quick": ()})
    path = training([result.model_copy(update={"phases": (phase,)})])[0].panels[0].tracks[0].path.split()
    assert len(path) <= 401
    assert float(path[-1].split(",")[0]) == max(float(point.split(",")[0]) for point in path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA"])
def test_a_thumbnail_is_small_and_transparency_is_white(mode: str) -> None:
    url = thumbnail_url(Image.new(mode, (400, 200)), side=100)
    small = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
    assert small.size == (100, 50)
    assert small.convert("RGB").getpixel((5, 5)) == ((255, 255, 255) if mode in ("RGBA", "LA") else (0, 0, 0))


def test_a_thumbnail_is_never_enlarged() -> None:
    url = thumbnail_url(Image.new("RGB", (8, 8)))
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).size == (8, 8)
    assert picture(3) == picture(3)


def test_the_terminal_shows_scores_intervals_counts_and_words_for_verdicts() -> None:
    screen = Console(file=io.StringIO(), width=160, color_system=None)
    screen.print(terminal.result_view(make_result(LANGUAGE)))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    for expected in ("71.7\u202f%", "63.1–79.0", "n = 120", "held-out, synthetic", "−76.8", "✕ failed", "✓ passed", "? undecided", "15.1"):
        assert expected in text


def test_the_style_sheet_and_script_are_those_that_the_policy_names() -> None:
    page = read_page(render([make_result()]))
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_reporting_does_not_import_torch() -> None:
    code = "import sys, selectune.reporting, selectune.reporting.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_labels_of_marks_that_lie_close_do_not_cover_each_other() -> None:
    import itertools

    from selectune.reporting import charts

    axis = charts.Axis(title="points", low=0, high=100, ticks=((0, "0"), (100, "100")))
    series = [
        charts.Series(name=name, style=0, points=(charts.Point(x=90, y=y, label=name),), line=False)
        for name, y in (("a", 50), ("b", 50.5), ("c", 51))
    ]
    marks = [mark for track in charts.panel("t", series, axis, axis).tracks for mark in track.marks]
    heights = sorted(mark.label_y for mark in marks)
    assert all(lower - upper >= 15 for upper, lower in itertools.pairwise(heights))
    assert {mark.y for mark in marks} != set(heights)
