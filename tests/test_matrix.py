"""The matrix and its metrics against hand-made numbers and formulas written out again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectune.errors import DataError
from selectune.evaluation.matrix import align, matrix, metrics
from selectune.evaluation.measurement import Measurement, Sample
from selectune.statistics import change, proportion, score_interval


def measured(stage: str, tasks: Mapping[str, Sequence[float]], *, size: int = 1, prompt: str = "asked") -> Measurement:
    """A measurement with these scores, `size` samples to a cluster."""
    samples = tuple(
        Sample(task=task, id=f"{task} {i}", cluster=f"{task} image {i // size}", prompt_digest=prompt, output="", reference="", score=score)
        for task, scores in tasks.items()
        for i, score in enumerate(scores)
    )
    return Measurement(stage=stage, model_id=stage, suite="suite", samples=samples, seconds=0.0)


def right(count: int, n: int = 10) -> list[float]:
    return [1.0] * count + [0.0] * (n - count)


THREE = [
    measured("base", {"digits": right(1), "flags": right(2), "shapes": right(9), "kinds": right(8, 20), "text": [-2.0, -3.0]}),
    measured("digits", {"digits": right(8), "flags": right(3), "shapes": right(5), "kinds": right(8, 20), "text": [-2.5, -3.0]}),
    measured("flags", {"digits": right(6), "flags": right(9), "shapes": right(8), "kinds": right(7, 20), "text": [-3.0, -4.0]}),
]


def test_the_matrix_has_a_row_for_each_stage_and_a_column_for_each_task() -> None:
    found = matrix(THREE)
    assert (found.rows, found.columns) == (("base", "digits", "flags"), ("digits", "flags", "shapes", "kinds", "text"))
    assert found.scores[1] == (0.8, 0.3, 0.5, 0.4, -2.75)
    assert found.n[0] == (10, 10, 10, 20, 2)
    cell = proportion(8, 10)
    assert (found.low[1][0], found.high[1][0]) == (cell.low, cell.high)


def test_the_matrix_as_json_has_the_documented_keys_and_equal_grids() -> None:
    body = json.loads(json.dumps(matrix(THREE).to_json(), allow_nan=False))
    assert list(body) == ["rows", "columns", "scores", "low", "high", "n"]
    assert all(len(body[name]) == 3 and all(len(row) == 5 for row in body[name]) for name in ("scores", "low", "high", "n"))


def test_a_cell_that_was_not_measured_is_empty() -> None:
    found = matrix([measured("base", {"digits": right(1), "text": [-2.0]}), measured("digits", {"digits": right(8)})])
    assert (found.scores[1], found.low[1][1], found.high[1][1], found.n[1]) == ((0.8, None), None, None, (10, 0))
    assert (found.scores[0][1], found.low[0][1], found.high[0][1]) == (-2.0, None, None), "one log-likelihood bounds nothing"


def test_the_metrics_are_the_formulas_of_the_study() -> None:
    found = metrics(THREE, ["digits", "flags"], ["shapes", "kinds"])
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == pytest.approx(
        {
            "target_learning": ((0.8 - 0.1) + (0.9 - 0.2)) / 2,
            "target_forgetting": 0.6 - 0.8,
            "target_overall": ((0.6 - 0.1) + (0.9 - 0.2)) / 2,
            "held_out_forgetting": ((0.8 - 0.9) + (0.35 - 0.4)) / 2,
            "worst_stage": ((0.5 - 0.9) + 0.0) / 2,
            "worst_task": 0.8 - 0.9,
            "held_out_area": ((0.5 * 0 + -0.4 + 0.5 * -0.1) / 2 + (0.5 * -0.05) / 2) / 2,
        },
        abs=1e-12,
    )
    assert {name: estimate.n for name, estimate in found.items()} == {
        "target_learning": 20,
        "target_forgetting": 10,
        "target_overall": 20,
        "held_out_forgetting": 30,
        "worst_stage": 30,
        "worst_task": 10,
        "held_out_area": 30,
    }
    assert (found["worst_stage"].label, found["worst_task"].label) == ("digits", "shapes")
    assert found["worst_stage"].method.startswith("digits, the worst of 2; interval at 97.5%")


def test_a_metric_with_one_term_has_that_terms_own_interval() -> None:
    found = metrics(THREE, ["digits", "flags"], ["shapes"])
    assert found["target_forgetting"] == score_interval(2, 0, 10)
    assert found["held_out_forgetting"] == score_interval(1, 0, 10)


def test_a_mean_of_tasks_adds_their_variances() -> None:
    rng = np.random.default_rng(0)
    tasks = [f"task {k}" for k in range(4)]
    base = {task: list(rng.normal(0.5, 0.05, size=500)) for task in tasks}
    after = {task: [score + change for score, change in zip(base[task], rng.normal(0.02, 0.05, size=500), strict=True)] for task in tasks}
    found = metrics([measured("base", base), measured("digits", after)], ["task 0"], tasks)["held_out_forgetting"]
    differences = [np.subtract(after[task], base[task]) for task in tasks]
    error = math.sqrt(sum(difference.var(ddof=1) / 500 for difference in differences)) / 4
    assert found.high - found.value == pytest.approx(1.965 * error, rel=0.02)
    assert found.value - found.low == pytest.approx(1.965 * error, rel=0.02)


def test_clusters_widen_every_metric() -> None:
    base, after = {"digits": right(0, 80), "shapes": right(80, 80)}, {"digits": right(40, 80), "shapes": right(60, 80)}
    alone = metrics([measured("base", base), measured("digits", after)], ["digits"], ["shapes"])
    together = metrics([measured("base", base, size=4), measured("digits", after, size=4)], ["digits"], ["shapes"])
    assert alone.keys() == together.keys()
    for name, estimate in alone.items():
        assert together[name].value == estimate.value
        assert together[name].high - together[name].low > 1.5 * (estimate.high - estimate.low)


def test_with_one_target_there_is_no_target_forgetting() -> None:
    found = metrics(THREE[:2], ["digits"], ["shapes"])
    assert "target_forgetting" not in found
    assert found["target_learning"] == found["target_overall"]
    assert found["held_out_area"].value == pytest.approx((0.5 - 0.9) / 2, abs=1e-12)


def test_log_likelihoods_are_never_averaged_with_accuracies() -> None:
    found = metrics(THREE, ["digits", "flags"], ["shapes", "kinds", "text"])
    without = metrics(THREE, ["digits", "flags"], ["shapes", "kinds"])
    assert {name: found[name] for name in without} == without
    assert found.keys() - without.keys() == {"held_out_forgetting.text"}
    assert found["held_out_forgetting.text"].value == -1.0
    assert found["held_out_forgetting.text"] == change([-2.0, -3.0], [-3.0, -4.0])


def test_a_target_of_log_likelihoods_is_reported_by_itself() -> None:
    found = metrics(THREE[:2], ["text"], ["shapes"])
    assert found["target_learning.text"].value == found["target_overall.text"].value == -0.25
    assert "target_learning" not in found


def test_metrics_without_held_out_tasks_say_nothing_of_them() -> None:
    assert metrics(THREE, ["digits", "flags"], []).keys() == {"target_learning", "target_forgetting", "target_overall"}


def test_a_measurement_after_the_last_target_takes_no_part() -> None:
    recovered = measured(
        "recovery", {"digits": right(0), "flags": right(0), "shapes": right(10), "kinds": right(20, 20), "text": [0.0, 0.0]}
    )
    arguments = (["digits", "flags"], ["shapes", "kinds"])
    assert metrics([*THREE, recovered], *arguments) == metrics(THREE, *arguments)


@settings(max_examples=40)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 12))
def test_every_metric_lies_in_its_interval_and_swapping_the_stages_mirrors_it(before: int, after: int, size: int) -> None:
    base, updated = ({"digits": right(count, 60), "shapes": right(60 - count, 60)} for count in (before, after))
    there = metrics([measured("base", base, size=size), measured("digits", updated, size=size)], ["digits"], ["shapes"])
    back = metrics([measured("base", updated, size=size), measured("digits", base, size=size)], ["digits"], ["shapes"])
    for name in ("target_learning", "held_out_forgetting", "worst_task"):
        one, other = there[name], back[name]
        assert -1 <= one.low <= one.value <= one.high <= 1
        assert (one.low, one.value, one.high) == pytest.approx((-other.high, -other.value, -other.low), abs=1e-9)


# Bad input


def test_samples_are_paired_by_id_and_not_by_position() -> None:
    base = measured("base", {"shapes": [1.0, 0.0, 0.0]})
    turned = Measurement(stage="digits", model_id="m", suite="suite", samples=base.samples[::-1], seconds=0.0)
    pairs = align([base, turned], "shapes")
    assert pairs.ids == ("shapes 0", "shapes 1", "shapes 2")
    assert [list(scores) for scores in pairs.scores] == [[1.0, 0.0, 0.0]] * 2


def test_a_missing_sample_is_refused() -> None:
    with pytest.raises(DataError, match='task shapes: stages "base" and "digits": 1 sample ids are in one only, such as \'shapes 9\''):
        align([measured("base", {"shapes": right(5)}), measured("digits", {"shapes": right(5, 9)})], "shapes")


def test_a_sample_that_was_asked_otherwise_is_refused() -> None:
    for other in (measured("digits", {"shapes": right(5)}, prompt="another"), measured("digits", {"shapes": right(5)}, size=2)):
        with pytest.raises(DataError, match="was not asked the same in both"):
            align([measured("base", {"shapes": right(5)}), other], "shapes")


def test_a_sample_id_twice_is_refused() -> None:
    sample = measured("base", {"shapes": [1.0]}).samples[0]
    with pytest.raises(DataError, match="1 sample ids twice"):
        matrix([SimpleNamespace(stage="base", samples=(sample, sample))])


def test_a_task_that_was_not_measured_is_refused() -> None:
    with pytest.raises(DataError, match='stage "base": task "clocks" was not measured'):
        metrics(THREE, ["digits", "flags"], ["clocks"])


def test_stages_that_do_not_fit_the_targets_are_refused() -> None:
    with pytest.raises(DataError, match="3 measurements for 3 targets"):
        metrics(THREE, ["digits", "flags", "shapes"], [])
    with pytest.raises(DataError, match='two measurements of stage "base"'):
        matrix([THREE[0], THREE[0]])
    with pytest.raises(DataError, match="Name each skill"):
        metrics(THREE, [], ["shapes"])
    with pytest.raises(DataError, match="no measurement"):
        matrix([])
