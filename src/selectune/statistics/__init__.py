"""The statistics of a gate: intervals, paired tests, sequential tests and sample sizes. numpy and scipy only.

A measured number is an `Estimate`, with its count and its interval; a claim is a `Test`, which is passed, failed or undecided. Scores of
an old and a new model are always compared on the same items, so every difference here is paired.
"""

from __future__ import annotations

from selectune.statistics.claims import Outcome, Test
from selectune.statistics.intervals import Estimate, bootstrap, correlation, flips, mean, proportion, score
from selectune.statistics.paired import change, mcnemar, p_value_of_change, paired, paired_test, tost
from selectune.statistics.planning import power, sample_size, silent_size
from selectune.statistics.sequential import Betting, betting
from selectune.statistics.several import adjusted, benjamini_hochberg, holm, look_levels
from selectune.statistics.tango import noninferiority, score_interval

__all__ = [
    "Betting",
    "Estimate",
    "Outcome",
    "Test",
    "adjusted",
    "benjamini_hochberg",
    "betting",
    "bootstrap",
    "change",
    "correlation",
    "flips",
    "holm",
    "look_levels",
    "mcnemar",
    "mean",
    "noninferiority",
    "p_value_of_change",
    "paired",
    "paired_test",
    "power",
    "proportion",
    "sample_size",
    "score",
    "score_interval",
    "silent_size",
    "tost",
]
