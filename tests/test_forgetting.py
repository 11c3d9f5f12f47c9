"""Learning and forgetting over several runs, against formulas written out and against simple cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from selectune.errors import DataError, InputError
from selectune.evaluation.forgetting import forgetting, matrix_over
from selectune.evaluation.matrix import metrics
from selectune.evaluation.measurement import Measurement, Sample
from selectune.statistics import bootstrap


def measured(stage: str, tasks: Mapping[str, Sequence[float]], *, size: int = 1) -> Measurement:
    """A measurement with these scores, `size` samples to a cluster."""
    samples = tuple(
        Sample(task=task, id=str(i), cluster=str(i // size), prompt_digest="", output="", reference="", score=float(score))
        for task, scores in tasks.items()
        for i, score in enumerate(scores)
    )
    return Measurement(stage=stage, model_id=stage, suite="suite", samples=samples, seconds=0.0)


SHARES = {"base": (0.1, 0.2, 0.9), "cats": (0.8, 0.3, 0.6), "dogs": (0.7, 0.9, 0.7), "fish": (0.4, 0.95, 0.8)}
TASKS = ("cats", "dogs", "held")


def a_run(seed: int, *, n: int = 60, size: int = 1, shift: float = 0.0) -> list[Measurement]:
    """Base and three stages; the third skill is not measured, so that `cats` and `dogs` may be forgotten twice."""
    rng = np.random.default_rng(seed)
    found = []
    for stage, shares in SHARES.items():
        scores = {task: (rng.random(n) < share + shift).astype(float) for task, share in zip(TASKS, shares, strict=True)}
        found.append(measured(stage, scores | {"fish": (rng.random(n) < 0.5).astype(float)}, size=size))
    return found


TARGETS, HELD = ["cats", "dogs", "fish"], ["held"]


def test_the_values_are_the_formulas_over_the_mean_of_runs() -> None:
    runs = [a_run(seed) for seed in range(3)]
    found = forgetting(runs, TARGETS, HELD, draws=200)
    a = {(k, task): np.array([run[k].score(task) for run in runs]) for k in range(4) for task in (*TASKS, "fish")}
    expected = {
        "target_learning": (a[1, "cats"] - a[0, "cats"] + a[2, "dogs"] - a[0, "dogs"] + a[3, "fish"] - a[0, "fish"]) / 3,
        "backward_transfer": (a[3, "cats"] - a[1, "cats"] + a[3, "dogs"] - a[2, "dogs"]) / 2,
        "forgetting_from_best": (
            a[3, "cats"]
            - np.max([a[1, "cats"], a[2, "cats"], a[3, "cats"]], axis=0)
            + a[3, "dogs"]
            - np.maximum(a[2, "dogs"], a[3, "dogs"])
        )
        / 2,
        "target_overall": sum(a[3, task] - a[0, task] for task in TARGETS) / 3,
        "held_out_forgetting": a[3, "held"] - a[0, "held"],
        "worst_stage": a[1, "held"] - a[0, "held"],
        "held_out_area": (a[0, "held"] / 2 + a[1, "held"] + a[2, "held"] + a[3, "held"] / 2) / 3 - a[0, "held"],
    }
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx({name: row.mean() for name, row in expected.items()})
    assert found["worst_stage"].label == "cats"
    assert "interval at 98.3%" in found["worst_stage"].method
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in found.values())


def test_the_values_of_one_run_are_those_of_its_own_report() -> None:
    run = a_run(1)
    mine, report = forgetting([run], TARGETS, HELD, draws=200), metrics(run, TARGETS, HELD)
    for name in ("target_learning", "target_overall", "held_out_forgetting", "worst_stage", "held_out_area"):
        assert mine[name].value == pytest.approx(report[name].value)
    assert mine["backward_transfer"].value == pytest.approx(report["target_forgetting"].value)


def test_one_run_of_single_items_has_the_interval_of_a_plain_bootstrap_and_says_what_it_leaves_out() -> None:
    run = a_run(2, n=200)
    found = forgetting([run], TARGETS, HELD)["held_out_forgetting"]
    differences = np.subtract(list(run[3].scores("held").values()), list(run[0].scores("held").values()))
    plain = bootstrap(differences, draws=4000)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.012)
    assert "one run, so nothing of the spread between runs" in found.method


def test_the_spread_between_runs_is_in_the_interval() -> None:
    alike, apart = [a_run(5, n=400)] * 4, [a_run(5, n=400, shift=shift) for shift in (-0.15, -0.05, 0.0, 0.05)]
    base = alike[0][:1]
    narrow, wide = (forgetting([base + run[1:] for run in runs], TARGETS, HELD)["held_out_forgetting"] for runs in (alike, apart))
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)


def test_runs_that_forget_alike_for_sure_leave_only_the_runs_to_draw() -> None:
    """Items that all fare the same: the interval is that of the runs' means, widened by the root of R/(R - 1)."""
    runs = [
        [measured("base", {"t": [0.0] * 8, "h": [1.0] * 8}), measured("t", {"t": [1.0] * 8, "h": [share] * 8})] for share in (0.4, 0.6, 0.8)
    ]
    found = forgetting(runs, ["t"], ["h"], draws=20_000)["held_out_forgetting"]
    means = [-0.6, -0.4, -0.2]
    drawn = np.array([np.mean([means[i], means[j], means[k]]) for i in range(3) for j in range(3) for k in range(3)])
    expected = -0.4 + np.sqrt(1.5) * (np.quantile(drawn, [0.025, 0.975], method="inverted_cdf") + 0.4)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.02)
    assert stats.describe(drawn).mean == pytest.approx(-0.4)


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    whole = np.repeat(rng.random(50) < 0.6, 4).astype(float)
    base, after = {"t": [0.0] * 200, "h": [1.0] * 200}, {"t": [1.0] * 200, "h": list(whole)}
    widths = []
    for size in (1, 4):
        found = forgetting([[measured("base", base, size=size), measured("t", after, size=size)]], ["t"], ["h"])["held_out_forgetting"]
        widths.append(found.high - found.low)
    assert widths[1] > 1.7 * widths[0]


