"""Write the measured errors of the tests into docs/reference/statistics.md, between its two marks.

python scripts/build_calibration.py            simulate and write (a minute); the draws are seeded, so the same versions give the same page
python scripts/build_calibration.py --check    exit 1 if the exact figures are not those on the page; simulated ones are not made again
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selectune.evaluation.forgetting import forgetting
from selectune.evaluation.measurement import Measurement, Sample
from selectune.statistics import benjamini_hochberg, bootstrap, change, holm, look_levels, mcnemar, mean, power
from selectune.statistics.paired import WORST_CLUSTERS
from selectune.statistics.sequential import STAKES
from selectune.statistics.tango import score_statistics

Floats = NDArray[np.float64]

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "statistics.md"
BEGIN, END = "<!-- measured by scripts/build_calibration.py -->", "<!-- end of what was measured -->"
EXACT, SIMULATED = "### Summed over all tables", "### Simulated"

ALPHA, MARGIN = 0.05, 0.02
SIZES, CHANGED = (100, 500, 2000), (0.03, 0.12)
ALIKE = 0.6
"""Share of pictures whose four questions all fare alike; those of the others are independent."""


def drawn(rng: np.random.Generator, shape: tuple[int, ...], changed: float, true: float) -> Floats:
    """Independent differences of -1, 0 and 1 with this share of changed items and this true change."""
    chance, lost = rng.random(shape), (changed - true) / 2
    found: Floats = np.where(chance < lost, -1.0, np.where(chance < changed, 1.0, 0.0))
    return found


def in_fours(rng: np.random.Generator, runs: int, pictures: int, changed: float, true: float) -> Floats:
    """The same for four questions on each picture, [runs, pictures, 4], `ALIKE` of them the same for all four."""
    alone = drawn(rng, (runs, pictures, 4), changed, true)
    shared = drawn(rng, (runs, pictures, 1), changed, true)
    found: Floats = np.where(rng.random((runs, pictures, 1)) < ALIKE, shared, alone)
    return found


def tango_passes(differences: Floats, margin: float, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Whether `noninferiority` passes each run of [runs, items]."""
    lost, gained = (differences < 0).sum(axis=1), (differences > 0).sum(axis=1)
    passes: NDArray[np.bool_] = score_statistics(lost, gained, differences.shape[1], -margin) >= stats.norm.isf(alpha)
    return passes


