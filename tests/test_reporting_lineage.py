"""What people signed stands wherever a version appears; and test records that were trained on can be looked at."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from governance_fixtures import Governed, governed, make_deltas, make_keys
from reporting_fixtures import make_result
from reporting_pages import read_page, requests
from selectune.cli import app
from selectune.evaluation import Measurement, Sample
from selectune.pipeline import compare
from selectune.pipeline.comparing import page as compared
from selectune.pipeline.leaking import LETTERS, MOST, SHOWN, find_leaks
from selectune.pipeline.lineage import SINGLE_PERSON, as_it_stands, results_of, said_of, said_of_models
from selectune.records import Message, Record
from selectune.reporting import RunResult, save_result, terminal
from selectune.reporting.comparison import render_comparison
from selectune.reporting.page import render
from selectune.reporting.trained import UpdateInfo
from test_leakage import drawn, picture, record, records


def told(update: UpdateInfo) -> list[str]:
    """Who said what, without times and keys."""
    return [note.split(" at ")[0] for note in update.notes]


@pytest.fixture
def ours(tmp_path: Path) -> Governed:
    (tmp_path / "keys").mkdir()
    return governed(tmp_path / "registry", make_keys(tmp_path / "keys"), make_deltas(tmp_path))


def result_of(ours: Governed) -> RunResult:
    """A made-up run that recorded the first two updates of the registry."""
    made = make_result()
    found = [ours.registry.show(one) for one in ours.ids[:2]]
    updates = [UpdateInfo(id=one.id, parent=one.parent, base=one.base, child=one.child, skill=one.skill, verdict="passed") for one in found]
    return made.model_copy(update={"updates": tuple(updates)})


def test_the_lineage_says_who_signed_and_what_was_revoked_and_why(ours: Governed) -> None:
    result = result_of(ours)
    assert [one.notes for one in as_it_stands([result], ours.registry)[0].updates] == [(), ()]
    ours.submit(0)
    ours.approve(0)
    ours.promote(0)
    ours.registry.revoke(ours.ids[1], "reads <b>serial</b> numbers", "ben", ours.keys["ben"])
    standing = as_it_stands([result], ours.registry)[0]
    assert told(standing.updates[0]) == [
        "submitted for production by Ann Author (author)",
        "approved for production by Ben Boss (approver)",
    ]
    assert (standing.updates[0].names, standing.updates[0].revoked) == (("production",), False)
    assert standing.updates[1].revoked
    page = read_page(render([standing]))
    assert requests(page) == []
    for words in ("approved for production by Ben Boss (approver) at ", "✕ revoked", "reads <b>serial</b> numbers", "production"):
        assert words in page.text
    console = Console(width=200, file=io.StringIO())
    console.print(terminal.result_view(standing))
    assert "approved for production by Ben Boss" in console.file.getvalue()  # type: ignore[attr-defined]
    assert RunResult.model_validate_json(standing.model_dump_json()) == standing


def test_that_one_person_may_do_both_is_a_limit_of_every_page(ours: Governed) -> None:
    ours.change(single_person=True)
    ours.submit(0, "cy")
    ours.approve(0, "cy")
    result = as_it_stands([result_of(ours)], ours.registry)[0]
    assert result.notes.count(SINGLE_PERSON) == 1
    assert as_it_stands([result], ours.registry)[0] == result, "said once, however often the report is written"
    assert "single person: the policy lets an author approve an update of theirs" in result.updates[0].notes
    assert SINGLE_PERSON in read_page(render([result])).text
    update = ours.registry.show(ours.ids[0])
    before, after = (measured(stage, model) for stage, model in (("base", update.base), ("after", update.child)))
    notes = said_of_models({"base": before.model_id, "after": after.model_id}, ours.registry.where)
    assert notes[0].startswith(f"after (update {update.id[:12]}): submitted for production by Cy Second (author) at ")
    assert notes[-1] == SINGLE_PERSON
    assert SINGLE_PERSON in render_comparison(compared(before, after, compare(before, after), notes=notes))
    assert said_of(ours.registry.standing(), {"A": ours.ids[0]})[-1] == SINGLE_PERSON


def measured(stage: str, model: str) -> Measurement:
    samples = [
        Sample(
            task="q",
            id=f"s{n}",
            cluster=f"s{n}",
            prompt_digest="0" * 64,
            output=f"{stage} {n}",
            reference="",
            score=float(stage == "base" or n > 3),
            extra={},
        )
        for n in range(20)
    ]
    return Measurement(stage=stage, model_id=model, suite="s", samples=tuple(samples), seconds=0.0, kinds={"q": "generate"})


def test_models_that_no_update_makes_and_a_registry_that_is_not_there_have_nothing_said_of_them(ours: Governed, tmp_path: Path) -> None:
    assert said_of_models({"base": "0" * 64}, ours.registry.where) == []
    assert said_of_models({"base": "0" * 64}, str(tmp_path / "nowhere")) == []


def test_an_update_that_another_registry_holds_is_said_to_be_away(ours: Governed) -> None:
    away = make_result()
    notes = as_it_stands([away], ours.registry)[0].updates[0].notes
    assert notes == ("it is not in the registry any more",)


def test_a_report_that_is_written_again_has_what_was_signed_since_and_says_where_it_cannot_look(ours: Governed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_result(result_of(ours), run / "result.json")
    document = {"run": "run", "created": "", "registry": ours.registry.where, "recipes": ["."]}
    (run / "run.json").write_text(json.dumps(document))
    ours.submit(0)
    shown = CliRunner().invoke(app, ["report", str(run)])
    assert shown.exit_code == 0, shown.output
    assert "submitted for production by Ann Author" in (run / "report.html").read_text()
    (run / "run.json").write_text(json.dumps(document | {"registry": str(tmp_path / "gone")}))
    notes = results_of(run)[0].notes
    assert notes[-1].startswith("signatures and revocations are those of when the run ended: the registry cannot be read (")


def leaky(count: int = 3) -> tuple[object, object]:
    text = "The quick brown fox of the forest jumps over the lazy dog near the river bank every morning before the sun rises"
    train = [record(f"t{seed}", "What?", picture(drawn(seed))) for seed in range(count)]
    test = [record(f"s{seed}", "<u>Where?</u>", picture(drawn(seed), "JPEG", quality=60)) for seed in range(count)]
    plain = [Record(id=name, messages=(Message(role="user", parts=(words,)),)) for name, words in (("w1", text), ("w2", f"{text}!"))]
    return records(*train, plain[0]), records(*test, plain[1])


def test_pairs_that_leak_are_drawn_side_by_side_with_how_alike_they_are() -> None:
    train, test = leaky()
    found = find_leaks({"cats": train}, {"fish": test})  # type: ignore[dict-item]
    assert found.notes[0].startswith(
        "4 of 4 test records of fish are in the training of cats too, such as s0 (a picture that looks the same"
    )
    first, last = found.pairs[0], found.pairs[-1]
    assert (first.learned, first.task, first.train.id, first.test.id) == ("cats", "fish", "t0", "s0")
    assert first.likeness is not None
    assert 1 - 48 / 256 <= first.likeness <= 1
    assert "of 256 bits differ, colours 0.0" in first.detail
    assert (last.how, last.likeness, last.train.picture) == ("nearly the same words", 1.0, None)
    assert last.test.text.endswith("rises!")
    page = read_page(render([make_result().model_copy(update={"leaks": found.pairs})]))
    assert requests(page) == []
    urls = {value for tag, name, value in page.attributes if (tag, name) == ("img", "src")}
    assert {side.picture for pair in found.pairs[:3] for side in (pair.train, pair.test)} <= urls
    assert "<u>Where?</u>" in page.text, "as text"
    assert "u" not in page.tags
    assert "In the training and in the test" in page.text
    assert "In the training and in the test" not in read_page(render([make_result()])).text


def test_of_the_pictures_of_two_records_the_nearest_two_are_drawn() -> None:
    train = records(record("t", "What?", picture(drawn(1)), picture(drawn(2))))
    test = records(record("s", "Which?", picture(drawn(7)), picture(drawn(8)), picture(drawn(2), "JPEG", quality=70)))
    (pair,) = find_leaks({"a": train}, {"b": test}).pairs
    small = [Image.open(io.BytesIO(_data(side.picture))) for side in (pair.train, pair.test)]
    assert small[0].size == small[1].size
    assert pair.likeness is not None
    assert pair.likeness > 0.9


def _data(url: str | None) -> bytes:
    import base64

    assert url is not None
    return base64.b64decode(url.split(",", 1)[1])


def test_no_more_pairs_are_drawn_than_a_page_can_hold() -> None:
    train, test = leaky(12)
    long = Record(id="long", messages=(Message(role="user", parts=("word " * 400,)),))
    sides = [records(*side, replace(long, id=f"long{n}")) for n, side in enumerate((train, test))]  # type: ignore[misc]
    found = find_leaks({f"t{n}": sides[0] for n in range(4)}, {f"s{n}": sides[1] for n in range(4)})
    assert len(found.notes) == 16
    assert len(found.pairs) == MOST
    counts = [sum((pair.learned, pair.task) == (f"t{a}", f"s{b}") for pair in found.pairs) for a in range(4) for b in range(4)]
    assert max(counts) == SHOWN
    texts = find_leaks({"t": records(*sides[0][-1:])}, {"s": records(*sides[1][-1:])}).pairs
    assert [len(pair.test.text) for pair in texts] == [LETTERS + 1]
    assert texts[0].how == "the same words"
