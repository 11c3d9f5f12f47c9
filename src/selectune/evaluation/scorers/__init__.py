"""How an answer is scored: pure functions from what the model wrote and what was right to a score in [0, 1].

A recipe names a scorer by its key in `SCORERS` or `OVER_TASK`; Python users may give a function of their own. Where a reference has several
answers, the best one counts. A scorer reads what the answer says, not how it is put: "sixteen" is 16, "option C" is C, "five past twelve"
is 12:05. Only `vqa`, `anls` and `relaxed` keep to a published formula first; docs/reference/scorers.md lists every known difference from
other packages.
"""

from selectune.evaluation.scorers.answers import find_yes_no
from selectune.evaluation.scorers.letters import find_letter
from selectune.evaluation.scorers.naming import OVER_TASK, SCORERS, check_scorer, scorer, scorer_name
from selectune.evaluation.scorers.numbers import find_final_number, find_number
from selectune.evaluation.scorers.reference import Reference, Scorer, letters, normalise
from selectune.evaluation.scorers.text import f1, words

__all__ = [
    "OVER_TASK",
    "SCORERS",
    "Reference",
    "Scorer",
    "check_scorer",
    "f1",
    "find_final_number",
    "find_letter",
    "find_number",
    "find_yes_no",
    "letters",
    "normalise",
    "scorer",
    "scorer_name",
    "words",
]
