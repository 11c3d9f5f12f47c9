"""How many items the sequential gate asks, and how often it errs, by simulation; no model is run.

    python benchmarks/gates.py                 under a minute; prints, and writes results/gates.json
    python benchmarks/gates.py --runs 200 --out ''     seconds; prints alone

A suite of 1,000 items is asked in random order. An update loses a share of them and gains a share; the gate bets after every item that the
loss is below the margin, and against it, and stops when either bet wins. The goal is 40 % of the items or fewer on average where the update
is harmless or plainly harmful, while one just at the margin passes no more often than the fixed test lets it: alpha. "Plainly harmful" is a
true loss of twice the margin. Several stakes are set side by side; `selectune.statistics.betting` has the mixture.

What no stake can better stands beside them. Every bet on a mean of bounded differences that a bad update cannot win has the form
prod(1 + s_i (D_i + margin)), so that only the choice of s_i is free. "Best stake, known before" is the one that grows fastest for the very
update that is drawn, which nobody knows. And whatever the test, sequential or not: if such an update passes with chance P, and one at the
margin with chance alpha, it needs kl(P, alpha) / G items or more on average, G the growth of that best stake in nats an item (Wald 1945,
Ann. Math. Stat. 16:117; G is the divergence from the nearest update at the margin).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selectune.statistics import power, sample_size
from selectune.statistics.sequential import STAKES
from selectune.statistics.tango import score_statistics

Floats = NDArray[np.float64]
Stake = Callable[[Floats, float], Floats]

ITEMS, ALPHA, GOAL = 1000, 0.05, 0.40
MARGINS = (0.02, 0.03, 0.05)
GATE_MARGIN = 0.05
"""`recipe.Gate`'s own margin, at which the goal is read."""
RUNS = 1000


def before(values: Floats) -> Floats:
    """Sums over what came before each item."""
    found: Floats = np.concatenate((np.zeros((len(values), 1)), np.cumsum(values, axis=1)[:, :-1]), axis=1)
    return found


def plugged_in(most: float, *, pseudo: float = 0.0) -> Stake:
    """The stake mean / mean square of the past, cut to a share `most` of the largest one; with `pseudo` items as a harmless update has."""

    def capital(gains: Floats, edge: float) -> Floats:
        count = np.maximum(np.arange(gains.shape[1]) + pseudo, 1)
        total, squares = before(gains) / count, before(gains**2) / count
        total, squares = total + pseudo / count * (1 - edge), squares + pseudo / count * 0.06
        stake = np.divide(total, squares, out=np.zeros_like(gains), where=squares > 0)
        found: Floats = np.cumsum(np.log1p(np.clip(stake, 0.0, most / edge) * gains), axis=1)
        return found

    return capital


def newton(most: float) -> Stake:
    """Online Newton steps (Cutkosky and Orabona 2018), cut to a share `most` of the largest stake."""

    def capital(gains: Floats, edge: float) -> Floats:
        stake, curvature = np.zeros(len(gains)), np.ones(len(gains))
        logs = np.empty_like(gains)
        for i, gain in enumerate(gains.T):
            logs[:, i] = np.log1p(stake * gain)
            slope = -gain / (1 + stake * gain)
            curvature += slope**2
            stake = np.clip(stake - 2 / (2 - math.log(3)) * slope / curvature, 0.0, most / edge)
        found: Floats = np.cumsum(logs, axis=1)
        return found

    return capital


def mixture(shares: Sequence[float]) -> Stake:
    """The capital spread evenly over fixed stakes, as shares of the largest one."""

    def capital(gains: Floats, edge: float) -> Floats:
        total = sum(np.exp(np.cumsum(np.log1p(share / edge * gains), axis=1)) for share in shares)
        found: Floats = np.log(total / len(shares))
        return found

    return capital


def best_stake(lost: Any, gained: Any, margin: float) -> Any:
    """The stake on "the mean of D + margin is above 0" that grows fastest where D is -1, 0 and 1 with these shares; 0 where none does.

    It is the smallest positive root of the derivative of E log(1 + s (D + margin)), times what makes it a polynomial.
    """
    low, none, high = margin - 1, margin, margin + 1
    shares = lost * low, (1 - lost - gained) * none, gained * high
    rise = shares[0] + shares[1] + shares[2]
    turn = shares[0] * (none + high) + shares[1] * (low + high) + shares[2] * (low + none)
    bend = low * none * high
    root = (-turn - np.sqrt(np.maximum(turn**2 - 4 * bend * rise, 0.0))) / (2 * bend)
    most = 0.999 / (1 - margin)
    return np.where(rise <= 0, 0.0, np.where((root > 0) & (root < most), root, most))


