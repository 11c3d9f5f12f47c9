"""The gate's rules: what passes, what fails, what stays undecided, and what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectune.errors import DataError, InputError
from selectune.evaluation.measurement import Measurement, Sample
from selectune.gates import Evidence, Rule, Verdict, decide, guarded_tasks, overall, unsettled
from selectune.recipe import Data, Gate, HeldOut
from selectune.statistics import betting, noninferiority, paired_test, proportion, silent_size


def measured(stage: str, tasks: Mapping[str, Sequence[float]], *, size: int = 1) -> Measurement:
    """A measurement with these scores, `size` samples to a cluster."""
    samples = tuple(
        Sample(
            task=task, id=f"{task} {i}", cluster=f"{task} image {i // size}", prompt_digest="asked", output="", reference="", score=score
        )
        for task, scores in tasks.items()
        for i, score in enumerate(scores)
    )
    return Measurement(stage=stage, model_id=stage, suite="suite", samples=samples, seconds=0.0)


def right(count: int, n: int = 200) -> list[float]:
    return [1.0] * count + [0.0] * (n - count)


def guarded(name: str, margin: float | None = None) -> HeldOut:
    return HeldOut(name=name, test=Data(source="records.jsonl"), margin=margin)


def first_update(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], *, size: int = 1) -> Evidence:
    base = measured("base", before, size=size)
    return Evidence(before=base, anchor=base, after=measured("digits", after, size=size))


def judge(before: int, after: int, n: int = 200, *, gate: Gate | None = None, margin: float | None = None) -> Rule:
    """The held-out rule of one update, where `before` and `after` of `n` shapes were right."""
    evidence = first_update({"digits": right(10), "shapes": right(before, n)}, {"digits": right(190), "shapes": right(after, n)})
    target, rule = decide("digits", evidence, gate or Gate(), [guarded("shapes", margin)]).rules
    assert target.verdict == "passed"
    return rule


def test_an_update_that_learns_and_keeps_the_rest_passes() -> None:
    evidence = first_update({"digits": right(20), "shapes": right(180)}, {"digits": right(120), "shapes": right(178)})
    found = decide("digits", evidence, Gate(), [guarded("shapes")])
    assert (found.skill, found.verdict) == ("digits", "passed")
    assert [(rule.name, rule.task, rule.against, rule.verdict) for rule in found.rules] == [
        ("target_improved", "digits", "base", "passed"),
        ("held_out_kept", "shapes", "base", "passed"),
    ]


def test_a_rule_carries_tangos_numbers_and_says_them() -> None:
    rule, test = judge(180, 176), noninferiority(4, 0, 200, 0.05)
    assert (rule.value, rule.low, rule.high, rule.bound, rule.n) == (test.value, test.low, test.high, -0.05, 200)
    assert (rule.lost, rule.gained, rule.method, rule.needed) == (4, 0, "Tango", None)
    assert rule.evidence == (
        "shapes was kept: 4 of 200 items lost and 0 gained against the base, a change of -2.0 points; "
        f"at worst {100 * test.low:+.1f} points at 95 % confidence, above the limit of -5.0 points."
    )


def test_harm_that_is_shown_fails() -> None:
    rule = judge(180, 100)
    assert rule.verdict == "failed"
    assert rule.high < -0.05
    assert rule.evidence.startswith(
        "shapes was harmed: 80 of 200 items lost and 0 gained against the base, a change of -40.0 points; at best"
    )


def test_a_loss_around_the_margin_is_undecided_and_names_the_items_that_would_settle_it() -> None:
    rule = judge(180, 172)
    assert rule.verdict == "undecided"
    assert rule.needed is not None
    assert rule.needed > 200
    assert rule.evidence.endswith(f"around the limit of -5.0 points; about {rule.needed:,} items would settle it at the rates seen.")


def test_a_loss_of_just_the_margin_cannot_be_settled() -> None:
    rule = judge(180, 170)
    assert (rule.verdict, rule.needed) == ("undecided", None)
    assert "no number of items would settle it" in rule.evidence


def test_a_task_with_a_margin_of_its_own_is_judged_by_it() -> None:
    assert judge(180, 172, margin=0.10).verdict == "passed"
    assert judge(180, 172, margin=0.10).bound == -0.10
    assert judge(180, 172, gate=Gate(margin=0.10)).verdict == "passed"


def test_a_silent_update_needs_133_items_for_a_margin_of_two_points() -> None:
    assert judge(100, 100, 132, margin=0.02).verdict == "undecided"
    assert judge(100, 100, 132, margin=0.02).needed == 133
    assert judge(100, 100, 133, margin=0.02).verdict == "passed"


def test_a_skill_that_did_not_get_better_is_undecided_and_one_that_got_worse_failed() -> None:
    for after, verdict in [(20, "undecided"), (22, "undecided"), (2, "failed"), (60, "passed")]:
        evidence = first_update({"digits": right(20), "shapes": right(180)}, {"digits": right(after), "shapes": right(180)})
        assert decide("digits", evidence, Gate(), [guarded("shapes")]).verdict == verdict


def test_a_gain_must_clear_the_least_gain_with_its_lower_bound() -> None:
    evidence = first_update({"digits": right(20)}, {"digits": right(60)})
    verdicts = [decide("digits", evidence, Gate(min_gain=gain), []).verdict for gain in (0.0, 0.14, 0.2, 0.4)]
    assert verdicts == ["passed", "passed", "undecided", "failed"]


def second_update(shapes: tuple[int, int, int], digits: tuple[int, int, int] = (10, 150, 150)) -> Verdict:
    """The verdict on flags, taught after digits; counts right at the base, after digits and after flags."""
    base, previous, after = (
        measured(stage, {"digits": right(digits[k]), "flags": right(flags), "shapes": right(shapes[k])})
        for k, (stage, flags) in enumerate([("base", 10), ("digits", 12), ("flags", 150)])
    )
    evidence = Evidence(before=previous, anchor=base, after=after, learned={"digits": previous})
    return decide("flags", evidence, Gate(), [guarded("shapes")])


def test_a_later_update_is_judged_against_the_stage_before_the_base_and_what_was_learned() -> None:
    found = second_update((180, 179, 178))
    assert [(rule.name, rule.task, rule.against) for rule in found.rules] == [
        ("target_improved", "flags", "previous"),
        ("target_improved", "flags", "base"),
        ("held_out_kept", "shapes", "previous"),
        ("held_out_kept", "shapes", "base"),
        ("learned_kept", "digits", "digits"),
    ]
    assert found.verdict == "passed"
    assert 'against the stage before, "digits", a change of' in found.rules[0].evidence
    assert 'against stage "digits", which taught it, a change of' in found.rules[4].evidence


def test_small_losses_that_add_up_are_stopped_by_the_base() -> None:
    found = second_update((180, 174, 164))
    verdicts = {rule.against: rule.verdict for rule in found.rules if rule.name == "held_out_kept"}
    assert verdicts == {"previous": "undecided", "base": "failed"}
    creeping = second_update((180, 172, 170))
    verdicts = {rule.against: rule.verdict for rule in creeping.rules if rule.name == "held_out_kept"}
    assert verdicts == {"previous": "passed", "base": "undecided"}
    assert creeping.verdict == "undecided"


def test_a_skill_learned_before_must_not_be_forgotten() -> None:
    found = second_update((180, 180, 180), digits=(10, 150, 60))
    failed = [rule for rule in found.rules if rule.verdict == "failed"]
    assert [(rule.name, rule.task, rule.bound) for rule in failed] == [("learned_kept", "digits", -0.05)]
    assert failed[0].evidence.startswith("digits was partly forgotten")
    assert found.verdict == "failed"


def test_questions_on_one_image_count_as_the_image() -> None:
    before, after = {"digits": right(20, 120), "shapes": right(110, 120)}, {"digits": right(90, 120), "shapes": right(110, 120)}
    alone = decide("digits", first_update(before, after), Gate(), [guarded("shapes")])
    together = decide("digits", first_update(before, after, size=5), Gate(), [guarded("shapes")])
    assert alone.verdict == "passed"
    assert together.verdict == "undecided"
    # A silent update needs 52 images for five points, more than the 30 that the plan asks for.
    assert together.rules[1].needed is not None
    assert 5 * (silent_size(0.05) - 1) < together.rules[1].needed <= 5 * silent_size(0.05)
    assert "only 24 independent items, and the plan asks for 30" in together.rules[1].evidence


def test_log_likelihoods_are_judged_in_nats() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(-2.5, 0.5, size=60)
    evidence = first_update(
        {"digits": right(20), "text": list(before)}, {"digits": right(90), "text": list(before - 0.1 + rng.normal(0, 0.1, size=60))}
    )
    rules = [decide("digits", evidence, Gate(), [guarded("text", margin)]).rules[1] for margin in (0.05, 0.1, 0.3)]
    assert [rule.verdict for rule in rules] == ["failed", "undecided", "passed"]
    assert "above the limit of -0.3." in rules[2].evidence
    assert rules[0].lost > rules[0].gained


def test_an_f1_is_judged_by_the_bound_of_its_differences() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(0.2, 0.8, size=150)
    after = before + rng.normal(0, 0.02, size=150)
    evidence = first_update({"digits": right(20), "captions": list(before)}, {"digits": right(90), "captions": list(after)})
    rule = decide("digits", evidence, Gate(), [guarded("captions")]).rules[1]
    test = paired_test(before, after, bound=-0.05)
    assert (rule.verdict, rule.low, rule.high) == ("passed", test.low, test.high)


# Stopping early


def part_of(measurement: Measurement, task: str, count: int) -> Measurement:
    """The measurement as if only the first samples of a task had been asked."""
    kept = [sample for sample in measurement.samples if sample.task == task][:count]
    samples = tuple(sample for sample in measurement.samples if sample.task != task) + tuple(kept)
    return replace(measurement, samples=samples)


def early(lost: int, seen: int, n: int = 400, *, size: int = 1, gate: Gate | None = None) -> Verdict:
    """The verdict after `seen` of `n` shapes, `lost` of the first of which were lost."""
    whole = first_update(
        {"digits": right(10), "shapes": [1.0] * n}, {"digits": right(190), "shapes": [0.0] * lost + [1.0] * (n - lost)}, size=size
    )
    return decide("digits", replace(whole, after=part_of(whole.after, "shapes", seen)), gate or Gate(early=20), [guarded("shapes")])


def test_an_early_gate_bets_on_the_items_seen_so_far() -> None:
    found = early(0, 100)
    rule, bet = found.rules[1], betting([0.0] * 100, 0.05)
    assert (found.verdict, rule.verdict, rule.method) == ("passed", "passed", "betting")
    assert (rule.n, rule.planned, rule.low, rule.high) == (100, 400, bet.low, bet.high)
    assert "asked 100 of 400 in random order; at worst" in rule.evidence
    assert "at 95 % confidence however often one looks, above the limit of -5.0 points." in rule.evidence
    assert found.rules[0].planned is None
    assert unsettled(found) == ()


def test_an_early_gate_asks_on_while_a_guarded_task_is_open_and_no_rule_has_failed() -> None:
    assert unsettled(early(0, 40)) == ("shapes",)
    failed = early(30, 60)
    assert failed.rules[1].verdict == "failed"
    assert "at best" in failed.rules[1].evidence
    assert unsettled(failed) == ()


def test_an_early_gate_that_ran_to_the_end_may_be_undecided_and_names_the_items_that_would_settle_it() -> None:
    rule = early(12, 400).rules[1]
    assert (rule.n, rule.planned) == (400, 400)
    if rule.verdict == "undecided":
        assert rule.needed is not None
        assert rule.needed > 400
    open_ = early(4, 60).rules[1]
    assert open_.verdict == "undecided"
    assert "items would settle it at the rates seen" in open_.evidence


def test_an_early_gate_passes_nothing_before_its_least_number_of_items() -> None:
    assert early(0, 100, gate=Gate(early=20, min_n=150)).rules[1].verdict == "undecided"
    assert early(0, 160, gate=Gate(early=20, min_n=150)).rules[1].verdict == "passed"


def test_an_early_gate_bets_on_whole_pictures() -> None:
    alone, fours = early(0, 100).rules[1], early(0, 100, size=4).rules[1]
    assert (alone.verdict, fours.verdict) == ("passed", "undecided")
    assert fours.method == "betting, clusters of up to 4"


def test_log_likelihoods_and_the_skill_itself_are_never_stopped_early() -> None:
    evidence = first_update(
        {"digits": right(10), "shapes": right(50), "text": [-1.0] * 50}, {"digits": right(99), "shapes": right(50), "text": [-1.0] * 50}
    )
    assert guarded_tasks("digits", evidence, [guarded("shapes"), guarded("text")]) == ("shapes",)


def test_allowed_looks_share_alpha() -> None:
    rule = judge(180, 176, gate=Gate(looks=5))
    test = noninferiority(4, 0, 200, 0.05, alpha=0.01)
    assert (rule.low, rule.high, rule.verdict) == (test.low, test.high, test.verdict)
    assert "at 99 % confidence" in rule.evidence


# Noise


def noisy(after: int, flipping: int) -> Rule:
    evidence = first_update({"digits": right(10), "shapes": right(180)}, {"digits": right(190), "shapes": right(after)})
    floor = proportion(flipping, 200, method="exact")
    return decide("digits", replace(evidence, noise={"shapes": floor}), Gate(), [guarded("shapes")]).rules[1]


def test_a_loss_is_said_to_be_within_or_above_the_noise_floor() -> None:
    within, above = noisy(176, 5), noisy(176, 2)
    assert within.noise == 0.025
    assert within.evidence.endswith("That loss is within the noise floor: 2.5 % of items flip between two measurements of the base alone.")
    assert "That loss is above the noise floor: 1.0 % of items flip" in above.evidence
    assert within.verdict == above.verdict == judge(180, 176).verdict, "the noise floor changes no verdict"
    assert "noise" not in noisy(182, 5).evidence, "a gain is no loss"


def test_the_worst_rule_decides() -> None:
    assert overall(["passed", "passed"]) == "passed"
    assert overall(["passed", "undecided"]) == "undecided"
    assert overall(["undecided", "failed", "passed"]) == "failed"
    assert overall([]) == "undecided"


@given(st.integers(30, 150), st.integers(0, 150), st.integers(0, 150), st.sampled_from([0.02, 0.05, 0.1]))
def test_a_held_out_rule_passes_only_above_and_fails_only_below_its_limit(n: int, before: int, after: int, margin: float) -> None:
    rule = judge(min(before, n), min(after, n), n, margin=margin)
    assert rule.low <= rule.value <= rule.high
    if rule.verdict == "passed":
        assert rule.low >= -margin - 1e-9
    elif rule.verdict == "failed":
        assert rule.high <= -margin + 1e-9
    else:
        assert rule.low < -margin + 1e-9 < rule.high + 2e-9


def test_a_verdict_as_json_has_every_number_of_every_rule() -> None:
    body = json.loads(json.dumps(second_update((180, 179, 178)).to_json(), allow_nan=False))
    assert list(body) == ["skill", "verdict", "rules"]
    fields = {"name", "task", "against", "value", "low", "high", "bound", "n", "lost", "gained", "verdict", "evidence", "method", "needed"}
    fields |= {"planned", "noise"}
    assert all(set(rule) == fields for rule in body["rules"])


def test_a_bound_that_is_infinite_is_null_in_json() -> None:
    evidence = first_update({"digits": right(5, 10), "text": [-1.0]}, {"digits": right(9, 10), "text": [-1.0]})
    rule = decide("digits", evidence, Gate(), [guarded("text")]).rules[1]
    assert rule.to_json()["low"] is None
    assert rule.verdict == "undecided"


def test_measurements_of_other_samples_are_refused() -> None:
    missing = first_update({"digits": right(5), "shapes": right(5)}, {"digits": right(5), "shapes": right(5, 150)})
    with pytest.raises(DataError, match="50 sample ids are in one only"):
        decide("digits", missing, Gate(), [guarded("shapes")])
    with pytest.raises(DataError, match='task "clocks" was not measured'):
        decide("digits", missing, Gate(), [guarded("clocks")])


def test_a_skill_that_is_held_out_too_is_refused() -> None:
    with pytest.raises(InputError, match='"digits" is both taught and held out'):
        decide("digits", first_update({"digits": right(5)}, {"digits": right(9)}), Gate(), [guarded("digits")])


def test_the_gate_the_matrix_and_the_statistics_need_no_torch() -> None:
    code = "import sys, selectune.gates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