def wald_passes(differences: Floats, margin: float, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Whether the plain normal interval would pass each run: what this package does not do."""
    error = differences.std(axis=1) / math.sqrt(differences.shape[1])
    passes: NDArray[np.bool_] = differences.mean(axis=1) - stats.norm.isf(alpha) * error > -margin
    return passes


def clustered_passes(differences: Floats, margin: float, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Whether `paired_test` with clusters passes each run of [runs, pictures, questions], its formulas written once more for all runs."""
    runs, groups, size = differences.shape
    n = groups * size
    value = differences.mean(axis=(1, 2))
    sums = (differences - value[:, None, None]).sum(axis=2)
    error = np.sqrt(groups / (groups - 1) * (sums**2).sum(axis=1)) / n
    robust = value - stats.t.isf(alpha, groups - 1) * error > -margin
    variance = differences.reshape(runs, n).var(axis=1)
    effect = np.maximum(1.0, error**2 * n / np.where(variance > 0, variance, 1.0))
    changed = (differences != 0).any(axis=2).sum(axis=1)
    share = (changed + WORST_CLUSTERS) / (changed * np.where(variance > 0, effect, size) + WORST_CLUSTERS * size)
    lost, gained = (differences < 0).sum(axis=(1, 2)), (differences > 0).sum(axis=(1, 2))
    passes: NDArray[np.bool_] = robust & (score_statistics(lost * share, gained * share, n * share, -margin) > stats.norm.isf(alpha))
    return passes


def betting_passes(differences: Floats, margin: float, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Whether `betting` passes each run of [runs, bets] at any time before it fails; of clusters the means, as all have one size."""
    won: Floats = differences + margin
    up = np.log(np.mean([np.exp(np.cumsum(np.log1p(stake / (1 - margin) * won), axis=1)) for stake in STAKES], axis=0))
    down = np.log(np.mean([np.exp(np.cumsum(np.log1p(-stake / (1 + margin) * won), axis=1)) for stake in STAKES], axis=0))
    limit = -math.log(alpha)
    over = np.maximum(up, down) >= limit
    first, rows = over.argmax(axis=1), np.arange(len(won))
    passes: NDArray[np.bool_] = over.any(axis=1) & (up[rows, first] >= down[rows, first])
    return passes


def row(*cells: object) -> str:
    """A line of a table."""
    return "|" + "|".join(f" {cell} " for cell in cells) + "|"


def table(*headings: str) -> list[str]:
    """The beginning of a table."""
    return ["", row(*headings), "|" + "--|" * len(headings)]


def exact() -> list[str]:
    """Figures without chance: seconds."""
    lines = [
        EXACT,
        "",
        f"Tango's test at a margin of {MARGIN:g}, alpha {ALPHA:g}: how often it passes an update that loses just the margin.",
    ]
    lines += table("items", *(f"{share:.0%} changed" for share in CHANGED))
    lines += [row(n, *(f"{power(MARGIN, share, n, change=-MARGIN):.4f}" for share in CHANGED)) for n in SIZES]
    lines += ["", "And how often it passes one that loses nothing, beside the figures of the plan's own simulation."]
    lines += table("changed", "items", "power", "planned with")
    for share, n, planned in ((0.06, 500, 0.56), (0.06, 1000, 0.81), (0.06, 2000, 0.97), (0.12, 2000, 0.82)):
        lines.append(row(f"{share:.0%}", f"{n:,}", f"{power(MARGIN, share, n):.3f}", planned))
    lines += ["", "McNemar's mid-p (two-sided) at 0.05 where an item is as likely lost as gained, and the exact form."]
    lines += table("changed items", "mid-p", "exact")
    for count in (10, 20, 50, 200):
        chances = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        errors = [
            sum(float(p) for lost, p in enumerate(chances) if mcnemar(lost, count - lost, method=m) <= 0.05) for m in ("mid-p", "exact")
        ]
        lines.append(row(count, *(f"{error:.4f}" for error in errors)))
    lines += ["", "One-sided levels of four even looks at one update's growing items, alpha 0.05."]
    lines += table("spending", "first", "second", "third", "fourth")
    lines += [row(how, *(f"{level:.5f}" for level in look_levels(0.05, 4, how))) for how in ("bonferroni", "pocock", "obrien-fleming")]
    return lines


def simulated() -> list[str]:
    """Figures by seeded draws, each with its standard error: a minute."""
    return [SIMULATED, *_noninferiority(), *_looks(), *_several(), *_intervals(), *_hierarchical()]


def _noninferiority(runs: int = 4000) -> list[str]:
    about = f"How often an update that loses just the margin of {MARGIN:g} passes at alpha {ALPHA:g}"
    lines = ["", f"{about}, {runs:,} runs (standard error about 0.003)."]
    lines += table(
        "items",
        "changed",
        "plain normal interval",
        "Tango",
        "four a picture: Tango as if independent",
        "four a picture: clustered",
        "betting",
        "four a picture: betting",
    )
    for n in SIZES:
        for share in CHANGED:
            rng = np.random.default_rng([n, round(100 * share)])
            single, fours = drawn(rng, (runs, n), share, -MARGIN), in_fours(rng, runs, n // 4, share, -MARGIN)
            cells = [wald_passes(single, MARGIN), tango_passes(single, MARGIN), tango_passes(fours.reshape(runs, -1), MARGIN)]
            cells += [clustered_passes(fours, MARGIN), betting_passes(single, MARGIN), betting_passes(fours.mean(axis=2), MARGIN)]
            lines.append(row(f"{n:,}", f"{share:.0%}", *(f"{cell.mean():.3f}" for cell in cells)))
    return lines


def _looks(runs: int = 40_000) -> list[str]:
    rng = np.random.default_rng(1)
    z = np.cumsum(rng.normal(size=(runs, 4)), axis=1) / np.sqrt(np.arange(1, 5))
    lines = ["", f"Four looks at one update's growing items, {runs:,} runs: how often any look errs at a total of 0.05."]
    lines += table("levels", "any look errs")
    lines.append(row("0.05 each time", f"{(z > stats.norm.isf(0.05)).any(axis=1).mean():.4f}"))
    for how in ("bonferroni", "pocock", "obrien-fleming"):
        lines.append(row(how, f"{(z > stats.norm.isf(look_levels(0.05, 4, how))).any(axis=1).mean():.4f}"))
    return lines


def _several(runs: int = 2000) -> list[str]:
    rng = np.random.default_rng(2)
    lines = ["", f"Ten tasks of which three changed by three standard errors, {runs:,} runs, at 0.05."]
    lines += table("correction", "any false alarm", "share of false ones among alarms", "real changes seen")
    truth = np.arange(10) < 3
    p = 2 * stats.norm.sf(np.abs(rng.normal(size=(runs, 10)) + 3.0 * truth))
    corrections: dict[str, Callable[[Floats], Floats]] = {
        "none": lambda values: values,
        "holm": lambda values: np.array(holm(values)),
        "benjamini-hochberg": lambda values: np.array(benjamini_hochberg(values)),
    }
    for name, correct in corrections.items():
        alarms = np.array([correct(values) <= 0.05 for values in p])
        false, total = (alarms & ~truth).sum(axis=1), alarms.sum(axis=1)
        seen = (alarms & truth).sum(axis=1).mean() / 3
        lines.append(row(name, f"{(false > 0).mean():.3f}", f"{(false / np.maximum(total, 1)).mean():.3f}", f"{seen:.3f}"))
    return lines


def _intervals(runs: int = 400) -> list[str]:
    lines = ["", f"How often a 95 % interval holds the true value, {runs} runs (standard error about 0.011)."]
    lines += table("what", "interval", "covers")
    cases: list[tuple[str, str, Callable[[np.random.Generator], tuple[float, float]], float]] = [
        ("mean of 25 skewed values (exponential)", "t", lambda rng: _pair(mean(rng.exponential(size=25))), 1.0),
        ("the same", "BCa", lambda rng: _pair(bootstrap(rng.exponential(size=25), draws=2000)), 1.0),
        ("change of 200 scores, 5 % lost, 2 % gained", "Tango", lambda rng: _change(rng, 200), -0.03),
        ("change of 25 scores of the same kind", "Tango", lambda rng: _change(rng, 25), -0.03),
    ]
    for number, (what, interval, make, true) in enumerate(cases):
        rng = np.random.default_rng([3, number])
        covered = [low <= true <= high for low, high in (make(rng) for _ in range(runs))]
        lines.append(row(what, interval, f"{np.mean(covered):.3f}"))
    return lines


def _pair(estimate: object) -> tuple[float, float]:
    return estimate.low, estimate.high  # type: ignore[attr-defined]


def _change(rng: np.random.Generator, n: int) -> tuple[float, float]:
    differences = drawn(rng, (n,), 0.07, -0.03)
    return _pair(change((differences < 0).astype(float), (differences > 0).astype(float)))


def _hierarchical(runs: int = 300) -> list[str]:
    lines = [
        "",
        f"The 95 % interval of held-out forgetting over seeds, 200 items in clusters of two, {runs} runs (standard error about 0.013).",
    ]
    lines += table("runs (seeds)", "spread between seeds, points", "covers")
    for seeds in (1, 3, 5, 10):
        for spread in (0.0, 0.05):
            rng = np.random.default_rng([4, seeds, round(100 * spread)])
            covered = 0
            for _ in range(runs):
                found = forgetting(_runs(rng, seeds, spread), ["t"], ["h"], draws=400)["held_out_forgetting"]
                covered += found.low <= -0.1 <= found.high
            lines.append(row(seeds, f"{100 * spread:g}", f"{covered / runs:.3f}"))
    return lines


def _runs(rng: np.random.Generator, seeds: int, spread: float) -> list[list[Measurement]]:
    """Runs in which items of one difficulty each are right with a chance of about 0.8 before and 0.7 after, give or take the seed."""
    hardness = np.repeat(rng.random(100), 2)
    before = (hardness < 0.8).astype(float)
    runs = []
    for _ in range(seeds):
        after = np.clip(0.7 + rng.normal(0, spread), 0, 1)
        runs.append(
            [
                _measured("base", before),
                _measured("t", np.where(rng.random(200) < 0.5, hardness < after, np.repeat(rng.random(100), 2) < after)),
            ]
        )
    return runs


def _measured(stage: str, scores: Floats) -> Measurement:
    def samples(task: str) -> list[Sample]:
        return [
            Sample(task=task, id=str(i), cluster=str(i // 2), prompt_digest="", output="", reference="", score=float(score))
            for i, score in enumerate(scores)
        ]

    return Measurement(stage=stage, model_id=stage, suite="", samples=tuple(samples("t") + samples("h")), seconds=0.0)


def current() -> str:
    """What stands between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def main() -> int:
    """Write the figures, or with ``--check`` see whether the exact ones are current."""
    made = "\n".join(exact())
    if sys.argv[1:] == ["--check"]:
        if made in current():
            return 0
        print(f"{PAGE} is not current: python {' '.join(sys.argv[:1])}")
        return 1
    text = PAGE.read_text(encoding="utf-8")
    body = f"{BEGIN}\n{made}\n\n" + "\n".join(simulated()) + f"\n{END}"
    PAGE.write_text(text[: text.index(BEGIN)] + body + text[text.index(END) + len(END) :], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