def test_the_same_seed_draws_the_same_interval() -> None:
    runs = [a_run(seed, size=3) for seed in range(2)]
    assert forgetting(runs, TARGETS, HELD, draws=200) == forgetting(runs, TARGETS, HELD, draws=200)
    assert forgetting(runs, TARGETS, HELD, draws=200) != forgetting(runs, TARGETS, HELD, draws=200, seed=1)


def test_the_matrix_over_runs_has_their_mean_scores_with_intervals() -> None:
    runs = [a_run(seed) for seed in range(3)]
    found = matrix_over(runs, ["cats", "held"], draws=200)
    assert (found.rows, found.columns) == (("base", "cats", "dogs", "fish"), ("cats", "held"))
    assert found.scores[1][0] == pytest.approx(np.mean([run[1].score("cats") for run in runs]))
    assert found.n == ((60, 60),) * 4
    low, high = found.low[1][0], found.high[1][0]
    assert low is not None
    assert high is not None
    assert low < (found.scores[1][0] or 0) < high


def test_an_interval_of_the_matrix_does_not_leave_the_scale_of_scores() -> None:
    runs = [
        [measured("base", {"t": [0.0] * 8, "h": [1.0] * 8}), measured("t", {"t": [1.0] * 8, "h": [1.0] * good + [0.0] * (8 - good)})]
        for good in (8, 8, 4)
    ]
    found = matrix_over(runs, ["h"], draws=500)
    assert found.scores[1] == (pytest.approx(20 / 24),)
    assert found.high[1] == (1.0,)


def test_log_likelihoods_take_no_part_in_the_means() -> None:
    run = [measured("base", {"t": [0.0, 1.0], "text": [-2.0, -3.0]}), measured("t", {"t": [1.0, 1.0], "text": [-2.5, -3.0]})]
    assert forgetting([run], ["t"], ["text"], draws=100).keys() == {"target_learning", "target_overall"}


def test_runs_that_do_not_belong_together_are_refused() -> None:
    run = a_run(1)
    with pytest.raises(DataError, match="no run"):
        forgetting([], TARGETS, HELD)
    with pytest.raises(DataError, match="runs of other stages: base, cats, dogs, fish; base, dogs, cats, fish"):
        forgetting([run, [run[0], run[2], run[1], run[3]]], TARGETS, HELD)
    with pytest.raises(DataError, match="20 sample ids are in one only"):
        forgetting([run, a_run(2, n=40)], TARGETS, HELD)
    with pytest.raises(InputError, match="10 draws"):
        forgetting([run], TARGETS, HELD, draws=10)
