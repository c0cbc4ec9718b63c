"""Metrics, by hand."""

import numpy as np
import pytest

from dera_jax.evaluation import metrics


def test_rouge_by_hand():
    scores = metrics.rouge(["the cat sat"], ["the cat ran off"])
    # Two of three and two of four words; one of two and one of three pairs of words.
    assert scores["rouge1"][0] == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert scores["rouge2"][0] == pytest.approx(100 * 2 * 1 / (2 + 3))
    assert scores["rougeL"][0] == pytest.approx(100 * 2 * 2 / (3 + 4))


def test_distinct_and_repetition_by_hand():
    assert metrics.distinct(["a b a b", "a b"]) == pytest.approx(2 / 4)
    assert metrics.repetition("a b a b") == pytest.approx(1 / 3)
    assert metrics.repetition("word") == 0 and metrics.distinct([""]) == 0


def test_interval_covers_the_mean_as_often_as_it_says():
    """Samples within a document share its mean: 95 of 100 intervals hold the truth, about."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        documents = rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 8))
        mean, half = metrics.mean_interval(documents)
        hits += abs(mean) < half
    assert 0.92 < hits / 400 < 0.975


def test_one_document_has_no_interval():
    assert metrics.mean_interval([[1.0, 2.0]]) == (1.5, None)
