"""Statistics against other libraries, published values, exact enumeration and simulation."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as oracle_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from selectune import statistics
from selectune.errors import DataError, InputError
from selectune.statistics import (
    Estimate,
    adjusted,
    benjamini_hochberg,
    betting,
    bootstrap,
    change,
    correlation,
    flips,
    holm,
    look_levels,
    mcnemar,
    mean,
    noninferiority,
    p_value_of_change,
    paired,
    paired_test,
    power,
    proportion,
    sample_size,
    score,
    score_interval,
    silent_size,
    tost,
)
from selectune.statistics.tango import score_statistic


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    """Lost, gained and all items."""
    n = draw(st.integers(1, 400))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


def scores(lost: int, gained: int, n: int) -> tuple[list[float], list[float]]:
    same = n - lost - gained
    return [1.0] * lost + [0.0] * gained + [1.0] * same, [0.0] * lost + [1.0] * gained + [1.0] * same


def chance(n: int, lost: float, gained: float, event: Callable[[int, int], bool]) -> float:
    """The exact probability of an event of the counts, summed over all tables that matter."""
    total = 0.0
    for b in range(int(stats.binom.ppf(1 - 1e-7, n, lost)) + 1):
        rest = n - b
        most = int(stats.binom.ppf(1 - 1e-7, rest, gained / (1 - lost)))
        weights = stats.binom.pmf(b, n, lost) * stats.binom.pmf(np.arange(most + 1), rest, gained / (1 - lost))
        total += sum(float(weight) for c, weight in enumerate(weights) if event(b, c))
    return total


# Shares


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 20), (3, 20), (119, 120), (120, 120)])
@pytest.mark.parametrize(("ours", "theirs"), [("wilson", "wilson"), ("exact", "beta")])
def test_intervals_of_shares_agree_with_statsmodels(successes: int, n: int, ours: str, theirs: str) -> None:
    found = proportion(successes, n, level=0.9, method=ours)  # type: ignore[arg-type]
    assert (found.low, found.high) == pytest.approx(proportion_confint(successes, n, alpha=0.1, method=theirs), abs=1e-12)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_an_interval_of_a_share_contains_it_and_lies_in_0_to_1(counts: tuple[int, int], level: float) -> None:
    for method in ("wilson", "exact"):
        found = proportion(*counts, level=level, method=method)  # type: ignore[arg-type]
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_bound_of_the_flip_rate_is_the_beta_quantile() -> None:
    assert flips(3, 200).high == pytest.approx(stats.beta.ppf(0.95, 4, 197), abs=1e-12)
    assert flips(0, 59).high < 0.05 < flips(0, 58).high


def test_a_share_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="5 successes of 4 items is no share"):
        proportion(5, 4)


# Means


def test_a_mean_without_clusters_agrees_with_statsmodels() -> None:
    values = np.random.default_rng(1).normal(size=50)
    found = mean(values)
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean(), abs=1e-12)


def test_a_mean_with_clusters_agrees_with_the_cluster_robust_regression_of_statsmodels() -> None:
    rng = np.random.default_rng(2)
    clusters = rng.integers(0, 17, size=120)
    values = rng.normal(size=120) + rng.normal(size=17)[clusters]
    model = OLS(values, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    found = mean(values, clusters=[f"image {number}" for number in clusters])
    assert (found.low, found.high) == pytest.approx(tuple(model.conf_int()[0]), abs=1e-12)
    assert found.n == 120
    assert "17 clusters" in found.method


def test_one_cluster_bounds_nothing_and_its_json_has_null_for_an_infinite_end() -> None:
    found = mean([1.0, 2.0], clusters=["a", "a"])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["low"] is None


def test_a_label_is_in_the_json_only_where_there_is_one() -> None:
    plain = Estimate(value=0.5, low=0.4, high=0.6, n=3, method="t")
    assert plain.to_json() == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "method": "t"}
    assert Estimate(value=0.5, low=0.4, high=0.6, n=3, method="t", label="digits").to_json()["label"] == "digits"


def test_binary_scores_get_wilson_and_clusters_widen_it() -> None:
    values = [1.0, 1.0, 0.0, 0.0] * 20
    alone = score(values)
    assert (alone.low, alone.high) == pytest.approx(proportion_confint(40, 80, method="wilson"), abs=1e-12)
    # Both answers on one image always agree, so 80 answers are worth 40.
    doubled = score(values, clusters=[f"image {i // 2}" for i in range(80)])
    expected = proportion_confint(20, 40, method="wilson")
    assert (doubled.low, doubled.high) == pytest.approx(expected, abs=0.003)


def test_clusters_that_differ_less_than_chance_are_worth_no_more_than_their_items() -> None:
    # One right and one wrong answer on every image: the cluster means do not vary at all.
    balanced, clusters = [1.0, 0.0] * 40, [f"image {i // 2}" for i in range(80)]
    assert score(balanced, clusters=clusters).low == pytest.approx(score(balanced).low, abs=1e-12)


def test_real_scores_in_0_to_1_keep_their_interval_there() -> None:
    found = score([0.9, 1.0, 0.95, 0.2])
    assert found.high == 1.0
    assert score([-3.0, -1.0, -2.5]).low < -3


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_what_is_no_row_of_finite_numbers_is_refused(bad: list[float]) -> None:
    with pytest.raises(DataError):
        mean(bad)


def test_another_number_of_cluster_labels_is_refused() -> None:
    with pytest.raises(DataError, match="1 cluster labels for 2 values"):
        mean([1.0, 2.0], clusters=["a"])


def test_the_bootstrap_repeats_itself_and_agrees_with_t_where_that_holds() -> None:
    values = np.random.default_rng(3).normal(size=400)
    first, exact = bootstrap(values), mean(values)
    assert first == bootstrap(values)
    assert (first.low, first.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_the_bootstrap_draws_whole_clusters() -> None:
    values = np.repeat(np.random.default_rng(4).normal(size=60), 5)
    clusters = [str(i // 5) for i in range(300)]
    whole, exact = bootstrap(values, clusters=clusters), mean(values, clusters=clusters)
    assert whole.high - whole.low == pytest.approx(exact.high - exact.low, rel=0.06)
    assert whole.high - whole.low > 1.8 * (bootstrap(values).high - bootstrap(values).low)


def test_the_bootstrap_of_equal_values_has_no_width() -> None:
    found = bootstrap([0.25, 0.25, 0.25])
    assert (found.low, found.value, found.high) == (0.25, 0.25, 0.25)


# Correlation


def test_pearsons_interval_agrees_with_scipy() -> None:
    rng = np.random.default_rng(5)
    left = rng.normal(size=12)
    right = left + rng.normal(size=12)
    found, expected = correlation(left, right), stats.pearsonr(left, right)
    ends = expected.confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((expected.statistic, ends.low, ends.high), abs=1e-12)


def test_spearmans_interval_is_wider_than_pearsons_of_the_ranks() -> None:
    rng = np.random.default_rng(6)
    left = rng.normal(size=20)
    right = left + rng.normal(size=20)
    ours, ranks = correlation(left, right, method="spearman"), correlation(stats.rankdata(left), stats.rankdata(right))
    assert ours.value == pytest.approx(ranks.value, abs=1e-12)
    assert ours.low < ranks.low < ours.value < ranks.high < ours.high


def test_three_pairs_bound_no_correlation() -> None:
    found = correlation([1, 2, 3], [3, 2, 2])
    assert (found.low, found.high) == (-1, 1)


def test_a_series_that_never_changes_has_no_correlation() -> None:
    with pytest.raises(DataError, match="never changes"):
        correlation([1, 1, 1, 1], [1, 2, 3, 4])


# McNemar


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (3, 9), (10, 10), (25, 12)])
def test_exact_mcnemar_agrees_with_statsmodels(lost: int, gained: int) -> None:
    expected = oracle_mcnemar([[0, lost], [gained, 0]], exact=True).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained, method="exact") == pytest.approx(min(1.0, expected), abs=1e-12)


@pytest.mark.parametrize(("lost", "gained"), [(0, 5), (3, 9), (10, 10), (25, 12)])
def test_mid_p_counts_half_of_the_tables_as_likely_as_the_one_seen(lost: int, gained: int) -> None:
    all_tables = stats.binom.pmf(np.arange(lost + gained + 1), lost + gained, 0.5)
    seen = all_tables[lost]
    expected = all_tables[all_tables < seen * (1 - 1e-9)].sum() + 0.5 * all_tables[np.isclose(all_tables, seen, rtol=1e-9)].sum()
    # At the centre one table, not two, is as likely as the one seen, and half of it is not counted.
    assert mcnemar(lost, gained) == pytest.approx(1.0 if lost == gained else expected, abs=1e-12)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(InputError, match="Counts are not negative"):
        mcnemar(-1, 2)


# Tango


def test_tango_gives_the_values_of_his_own_example() -> None:
    """Soft contact lenses, 44 patients, one discordant, margin 0.1: Z = 1.709, p = 0.044, 90 % interval from -0.096."""
    found = noninferiority(1, 0, 44, 0.1)
    assert (found.z, found.p_value, found.low) == pytest.approx((1.709, 0.044, -0.096), abs=5e-4)


def test_tangos_interval_gives_the_published_one_of_the_airway_data() -> None:
    """Bentur et al. (2009), 7 and 1 discordant of 21: -0.517 to -0.026 in Fagerland, Lydersen, Laake (2017), chapter 8."""
    found = score_interval(7, 1, 21)
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "bound"), [(7, 1, 21, -0.05), (3, 9, 50, 0.1), (0, 4, 30, -0.2), (5, 0, 30, 0.03), (12, 8, 200, 0.0)]
)
def test_tangos_closed_form_is_the_score_at_the_restricted_likelihood_maximum(lost: int, gained: int, n: int, bound: float) -> None:
    def loss(q: float) -> float:
        cells = np.array([q, q + bound, 1 - 2 * q - bound])
        return -float(np.array([lost, gained, n - lost - gained]) @ np.log(np.maximum(cells, 1e-300)))

    low, high = max(0.0, -bound), (1 - bound) / 2
    q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    expected = (gained - lost - n * bound) / math.sqrt(n * (2 * q + bound - bound**2))
    assert score_statistic(lost, gained, n, bound) == pytest.approx(expected, abs=1e-4)


def test_tango_at_bound_zero_is_mcnemars_z() -> None:
    assert score_statistic(12, 30, 500, 0.0) == pytest.approx(18 / math.sqrt(42), abs=1e-12)


def test_a_silent_update_needs_133_items_for_two_points_and_268_for_one() -> None:
    verdicts = {(n, margin): noninferiority(0, 0, n, margin).verdict for n, margin in [(132, 0.02), (133, 0.02), (267, 0.01), (268, 0.01)]}
    assert verdicts == {(132, 0.02): "undecided", (133, 0.02): "passed", (267, 0.01): "undecided", (268, 0.01): "passed"}
    assert (silent_size(0.02), silent_size(0.01)) == (133, 268)


@pytest.mark.parametrize(("n", "discordant", "expected"), [(100, 0.03, 0.035), (500, 0.03, 0.044), (100, 0.12, 0.050), (500, 0.12, 0.050)])
def test_tango_passes_an_update_at_the_margin_with_the_published_chance(n: int, discordant: float, expected: float) -> None:
    margin = 0.02
    lost, gained = (discordant + margin) / 2, (discordant - margin) / 2
    passes = chance(n, lost, gained, lambda b, c: score_statistic(b, c, n, -margin) >= stats.norm.ppf(0.95))
    assert passes == pytest.approx(expected, abs=0.005)


def test_tango_passes_a_harmless_update_with_the_published_power() -> None:
    power = chance(1000, 0.03, 0.03, lambda b, c: score_statistic(b, c, 1000, -0.02) >= stats.norm.ppf(0.95))
    assert power == pytest.approx(0.81, abs=0.01)


def test_tangos_interval_covers_the_true_change_as_often_as_it_says() -> None:
    limit = stats.norm.ppf(0.975)
    cover = chance(80, 0.08, 0.04, lambda b, c: abs(score_statistic(b, c, 80, -0.04)) <= limit)
    assert cover == pytest.approx(0.95, abs=0.012)


@given(tables(), st.floats(0.5, 0.99))
def test_tangos_interval_contains_the_change_and_swapping_old_and_new_mirrors_it(table: tuple[int, int, int], level: float) -> None:
    lost, gained, n = table
    found, mirrored = score_interval(lost, gained, n, level=level), score_interval(gained, lost, n, level=level)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (found.low, found.value, found.high) == pytest.approx((-mirrored.high, -mirrored.value, -mirrored.low), abs=1e-9)


@given(tables(), st.floats(0.001, 0.9), st.floats(0.001, 0.9))
def test_a_wider_margin_never_turns_a_pass_into_less(table: tuple[int, int, int], one: float, other: float) -> None:
    order = {"failed": 0, "undecided": 1, "passed": 2}
    strict, lax = noninferiority(*table, min(one, other)), noninferiority(*table, max(one, other))
    assert order[strict.verdict] <= order[lax.verdict]
    assert strict.z <= lax.z + 1e-9


@given(tables(), st.floats(0.001, 0.9), st.floats(0.01, 0.3))
def test_tangos_test_and_his_interval_say_the_same(table: tuple[int, int, int], margin: float, alpha: float) -> None:
    found = noninferiority(*table, margin, alpha=alpha)
    if abs(found.low + margin) > 1e-7:
        assert found.passed == (found.low > -margin)
    if abs(found.high + margin) > 1e-7:
        assert found.refuted == (found.high < -margin)


@given(tables(), st.floats(0.01, 0.5))
def test_the_items_said_to_be_needed_settle_it_at_the_same_rates(table: tuple[int, int, int], margin: float) -> None:
    found = noninferiority(*table, margin)
    if found.needed is None or found.needed > 10**7:
        return
    lost, gained, n = table
    limit, scale = stats.norm.ppf(0.95), found.needed / n
    assert found.needed > n
    assert abs(score_statistic(lost * scale, gained * scale, found.needed, -margin)) >= limit - 1e-6
    fewer = (found.needed - 1) / n
    assert fewer <= 1 or abs(score_statistic(lost * fewer, gained * fewer, found.needed - 1, -margin)) < limit + 1e-6


@pytest.mark.parametrize(("arguments", "words"), [((3, 3, 5, 0.1), "of 5"), ((0, 0, 0, 0.1), "of 0"), ((0, 0, 5, 1.0), "margin of 1.0")])
def test_counts_and_margins_that_cannot_be_are_refused(arguments: tuple[int, int, int, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        noninferiority(*arguments)


# Changes of any kind of score


def test_binary_scores_without_clusters_take_tango() -> None:
    before, after = scores(7, 3, 120)
    assert change(before, after) == score_interval(7, 3, 120)
    assert paired_test(before, after, bound=-0.05) == noninferiority(7, 3, 120, 0.05)


def test_clusters_widen_the_interval_of_answers_that_change_together() -> None:
    before, after = scores(20, 4, 200)
    clusters = [str(i // 4) for i in range(200)]
    alone, together = change(before, after), change(before, after, clusters)
    assert together.low < alone.low - 0.03
    assert together.high > alone.high + 0.02


def test_a_silent_update_in_clusters_counts_one_item_a_cluster() -> None:
    before = after = [1.0] * 400
    few, enough = [str(i // 4) for i in range(400)], [str(i // 3) for i in range(400)]
    assert paired_test(before, after, bound=-0.02, clusters=few).verdict == "undecided"
    assert paired_test(before, after, bound=-0.02, clusters=enough).verdict == "passed"
    assert paired_test(before, after, bound=-0.02, clusters=few).needed in range(530, 534)


def test_clustered_questions_pass_a_bad_update_hardly_more_often_than_alpha() -> None:
    """150 images of four questions that tend to change together, the true loss just at the margin."""
    rng = np.random.default_rng(7)
    clusters, runs = [str(i // 4) for i in range(600)], 500
    passed = naive = 0
    for _ in range(runs):
        # A share of images loses or gains all four of its questions; the change is -0.02 on average.
        image = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.92, 0.03], size=150)
        differences = np.repeat(image, 4)
        before = np.where(differences == 0, 1.0, (1 - differences) / 2)
        after = before + differences
        passed += paired_test(before, after, bound=-0.02, clusters=clusters).passed
        naive += paired_test(before, after, bound=-0.02).passed
    assert passed / runs <= 0.07
    assert naive / runs >= 0.13


def test_an_f1_that_never_moves_still_leaves_unseen_what_its_items_cannot_show() -> None:
    before = [0.5] * 50
    found = change(before, before, level=0.9)
    assert (found.low, found.high) == pytest.approx((-(1 - 0.05 ** (1 / 50)), 1 - 0.05 ** (1 / 50)), abs=1e-12)
    test = paired_test(before, before, bound=-0.05)
    assert test.verdict == "undecided"
    assert test.needed is not None
    more = [0.5] * test.needed
    assert paired_test(more, more, bound=-0.05).verdict == "passed"
    assert paired_test(more[1:], more[1:], bound=-0.05).verdict == "undecided"


def test_an_f1_of_which_many_items_changed_takes_t_alone() -> None:
    rng = np.random.default_rng(12)
    before = rng.uniform(0.3, 0.7, size=400)
    after = before + rng.normal(0, 0.01, size=400)
    assert change(before, after) == paired(after - before)


def test_log_likelihoods_take_t_and_few_of_them_the_wider_of_t_and_bootstrap() -> None:
    rng = np.random.default_rng(8)
    before = rng.normal(-3, 1, size=200)
    after = before + rng.normal(-0.02, 0.1, size=200)
    assert change(before, after) == paired(after - before)
    few = change(before[:12], after[:12])
    exact, drawn = paired((after - before)[:12]), bootstrap((after - before)[:12])
    assert (few.low, few.high) == (min(exact.low, drawn.low), max(exact.high, drawn.high))


def test_skewed_differences_take_the_bootstrap_too() -> None:
    before = np.full(100, -3.0)
    after = before.copy()
    after[:2] = -9.0
    found = change(before, after)
    assert "BCa" in found.method
    assert found.low < paired(after - before).low


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=2, max_size=60))
def test_swapping_old_and_new_mirrors_a_clustered_change(items: list[tuple[bool, bool, int]]) -> None:
    before, after, clusters = zip(*items, strict=True)
    names = [str(cluster) for cluster in clusters]
    there, back = change(before, after, names), change(after, before, names)
    assert there.low <= there.value <= there.high
    assert (there.low, there.value, there.high) == pytest.approx((-back.high, -back.value, -back.low), abs=1e-9)


def test_scores_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="3 scores before and 2 after"):
        change([1.0, 0.0, 1.0], [1.0, 0.0])


def test_a_bound_that_no_share_can_reach_is_refused() -> None:
    with pytest.raises(InputError, match=r"a bound of -1\.5"):
        paired_test([1.0, 0.0], [1.0, 0.0], bound=-1.5, clusters=["a", "a"])


# Equivalence, planning, several tests


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "passed"), (0.24, "undecided"), (2.0, "failed")])
def test_tost_agrees_with_statsmodels(shift: float, verdict: str) -> None:
    values = np.random.default_rng(9).normal(shift, 1, size=200)
    found = tost(values, 0.25)
    assert found.p_value == pytest.approx(DescrStatsW(values).ttost_mean(-0.25, 0.25)[0], abs=1e-12)
    assert found.verdict == verdict
    assert (found.p_value < 0.05) == found.passed


def test_sample_sizes_are_those_of_the_plan() -> None:
    assert [sample_size(points / 100, 0.08) for points in (1, 2, 3, 5)] == [4947, 1237, 550, 198]
    assert sample_size(0.02, 0.0) == silent_size(0.02)


def test_holm_agrees_with_statsmodels() -> None:
    values = [0.01, 0.5, 0.03, 0.04, 0.005, 0.03]
    assert holm(values) == pytest.approx(list(multipletests(values, method="holm")[1]), abs=1e-12)


# Sequential


def simulated(rng: np.random.Generator, lost: float, gained: float, n: int) -> np.ndarray:
    return rng.choice([-1.0, 0.0, 1.0], p=[lost, 1 - lost - gained, gained], size=n)


def test_looking_after_every_item_passes_an_update_at_the_margin_at_most_alpha_of_the_time() -> None:
    passes = CALIBRATION.betting_passes(CALIBRATION.drawn(np.random.default_rng(10), (400, 3000), 0.07, -0.03), 0.03)
    assert 0 < passes.mean() <= 0.05


def test_the_bet_stops_early_on_a_harmless_update_and_on_a_harmful_one() -> None:
    rng = np.random.default_rng(11)
    good = [betting(simulated(rng, 0.03, 0.03, 3000), 0.03) for _ in range(60)]
    assert all(run.verdict == "passed" for run in good)
    assert 300 < np.median([run.stopped_at or 3000 for run in good]) < 600
    bad = [betting(simulated(rng, 0.25, 0.03, 1000), 0.03) for _ in range(30)]
    assert all(run.verdict == "failed" for run in bad)


def test_the_capital_is_the_mean_over_stakes_of_the_product_of_the_bets() -> None:
    def best(gains: list[float], edge: float) -> float:
        stakes = [(k + 0.5) / 16 / edge for k in range(16)]
        capitals = [math.fsum(math.prod(1 + stake * gain for gain in gains[: i + 1]) for stake in stakes) / 16 for i in range(len(gains))]
        return max(1.0, *capitals)

    differences, margin = [0.0, -1.0, -1.0, 0.0, 1.0, 0.0, -1.0, -1.0], 0.1
    found = betting(differences, margin)
    assert found.evidence == pytest.approx(best([difference + margin for difference in differences], 0.9), abs=1e-12)
    assert found.harm == pytest.approx(best([-difference - margin for difference in differences], 1.1), abs=1e-12)
    assert (found.verdict, found.stopped_at, found.n, found.value) == ("undecided", None, 8, -0.375)


def test_a_bet_loses_no_more_than_its_stake_on_the_largest_cluster_there_is() -> None:
    differences, clusters = [0.0, 0.0, -1.0, -1.0, 0.0], ["a", "a", "b", "b", "c"]
    found = betting(differences, 0.1, clusters=clusters, largest=4)
    gains = [0.2 / 4, -1.8 / 4, 0.1 / 4]
    stakes = [(k + 0.5) / 16 / 0.9 for k in range(16)]
    first = sum(1 + stake * gains[0] for stake in stakes) / 16
    assert found.evidence == pytest.approx(first, abs=1e-12)
    with pytest.raises(InputError, match="a cluster of 2 items where the largest has 1"):
        betting(differences, 0.1, clusters=clusters, largest=1)


def test_the_bounds_of_a_bet_are_those_that_it_has_just_not_beaten() -> None:
    differences = simulated(np.random.default_rng(12), 0.03, 0.03, 300)
    found = betting(differences, 0.01)
    assert found.verdict == "undecided"
    assert betting(differences, -found.low + 1e-4).verdict == "passed"
    assert betting(differences, -found.low - 1e-4).verdict == "undecided"


def test_the_bounds_of_a_bet_hold_however_often_one_looks() -> None:
    rng = np.random.default_rng(13)
    held = []
    for _ in range(60):
        differences = simulated(rng, 0.06, 0.04, 400)
        looks = [betting(differences[:seen], 0.9, alpha=0.05) for seen in range(40, 401, 40)]
        held.append(all(look.low <= -0.02 <= look.high for look in looks))
    # Each side errs at most 5 % of the time.
    assert np.mean(held) >= 0.85


def test_an_undecided_bet_names_about_the_items_at_which_it_would_end() -> None:
    rng = np.random.default_rng(14)
    named, ended = [], []
    for _ in range(40):
        differences = simulated(rng, 0.03, 0.03, 3000)
        early = betting(differences[:150], 0.05)
        if early.verdict == "undecided" and early.needed is not None:
            named.append(early.needed)
            ended.append(betting(differences, 0.05).stopped_at or 3000)
    assert len(named) > 10
    assert 0.5 < np.median(named) / np.median(ended) < 2


def test_items_after_the_stop_change_nothing() -> None:
    silent = [0.0] * 300
    found = betting(silent, 0.05)
    assert found.verdict == "passed"
    assert found.stopped_at is not None
    later = betting([*silent[: found.stopped_at], *[-1.0] * 100], 0.05)
    assert (later.verdict, later.stopped_at, later.evidence) == ("passed", found.stopped_at, found.evidence)
    assert betting(silent[: found.stopped_at - 1], 0.05).verdict == "undecided"


def test_a_bet_on_unbounded_scores_is_refused() -> None:
    with pytest.raises(DataError, match=r"outside -1\.\.1"):
        betting([0.1, -3.0], 0.05)


# Several tests, several looks


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_agrees_with_statsmodels(values: list[float]) -> None:
    assert benjamini_hochberg(values) == pytest.approx(list(multipletests(values, method="fdr_bh")[1]), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_never_below_benjamini_hochberg_nor_below_the_p_value(values: list[float]) -> None:
    strict, lax = adjusted(values, "holm"), adjusted(values, "benjamini-hochberg")
    assert all(value <= low + 1e-12 and low <= high + 1e-12 for value, low, high in zip(values, lax, strict, strict=True))


def test_a_p_value_outside_0_to_1_is_refused_by_every_correction() -> None:
    for correct in (holm, benjamini_hochberg):
        with pytest.raises(InputError, match=r"outside 0\.\.1"):
            correct([0.2, 1.2])


def test_the_levels_of_the_spending_functions_are_the_published_ones() -> None:
    """Five even looks at one-sided 0.025, as ldbounds and the book of Jennison and Turnbull (2000), chapter 7, have them."""
    bounds = {how: stats.norm.isf(look_levels(0.025, 5, how)) for how in ("obrien-fleming", "pocock")}  # type: ignore[arg-type]
    assert bounds["obrien-fleming"] == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)
    assert bounds["pocock"] == pytest.approx([2.4380, 2.4268, 2.4101, 2.3966, 2.3859], abs=2e-4)


@pytest.mark.parametrize("how", ["pocock", "obrien-fleming"])
def test_uneven_looks_err_together_as_often_as_alpha_says(how: str) -> None:
    seen = [0.2, 0.3, 0.75, 1.0]
    levels = look_levels(0.05, 4, how, seen=seen)  # type: ignore[arg-type]
    covariance = [[math.sqrt(min(s, t) / max(s, t)) for s in seen] for t in seen]
    stays = stats.multivariate_normal(np.zeros(4), covariance).cdf(stats.norm.isf(levels), rng=1)
    assert 1 - stays == pytest.approx(0.05, abs=5e-4)


def test_bonferroni_splits_alpha_evenly_and_one_look_spends_all_of_it() -> None:
    assert look_levels(0.05, 5) == pytest.approx([0.01] * 5)
    assert [look_levels(0.05, 1, how)[0] for how in ("bonferroni", "pocock", "obrien-fleming")] == pytest.approx([0.05] * 3)


@pytest.mark.parametrize("seen", [[0.5], [0.5, 0.5], [0.0, 1.0], [0.5, 1.5]])
def test_looks_that_do_not_follow_one_another_are_refused(seen: list[float]) -> None:
    with pytest.raises(InputError, match="Give one for each look, rising"):
        look_levels(0.05, 2, "pocock", seen=seen)
    with pytest.raises(InputError, match="0 looks"):
        look_levels(0.05, 0)


# No change at all


def test_the_p_value_of_a_change_is_mcnemars_for_independent_right_or_wrong_answers() -> None:
    assert p_value_of_change(*scores(12, 3, 100)) == mcnemar(12, 3)
    assert p_value_of_change([1.0, 0.0], [1.0, 0.0]) == 1.0


def test_the_p_value_of_a_change_in_real_scores_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(20)
    before = rng.uniform(size=80)
    after = before + rng.normal(0.02, 0.1, size=80)
    assert p_value_of_change(before, after) == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=1e-12)


def test_three_equal_changes_are_no_proof() -> None:
    before, after = [0.5] * 50, [0.5] * 47 + [0.25] * 3
    assert p_value_of_change(before, after) >= mcnemar(3, 0) == 0.125
    assert p_value_of_change([1.0] * 12, [0.0] * 4 + [1.0] * 8, clusters=list("aabbccddeeff")) >= mcnemar(2, 0)


# Power


@pytest.mark.parametrize(("discordant", "n", "published"), [(0.06, 500, 0.56), (0.06, 1000, 0.81), (0.06, 2000, 0.97), (0.12, 2000, 0.82)])
def test_power_is_within_a_point_of_the_published_table(discordant: float, n: int, published: float) -> None:
    assert power(0.02, discordant, n) == pytest.approx(published, abs=0.01)


@given(st.integers(20, 150), st.floats(0.02, 0.3), st.floats(-1, 1), st.sampled_from([0.02, 0.05, 0.1]))
@settings(max_examples=20, deadline=None)
def test_power_is_the_sum_over_all_tables(n: int, discordant: float, tilt: float, margin: float) -> None:
    change_ = tilt * discordant
    lost, gained = (discordant - change_) / 2, (discordant + change_) / 2
    expected = chance(n, lost, gained, lambda b, c: score_statistic(b, c, n, -margin) >= stats.norm.ppf(0.95))
    assert power(margin, discordant, n, change=change_) == pytest.approx(expected, abs=1e-6)


def test_a_planned_number_of_items_has_about_the_power_it_was_planned_for() -> None:
    for margin, discordant in [(0.02, 0.08), (0.05, 0.1), (0.03, 0.06)]:
        assert power(margin, discordant, sample_size(margin, discordant)) == pytest.approx(0.8, abs=0.03)


def test_power_for_shares_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"a discordant share of 0\.1 with a change of 0\.2"):
        power(0.02, 0.1, 100, change=0.2)
    with pytest.raises(InputError, match="a margin of 1"):
        power(1, 0.1, 100)


# Error rates by simulation: at the margin no more passes than alpha and what the draws leave open (three standard errors)

RUNS = 1500
OPEN = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)


def calibration() -> ModuleType:
    """The script that measures the figures of docs/reference/statistics.md."""
    spec = importlib.util.spec_from_file_location("build_calibration", Path(__file__).parents[1] / "scripts" / "build_calibration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CALIBRATION = calibration()


@pytest.mark.parametrize("n", [100, 500, 2000])
@pytest.mark.parametrize("changed", [0.03, 0.12])
def test_no_test_passes_an_update_at_the_margin_more_often_than_alpha(n: int, changed: float) -> None:
    rng = np.random.default_rng([n, round(100 * changed)])
    alone, fours = CALIBRATION.drawn(rng, (RUNS, n), changed, -0.02), CALIBRATION.in_fours(rng, RUNS, n // 4, changed, -0.02)
    assert CALIBRATION.tango_passes(alone, 0.02).mean() <= OPEN
    assert CALIBRATION.clustered_passes(fours, 0.02).mean() <= OPEN
    assert CALIBRATION.betting_passes(alone, 0.02).mean() <= OPEN
    assert CALIBRATION.betting_passes(fours.mean(axis=2), 0.02).mean() <= OPEN
    if n == 500:
        assert CALIBRATION.tango_passes(fours.reshape(RUNS, -1), 0.02).mean() > 0.1, "clusters that are not respected err"


@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_the_clustered_test_keeps_its_error_whatever_the_clusters_share(alike: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CALIBRATION, "ALIKE", alike)
    fours = CALIBRATION.in_fours(np.random.default_rng(21), RUNS, 75, 0.03, -0.02)
    assert CALIBRATION.clustered_passes(fours, 0.02).mean() <= OPEN


def test_the_vectorised_tests_of_the_simulation_are_the_packages_own() -> None:
    rng = np.random.default_rng(22)
    clusters = [str(i // 4) for i in range(400)]
    seen = set()
    for changed, true in [(0.03, 0.0), (0.12, 0.05), (0.12, -0.05)]:
        fours = CALIBRATION.in_fours(rng, 25, 100, changed, true)
        flat = fours.reshape(25, -1)
        together, alone = CALIBRATION.clustered_passes(fours, 0.05), CALIBRATION.tango_passes(flat, 0.05)
        bets, whole = CALIBRATION.betting_passes(flat, 0.05), CALIBRATION.betting_passes(fours.mean(axis=2), 0.05)
        for i, row in enumerate(flat):
            before, after = (row < 0).astype(float), (row > 0).astype(float)
            assert together[i] == paired_test(before, after, bound=-0.05, clusters=clusters).passed
            assert alone[i] == noninferiority(int(before.sum()), int(after.sum()), 400, 0.05).passed
            assert bets[i] == (betting(row, 0.05).verdict == "passed")
            assert whole[i] == (betting(row, 0.05, clusters=clusters).verdict == "passed")
            seen |= {together[i], bets[i], whole[i]}
    assert seen == {True, False}


def test_the_figures_that_need_no_draws_are_those_on_the_page() -> None:
    assert "\n".join(CALIBRATION.exact()) in CALIBRATION.current()


# Surface


def test_every_public_name_exists() -> None:
    assert all(getattr(statistics, name).__doc__ for name in statistics.__all__ if name != "Outcome")
