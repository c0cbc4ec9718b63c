"""Computes the diversity and the repetition of texts from their word n-grams."""

import unicodedata
from collections.abc import Sequence

from dera_jax.rewards.segmentation import split_at_spaces


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = split_at_spaces(unicodedata.normalize("NFC", text.lower()))
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Returns distinct-n, the fraction of distinct n-grams among all of the texts (Li et al. 2016).

    Words are separated by white space; in scripts without spaces each character is a word.
    Distinct-n falls with number and length of texts, so only compare equal numbers of texts.
    """
    ngrams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def repetition(text: str, n: int = 2) -> float:
    """Returns the fraction of a text's n-grams, as in `distinct_n`, that occur earlier in it."""
    ngrams = _ngrams(text, n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
