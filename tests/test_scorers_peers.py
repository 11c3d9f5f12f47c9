"""Our scorers beside other packages', case by case; every difference is explained where the case stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider_scorer import CiderScorer
from torchmetrics.functional.text import edit_distance as their_distance
from torchmetrics.functional.text import squad

from scorer_cases import CASES, STUDY, Case, StudyCase, score
from selectune.errors import DataError, MissingPackage
from selectune.evaluation.scorers import OVER_TASK, SCORERS, Reference, scorer, words
from selectune.evaluation.scorers.text import edit_distance

RECORD = json.loads((Path(__file__).parent / "recorded" / "lmms_eval.json").read_text(encoding="utf-8"))
SENTENCES = ("a dog runs on the green grass", "two cats sleep", "the red car stops at a light", "a man rides a brown horse on sand")


def test_the_record_is_of_these_cases() -> None:
    assert RECORD["lmms-eval"] == "0.7.3"
    assert [(row["metric"], row["output"], tuple(row["answers"])) for row in RECORD["scores"]] == [case[:3] for case in CASES]


@pytest.mark.parametrize(
    ("case", "theirs"),
    [(case, row["score"]) for case, row in zip(CASES, RECORD["scores"], strict=True)],
    ids=[f"{case.metric}:{case.output}={case.answers[0]}" for case in CASES],
)
def test_a_score_is_lmms_evals_or_the_difference_is_explained(case: Case, theirs: float) -> None:
    same = score(case) == pytest.approx(theirs, abs=1e-9)
    assert same is (not case.why), f"ours {score(case)}, theirs {theirs}"


@pytest.mark.parametrize("case", STUDY, ids=[f"{case.scorer}:{case.output}={case.answer}" for case in STUDY])
def test_a_score_is_the_reference_codes_or_the_difference_is_explained(case: StudyCase) -> None:
    assert SCORERS[case.scorer](case.output, Reference(answers=(case.answer,))) == case.here
    assert (case.here == case.there) is (not case.why)


@settings(max_examples=60, deadline=None)
@given(st.text("abc ,.", max_size=24), st.text("abc ,.", max_size=24))
def test_token_f1_and_exact_match_are_torchmetrics_squad(output: str, answer: str) -> None:
    theirs = squad([{"prediction_text": output, "id": "1"}], [{"answers": {"answer_start": [0], "text": [answer]}, "id": "1"}])
    assert SCORERS["f1"](output, Reference(answers=(answer,))) == pytest.approx(float(theirs["f1"]) / 100)
    if SCORERS["exact"](output, Reference(answers=(answer,))):
        assert float(theirs["exact_match"]) == 100


@settings(max_examples=60, deadline=None)
@given(st.text("abcß ", max_size=12), st.text("abcß ", max_size=12))
def test_the_edit_distance_is_torchmetrics(a: str, b: str) -> None:
    assert edit_distance(a, b) == int(their_distance([a], [b], reduction="none")[0])


@pytest.mark.parametrize("output", [*SENTENCES, "a dog", "", "sand"])
def test_bleu_is_sacrebleus_over_a_hundred(output: str) -> None:
    theirs = sacrebleu.sentence_bleu(output, list(SENTENCES[:2]), use_effective_order=True).score
    assert SCORERS["bleu"](output, Reference(answers=SENTENCES[:2])) == pytest.approx(theirs / 100)


def test_ten_times_the_mean_of_cider_is_pycocoevalcaps() -> None:
    references = [Reference(answers=(text, f"{text} today")) for text in SENTENCES]
    outputs = ["a dog on green grass", "two cats", "a red car stops", "nothing of the kind"]
    corpus = CiderScorer(n=4, sigma=6.0)
    for output, reference in zip(outputs, references, strict=True):
        corpus += (" ".join(words(output)), [" ".join(words(answer)) for answer in reference.answers])
    mean, single = corpus.compute_score()
    judge = OVER_TASK["cider"](references)
    scores = [judge(output, reference) for output, reference in zip(outputs, references, strict=True)]
    assert scores == pytest.approx(single / 10)
    assert 10 * np.mean(scores) == pytest.approx(mean)
    assert scores[0] > scores[3] == 0


def test_a_cider_score_does_not_depend_on_what_the_other_samples_say() -> None:
    references = [Reference(answers=(text,)) for text in SENTENCES]
    judge = OVER_TASK["cider"](references)
    before = judge("two cats sleep", references[1])
    judge("two cats sleep sleep", references[0])
    assert judge("two cats sleep", references[1]) == before == pytest.approx(0.75)  # it has no four-gram


def test_cider_of_one_reference_is_refused() -> None:
    with pytest.raises(DataError, match="CIDEr needs several references, and there are 1"):
        scorer("cider", [Reference(answers=("a cat",))])


@pytest.mark.parametrize(("name", "package"), [("bleu", "sacrebleu"), ("cider", "pycocoevalcap")])
def test_a_scorer_whose_package_is_missing_names_the_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectune.evaluation.scorers.naming.find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(MissingPackage, match=rf"{name} needs {package}. Install it: pip install 'selectune\[captions\]'"):
        scorer(name)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["cat", "dog", "red", "runs"]), max_size=7), st.lists(st.sampled_from(["cat", "dog", "red"]), min_size=4))
def test_bleu_and_cider_lie_in_0_to_1_and_are_whole_for_the_reference_itself(output: list[str], answer: list[str]) -> None:
    reference, other = Reference(answers=(" ".join(answer),)), Reference(answers=("nothing of that kind at all",))
    for judge in (SCORERS["bleu"], OVER_TASK["cider"]([reference, other])):
        assert 0 <= judge(" ".join(output), reference) <= judge(" ".join(answer), reference) == pytest.approx(1)
