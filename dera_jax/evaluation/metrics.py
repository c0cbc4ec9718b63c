"""Numbers about texts, and how sure we are of them."""

from collections.abc import Sequence

import numpy as np
from rouge_score import rouge_scorer

ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge(references: Sequence[str], texts: Sequence[str]) -> dict[str, list[float]]:
    """F1 of ROUGE-1, -2 and -L of each pair, times 100, without stemming (as in T5)."""
    scorer = rouge_scorer.RougeScorer(ROUGE)
    scores = [scorer.score(*pair) for pair in zip(references, texts, strict=True)]
    return {name: [100 * score[name].fmeasure for score in scores] for name in ROUGE}


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Share of different n-grams of words among all n-grams of the texts (Li et al. 2016).

    It falls as the texts grow in number and length: compare equal numbers of texts only.
    """
    ngrams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def repetition(text: str, n: int = 2) -> float:
    """Share of a text's n-grams of words that it has had before."""
    ngrams = _ngrams(text, n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def mean_interval(values: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % confidence interval (None for a single document).

    Samples of one document are not independent, so the spread is that between documents.

    Args:
        values: for each document, the values of its samples (equally many).
    """
    per_document = np.mean(np.asarray(values, np.float64), axis=1)
    if len(per_document) < 2:
        return float(per_document.mean()), None
    error = per_document.std(ddof=1) / np.sqrt(len(per_document))
    return float(per_document.mean()), float(1.96 * error)