def growth(lost: float, gained: float, margin: float) -> float:
    """Of that stake's capital, in nats an item."""
    stake = float(best_stake(lost, gained, margin))
    shares = ((lost, margin - 1), (1 - lost - gained, margin), (gained, margin + 1))
    return sum(share * math.log1p(stake * value) for share, value in shares)


def least(change: float, changed: float, margin: float, chance: float) -> float:
    """Items that any test of error `ALPHA` needs on average to decide rightly on such an update with this chance."""
    lost, gained = (changed - change) / 2, (changed + change) / 2
    rate = growth(lost, gained, margin) if change > -margin else growth(gained, lost, -margin)
    apart = chance * math.log(chance / ALPHA) + (1 - chance) * math.log((1 - chance) / (1 - ALPHA))
    return apart / rate


def assumed(gains: Floats, edge: float) -> Floats:
    """The best stake for an update that changes nothing (against harm: that loses twice the margin), the share that changes plugged in."""
    margin = 1 - edge
    mean = 0.0 if margin > 0 else -2 * margin
    seen = before((np.abs(gains - margin) > 0.5).astype(float))
    changed = np.maximum((seen + 1) / (np.arange(gains.shape[1]) + 16), mean)
    found: Floats = np.cumsum(np.log1p(best_stake((changed - mean) / 2, (changed + mean) / 2, margin) * gains), axis=1)
    return found


def known(change: float, changed: float) -> Stake:
    """The best stakes for the very update that is drawn, for and against."""

    def capital(gains: Floats, edge: float) -> Floats:
        mean = change if edge < 1 else -change
        stake = float(best_stake((changed - mean) / 2, (changed + mean) / 2, 1 - edge))
        found: Floats = np.cumsum(np.log1p(stake * gains), axis=1)
        return found

    return capital


METHODS: dict[str, Stake] = {
    "mixture of 16 even stakes": mixture(list(STAKES)),
    "mixture of 8 stakes, each twice the last": mixture([2.0**-k for k in range(8, 0, -1)]),
    "plug-in, up to half": plugged_in(0.5),
    "plug-in, up to 0.9": plugged_in(0.9),
    "plug-in, up to half, with 20 pseudo-items": plugged_in(0.5, pseudo=20),
    "online Newton, up to half": newton(0.5),
    "for no change, share that changes plugged in": assumed,
}


def updates(margin: float) -> dict[str, tuple[float, float]]:
    """Name to the share of items that change, and the true change in the share right."""
    harmful = -2 * margin
    return {
        "harmless, silent": (0.0, 0.0),
        "harmless, 3 % changed": (0.03, 0.0),
        "harmless, 6 % changed": (0.06, 0.0),
        "harmless, 12 % changed": (0.12, 0.0),
        "plainly harmful": (0.03 + 2 * margin, harmful),
        "at the margin, 6 % changed": (0.06, -margin),
        "at the margin, 12 % changed": (0.12, -margin),
    }


def drawn(runs: int, changed: float, change: float, seed: int) -> Floats:
    """Differences [runs, items] of -1, 0 and 1."""
    chance = np.random.default_rng(seed).random((runs, ITEMS))
    lost = (changed - change) / 2
    found: Floats = np.where(chance < lost, -1.0, np.where(chance < changed, 1.0, 0.0))
    return found


def judged(differences: Floats, margin: float, stake: Stake) -> dict[str, float]:
    """Share of the items asked on average, and how often the gate passes and fails."""
    limit = -math.log(ALPHA)
    evidence, harm = stake(differences + margin, 1 - margin), stake(-differences - margin, 1 + margin)
    over = np.maximum(evidence, harm) >= limit
    decided, at = over.any(axis=1), over.argmax(axis=1)
    rows = np.arange(len(differences))
    passed = decided & (evidence[rows, at] >= harm[rows, at])
    asked = np.where(decided, at + 1, ITEMS)
    return {"items": float(asked.mean() / ITEMS), "passed": float(passed.mean()), "failed": float((decided & ~passed).mean())}


