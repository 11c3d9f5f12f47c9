"""Scorers of longer texts by the n-grams that they share with references: BLEU by sacrebleu, CIDEr-D by pycocoevalcap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selectune.errors import DataError
from selectune.evaluation.scorers.reference import Reference, Scorer
from selectune.evaluation.scorers.text import words

CIDER_SCALE = 10.0
"""pycocoevalcap's CIDEr-D of one text lies between 0 and this."""


def bleu(output: str, reference: Reference) -> float:
    """Sentence BLEU over 100, by sacrebleu: up to four-grams, as long as the text has some, with exponential smoothing.

    The mean over a task is no corpus BLEU, which pools the counts of all sentences before it divides; it is what can be paired by sample.
    Source: Papineni et al. (2002); Post (2018), arXiv 1804.08771.
    """
    import sacrebleu

    found = sacrebleu.sentence_bleu(output, list(reference.answers), use_effective_order=True)
    return min(1.0, max(0.0, found.score / 100))


def cider(references: Sequence[Reference]) -> Scorer:
    """A scorer by CIDEr-D over 10, for a task with these references.

    What a word is worth (its inverse document frequency) comes from the task's references alone, never from what a model wrote. So a
    sample's score depends on its own output only, samples of two models pair, and ten times the mean is the task's CIDEr-D as
    pycocoevalcap gives it for the same words. Words are those of `f1`, in place of the Java tokenizer that published figures go through.
    Raises DataError for fewer than two references: every word would be worth nothing. Source: Vedantam et al. (2015), arXiv 1411.5726.
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

    if len(references) < 2:
        then = "Give two records or more, or use the scorer f1."
        raise DataError(f"CIDEr needs several references, and there are {len(references)}", where="scorer", then=then)
    corpus = CiderScorer(n=4, sigma=6.0)
    for reference in references:
        corpus.cook_append(None, _worded(reference))
    corpus.compute_doc_freq()

    def score(output: str, reference: Reference) -> float:
        one: Any = CiderScorer(n=4, sigma=6.0)
        one.document_frequency = corpus.document_frequency
        # It takes the number of references from the list's length, and the pairs from the shorter of the two.
        one.ctest, one.crefs = [cook_test(" ".join(words(output)))], [cook_refs(_worded(reference)), *corpus.crefs[1:]]
        return min(1.0, max(0.0, float(one.compute_cider()[0]) / CIDER_SCALE))

    return score


def _worded(reference: Reference) -> list[str]:
    return [" ".join(words(answer)) for answer in reference.answers]
