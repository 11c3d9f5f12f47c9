"""The statistics of a gate: intervals, paired tests, sequential tests and sample sizes. numpy and scipy only.

A measured number is an `Estimate`, with its count and its interval; a claim is a `Test`, which is passed, failed or undecided. Scores of
an old and a new model are always compared on the same items, so every difference here is paired.
"""

from __future__ import annotations

from selectune.statistics.intervals import Estimate, bootstrap, correlation, flips, mean, proportion, score
from selectune.statistics.paired import Outcome, Test, change, mcnemar, noninferiority, paired, paired_test, score_interval, tost
from selectune.statistics.planning import holm, sample_size, silent_size
from selectune.statistics.sequential import Betting, betting

__all__ = [
    "Betting",
    "Estimate",
    "Outcome",
    "Test",
    "betting",
    "bootstrap",
    "change",
    "correlation",
    "flips",
    "holm",
    "mcnemar",
    "mean",
    "noninferiority",
    "paired",
    "paired_test",
    "proportion",
    "sample_size",
    "score",
    "score_interval",
    "silent_size",
    "tost",
]
