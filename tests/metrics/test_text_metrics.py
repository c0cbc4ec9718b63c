"""Metrics, by hand."""

import logging as python_logging
import string

import numpy as np
import pytest
from rouge_score import rouge_scorer

from dera_jax import log
from dera_jax.metrics import intervals, ngrams, rouge


def test_rouge_by_hand():
    scores = rouge.rouge(["the cat sat"], ["the cat ran off"])
    # Two of three and two of four words; one of two and one of three pairs of words.
    assert scores["rouge1"][0] == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert scores["rouge2"][0] == pytest.approx(100 * 2 * 1 / (2 + 3))
    assert scores["rougeL"][0] == pytest.approx(100 * 2 * 2 / (3 + 4))


TEXTS = {
    "Arabic": "العَرَبِيَّةُ لغة جميلة",
    "Burmese": "မြန်မာဘာသာ",
    "Chinese": "我爱自然语言处理",
    "Hindi": "हिन्दी में लिखा गया वाक्य",
    "Japanese": "カタカナと漢字のテキスト",
    "Khmer": "ភាសាខ្មែរ",
    "Korean": "한국어로 쓴 문장",
    "Lao": "ພາສາລາວ",
    "Persian": "می\u200cخواهم بروم",
    "Russian": "Съешь ещё этих мягких булок",
    "Thai": "ภาษาไทยง่ายนิดเดียว",
    "Vietnamese": "Tiếng Việt",
}


@pytest.mark.parametrize("language", TEXTS)
def test_rouge_of_equal_texts_is_100_and_of_longer_ones_less(language):
    text = TEXTS[language]
    scores = rouge.rouge([text] * 3, [text, f"{text} end", "entirely different, in Latin"])
    for values in scores.values():
        assert values[0] == pytest.approx(100) and 50 < values[1] < 99 and values[2] == 0


def test_rouge_of_words_that_differ_in_letters_outside_ascii():
    assert rouge.rouge(["año"], ["a o"])["rouge1"] == [0]
    assert rouge.rouge(["cafe\u0301 STRASSE"], ["CAFÉ straße"])["rouge2"] == [pytest.approx(100)]
    assert rouge.rouge(["用JAX写的2024年"], ["JAX 2024"])["rouge1"] == [pytest.approx(100 * 4 / 8)]


def test_rouge_of_ascii_text_is_rouge_score_s_own():
    rng, own = np.random.default_rng(0), rouge_scorer.RougeScorer(rouge.ROUGE)
    letters = list(string.printable) + list("aaab __--''  ") * 9
    pairs = [["".join(rng.choice(letters, 60)) for _ in range(2)] for _ in range(200)]
    found = rouge.rouge(*zip(*pairs, strict=True))
    for name in rouge.ROUGE:
        assert found[name] == [100 * own.score(*pair)[name].fmeasure for pair in pairs]
    assert 0 < np.mean(found["rouge1"]) < 100


def test_rouge_of_stems_is_rouge_score_s_own():
    rng = np.random.default_rng(0)
    own = rouge_scorer.RougeScorer(rouge.ROUGE, use_stemmer=True)
    words = ["models", "model", "modelling", "compares", "comparing", "uses", "is", "easily"]
    pairs = [[" ".join(rng.choice(words, 8)) for _ in range(2)] for _ in range(50)]
    found = rouge.rouge(*zip(*pairs, strict=True), stem=True)
    for name in rouge.ROUGE:
        assert found[name] == [100 * own.score(*pair)[name].fmeasure for pair in pairs]
    assert rouge.rouge(["She modelled it"], ["she models it"], stem=True)["rouge1"] == [
        pytest.approx(100)
    ]


def test_texts_without_a_word_count_as_0_and_are_said_once(caplog):
    log.clear_logged_warnings()
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        for _ in range(3):
            scores = rouge.rouge(["👍🏽", "a", "…", "b"], ["👍🏽", "!", "…", "b"])
    assert scores["rouge1"] == [0, 0, 0, pytest.approx(100)]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "not defined for 2 of 4 references, which have no word" in said[0]
    assert "3 of 4 texts have no word" in said[1]


def test_repetition_in_scripts_without_spaces():
    assert ngrams.repetition("天天天天") == pytest.approx(2 / 3)
    assert ngrams.distinct_n(["天天天天"]) == pytest.approx(1 / 3)


def test_distinct_and_repetition_by_hand():
    assert ngrams.distinct_n(["a b a b", "a b"]) == pytest.approx(2 / 4)
    assert ngrams.repetition("a b a b") == pytest.approx(1 / 3)
    assert ngrams.repetition("word") == 0 and ngrams.distinct_n([""]) == 0


def test_interval_covers_the_mean_as_often_as_it_says():
    """Samples within a document share its mean: 95 of 100 intervals hold the truth, about."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        documents = rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 8))
        mean, half = intervals.mean_interval(documents)
        hits += abs(mean) < half
    assert 0.92 < hits / 400 < 0.975


def test_one_document_has_no_interval():
    assert intervals.mean_interval([[1.0, 2.0]]) == (1.5, None)
