"""Numbers about texts, and how sure we are of them."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from rouge_score import rouge_scorer
from rouge_score.tokenizers import Tokenizer

from dera_jax.log import warn_once
from dera_jax.rewards.segmentation import split_at_spaces, words_of

ROUGE = ("rouge1", "rouge2", "rougeL")


class RougeWords(Tokenizer):
    """The words that ROUGE counts: those of `segmentation`, divided at "_" too.

    On ASCII text they are those of rouge-score's own tokenizer, which knows no other letters.
    """

    def tokenize(self, text: str) -> list[str]:
        return [part for word in words_of(text) for part in word.split("_") if part]


def rouge(references: Sequence[str], texts: Sequence[str]) -> dict[str, list[float]]:
    """F1 of ROUGE-1, -2 and -L of each pair, times 100, without stemming (as in T5).

    In scripts without spaces the words are characters, see `rewards.segmentation`. A pair of which
    one text has no word scores 0, which is no measurement where it is the reference: a warning
    tells how many there are.
    """
    _warn_of_wordless(references, texts)
    scorer = rouge_scorer.RougeScorer(ROUGE, tokenizer=RougeWords())
    scores = [scorer.score(*pair) for pair in zip(references, texts, strict=True)]
    return {name: [100 * score[name].fmeasure for score in scores] for name in ROUGE}


def _warn_of_wordless(references: Sequence[str], texts: Sequence[str]) -> None:
    without = lambda group: sum(not any(map(str.isalnum, x)) for x in group)
    if count := without(references):
        warn_once(
            f"ROUGE is not defined for {count} of {len(references)} references, which have no word "
            "(no letter and no digit): they count as 0. Leave them out, or do not read ROUGE here."
        )
    if count := without(texts):
        warn_once(
            f"{count} of {len(texts)} texts have no word (no letter and no digit): their ROUGE and "
            "faithfulness count as 0."
        )


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = split_at_spaces(unicodedata.normalize("NFC", text.lower()))
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Share of different n-grams of words among all n-grams of the texts (Li et al. 2016).

    Words are what spaces divide, in scripts without spaces the characters. It falls as the texts
    grow in number and length: compare equal numbers of texts only.
    """
    ngrams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def repetition(text: str, n: int = 2) -> float:
    """Share of a text's n-grams of words, as in `distinct`, that it has had before."""
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
