"""Law 14: a gate with too few samples says undecided, never passed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from selectune.evaluation.measurement import Measurement, Sample
from selectune.gates import Evidence, decide
from selectune.recipe import Data, Gate, HeldOut
from selectune.statistics import silent_size

SCORES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1), st.floats(-9, 0))


def measured(stage: str, target: list[float], held_out: list[float], clusters: list[str]) -> Measurement:
    def sample(task: str, i: int, score: float) -> Sample:
        return Sample(task=task, id=f"{task} {i}", cluster=clusters[i], prompt_digest="asked", output="", reference="", score=score)

    samples = [sample(task, i, score) for task, scores in (("digits", target), ("shapes", held_out)) for i, score in enumerate(scores)]
    return Measurement(stage=stage, model_id=stage, suite="suite", samples=tuple(samples), seconds=0.0)


def verdicts(before: list[float], after: list[float], gate: Gate, clusters: list[str] | None = None) -> dict[str, str]:
    labels = clusters or [str(i) for i in range(len(before))]
    base = measured("base", [0.0] * len(before), before, labels)
    evidence = Evidence(before=base, anchor=base, after=measured("digits", [1.0] * len(before), after, labels))
    found = decide("digits", evidence, gate, [HeldOut(name="shapes", test=Data(source="records.jsonl"))])
    return {"all": found.verdict, **{rule.name: rule.verdict for rule in found.rules}}


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=29))
def test_with_fewer_items_than_the_plan_asks_for_every_rule_is_undecided(scores: list[tuple[float, float]]) -> None:
    before, after = map(list, zip(*scores, strict=True))
    assert set(verdicts(before, after, Gate(min_n=30)).values()) == {"undecided"}


def test_many_questions_on_few_images_are_too_few() -> None:
    clusters = [f"image {i % 29}" for i in range(2900)]
    assert set(verdicts([1.0] * 2900, [1.0] * 2900, Gate(min_n=30), clusters).values()) == {"undecided"}


@given(st.integers(30, 400), st.sampled_from([0.01, 0.02, 0.05]), st.sampled_from([1.0, 0.5]))
def test_a_silent_update_passes_only_with_the_items_that_its_margin_needs(n: int, margin: float, score: float) -> None:
    found = verdicts([score] * n, [score] * n, Gate(margin=margin))
    assert found["target_improved"] == "passed"
    # Half-right answers are bounded by what n items leave unseen, 1 - 0.05^(1/n): about 3/n.
    enough = n >= silent_size(margin) if score == 1.0 else 1 - 0.05 ** (1 / n) < margin
    assert found["held_out_kept"] == ("passed" if enough else "undecided")


def test_with_enough_items_the_same_update_passes() -> None:
    assert set(verdicts([1.0] * 60, [1.0] * 60, Gate()).values()) == {"passed"}
