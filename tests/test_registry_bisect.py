"""Bisect: which update of a line broke a task or a sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import evaluation_fixtures as tiny
from delta_fixtures import quick_disk
from deriving_fixtures import base_folder, loaded, record, update_of
from selectune.delta import apply
from selectune.errors import DataError, NoMatch, RegistryError
from selectune.evaluation import Measurement, Sample, Suite, Task
from selectune.pipeline import Question, Silent, bisect
from selectune.pipeline.bisecting import search
from selectune.registry import Registry, Update

N = 60


def line(updates: int) -> list[Update]:
    """GOOD, and updates after it."""
    return [Update(id=f"{number:064d}", skill=f"s{number}") for number in range(updates + 1)]


def suite(n: int = N) -> Suite:
    """Questions that nobody asks: measurements are made by hand."""
    return Suite(tasks=(Task(name="colour", records=tiny.questions(n, pictures=False)),))


def taken(right: Callable[[int, int], bool], n: int = N) -> tuple[Callable[[int], Measurement], list[int]]:
    """Measurements in which sample `i` of version `place` is right or not, and the places that were asked for."""
    asked: list[int] = []
    ids = [one.id for one in suite(n).tasks[0].records]

    def measure(place: int) -> Measurement:
        asked.append(place)
        samples = tuple(
            Sample(task="colour", id=id_, cluster=id_, prompt_digest=id_, output="", reference="", score=float(right(place, number)))
            for number, id_ in enumerate(ids)
        )
        return Measurement(stage=str(place), model_id=str(place), suite="", samples=samples, seconds=0.0, kinds={"colour": "generate"})

    return measure, asked


def broken_from(first: int) -> Callable[[int, int], bool]:
    """A third of the samples are lost from a version on."""
    return lambda place, number: place < first or number % 3 > 0


@given(updates=st.integers(1, 40), data=st.data())
def test_the_update_is_found_with_the_logarithm_of_the_updates(updates: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, updates))
    measure, asked = taken(broken_from(first))
    found = search(Question(suite=suite()), line(updates), measure)
    assert found.found is not None
    assert found.found.skill == f"s{first}"
    assert len(found.looked) <= (updates - 1).bit_length()
    assert len(asked) == len(set(asked)) == len(found.looked) + 2


def test_of_sixteen_updates_four_are_measured() -> None:
    for first in range(1, 17):
        found = search(Question(suite=suite()), line(16), taken(broken_from(first))[0])
        assert (len(found.looked), found.suspects[0].skill, found.notes) == (4, f"s{first}", ())


def test_too_few_samples_are_said_and_nothing_is_guessed() -> None:
    found = search(Question(suite=suite(6)), line(16), taken(broken_from(9), n=6)[0])
    assert (found.found, len(found.suspects), found.looked) == (None, 16, ())
    assert found.notes[0].startswith("undecided: 6 samples do not show that BAD is worse than GOOD (p = 0.25)")


def test_a_version_that_stands_nowhere_ends_the_search() -> None:
    def right(place: int, number: int) -> bool:
        lost = 0 if place < 8 else 4 if place == 8 else 8
        return number >= lost

    found = search(Question(suite=suite()), line(16), taken(right)[0])
    assert (found.found, found.looked[-1].word) == (None, "undecided")
    assert [one.skill for one in found.suspects] == [f"s{number}" for number in range(1, 17)]
    assert "do not show how" in found.notes[0]


def test_a_part_of_the_loss_is_a_loss() -> None:
    def right(place: int, number: int) -> bool:
        return number >= (0 if place < 4 else 15 if place < 12 else 40)

    found = search(Question(suite=suite()), line(16), taken(right)[0])
    assert found.found is not None
    assert found.found.skill == "s4"


def test_recorded_scores_that_do_not_fit_are_said() -> None:
    updates, digest = line(8), suite().tasks[0].records.digest
    said: dict[str, Any] = {"records": {"tests": {"colour": {"digest": digest, "n": N}}}, "metrics": {"scores": {"colour": {"value": 0.1}}}}
    updates[2] = Update(id=updates[2].id, skill="s2", **said)
    found = search(Question(suite=suite()), updates, taken(broken_from(6))[0])
    assert found.found is not None
    assert found.notes == (f"not monotone: {updates[2].id[:12]} was recorded with 0.1000, which is broken; there is more than one change",)


def test_one_sample_goes_by_its_score() -> None:
    name = suite().tasks[0].records[0].id
    question = Question.of(suite(), None, name)
    assert len(question.suite.tasks[0].records) == 1
    found = search(question, line(16), taken(lambda place, _: place < 11, n=1)[0])
    assert (found.suspects[0].skill, len(found.looked), found.sample) == ("s11", 4, name)
    assert json.loads(json.dumps(found.to_json()))["found"] == found.suspects[0].id
    with pytest.raises(DataError, match="did not break between them"):
        search(question, line(16), taken(lambda place, _: place > 11, n=1)[0])


def test_a_question_about_nothing_is_refused() -> None:
    for task, sample in (("shape", None), (None, "no such id"), (None, None)):
        with pytest.raises(NoMatch, match="Give --task, one of: colour"):
            Question.of(suite(), task, sample)


@pytest.fixture(name="registry")
def _registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Registry, list[str]]:
    """Seventeen tiny updates of one model, of which the eleventh breaks it."""
    quick_disk(monkeypatch)
    base = base_folder(tmp_path / "base")
    registry, ids = Registry.open(tmp_path / "registry", create=True), []
    model = loaded(base)
    for number in range(17):
        patterns = ["language.layers.0.attn.q"]
        change = (lambda tensor: tensor.mul_(-30.0)) if number == 10 else (lambda tensor: tensor.mul_(1.01))
        delta = update_of(model, patterns, seed=number, change=change)
        ids.append(record(registry, delta, base, tmp_path, parent=ids[-1] if ids else None, skill=f"s{number}", actor="ann"))
        model = apply(model, delta)
    return registry, ids


def test_one_of_sixteen_real_updates_is_found_by_four_evaluations(
    registry: tuple[Registry, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from selectune.pipeline import bisecting

    opened, ids = registry
    calls: list[str] = []
    measured = bisecting.evaluate_versions

    def counted(model: Any, versions: Any, *rest: Any, **more: Any) -> Any:
        calls.extend(versions)
        return measured(model, versions, *rest, **more)

    monkeypatch.setattr(bisecting, "evaluate_versions", counted)
    words = tiny.records(*(tiny.text(f"t{number}", text) for number, text in enumerate(["What is in the picture?", "a cat, a dog"])))
    question = Question.of(Suite(tasks=(Task(name="words", records=words, kind="perplexity"),)), None, "t1")
    load = lambda name: loaded(Path(name))  # noqa: E731
    found = bisect(opened, (ids[0], ids[16]), question, load, Silent())
    assert found.updates == 16
    assert found.found is not None
    assert found.found.id == ids[10]
    assert len(found.looked) == 4
    assert len(calls) == len(set(calls)) == 6  # and the two ends
    again = bisect(opened, ("base", ids[11]), question, load, Silent())
    assert again.found is not None
    assert again.found.id == ids[10]
    with pytest.raises(RegistryError, match="is no ancestor of"):
        bisect(opened, (ids[16], ids[0]), question, load, Silent())