def fixed(differences: Floats, margin: float) -> dict[str, float]:
    """Tango's test on all items."""
    lost, gained = (differences < 0).sum(axis=1), (differences > 0).sum(axis=1)
    z, limit = score_statistics(lost, gained, ITEMS, -margin), stats.norm.isf(ALPHA)
    return {"items": 1.0, "passed": float((z >= limit).mean()), "failed": float((z <= -limit).mean())}


def simulate(runs: int) -> dict[str, Any]:
    """Every method on every update at every margin, on the same draws."""
    found: dict[str, Any] = {}
    for margin in MARGINS:
        rows = {}
        for number, (name, (changed, change)) in enumerate(updates(margin).items()):
            differences = drawn(runs, changed, change, number)
            row: dict[str, Any] = {"changed": changed, "change": change, "tango": fixed(differences, margin)}
            row["tango_exact_pass"] = power(margin, changed, ITEMS, change=change, alpha=ALPHA)
            if change == 0:
                row["plan_for_power_.8"] = sample_size(margin, changed, alpha=ALPHA)
            if change != -margin:
                row["best stake, known before"] = judged(differences, margin, known(change, changed))
                row["least items"] = {f"{chance:g}": least(change, changed, margin, chance) for chance in (0.8, 0.95)}
            rows[name] = row | {"methods": {method: judged(differences, margin, stake) for method, stake in METHODS.items()}}
        found[f"{margin:g}"] = rows
    return found


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """At the gate's own margin, for each method: items on harmless and on harmful updates, and the worst error at the margin."""
    rows = found[f"{GATE_MARGIN:g}"]
    lines = {}
    for method in METHODS:
        cells = {name: row["methods"][method] for name, row in rows.items()}
        good = [cell["items"] for name, cell in cells.items() if name.startswith("harmless")]
        lines[method] = {
            "harmless": sum(good) / len(good),
            "harmless, worst": max(good),
            "plainly harmful": cells["plainly harmful"]["items"],
            "error": max(cell["passed"] for name, cell in cells.items() if name.startswith("at the margin")),
        }
    ours = lines["mixture of 16 even stakes"]
    noise = 2 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
    met = max(ours["harmless, worst"], ours["plainly harmful"]) <= GOAL and ours["error"] <= ALPHA + noise
    return {"methods": lines, "goal": GOAL, "met": met}


def show(found: dict[str, Any], summary: dict[str, Any]) -> None:
    """Tables on the screen."""
    for margin, rows in found.items():
        print(f"margin {margin}: share of {ITEMS} items asked / passed / failed")
        print(f"{'':44}" + "".join(f"{name:>30}" for name in rows))
        lines = {"Tango's test on all items": [row["tango"] for row in rows.values()]}
        lines |= {method: [row["methods"][method] for row in rows.values()] for method in METHODS}
        for method, cells in lines.items():
            print(
                f"{method:44}"
                + "".join(f"{cell['items']:>16.0%} / {cell['passed']:.3f} / {cell['failed']:.3f}"[-30:].rjust(30) for cell in cells)
            )
        for name, row in rows.items():
            if "least items" in row:
                best, few = row["best stake, known before"], row["least items"]
                print(f"  {name}: best stake {best['items']:.0%} / {best['passed']:.3f} / {best['failed']:.3f}; ", end="")
                print(f"any test needs {few['0.8']:.0f} items for a chance of 0.8, {few['0.95']:.0f} for 0.95")
    for method, line in summary["methods"].items():
        print(f"{method:44}" + ", ".join(f"{name} {value:.3f}" for name, value in line.items()))
    print(f"goal of {GOAL:.0%} at margin {GATE_MARGIN:g}: {'met' if summary['met'] else 'not met'}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the simulation; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "gates.json"))
    options = parser.parse_args(arguments)
    started = time.monotonic()
    found = simulate(options.runs)
    summary = headline(found)
    result = {"items": ITEMS, "alpha": ALPHA, "runs": options.runs, "summary": summary, "margins": found}
    result["seconds"] = time.monotonic() - started
    show(found, summary)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
