"""The survey of lengths against texts sampled one document at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.data.documents import Documents
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation.lengths import LengthSurvey
from dera_jax.models.language_model import Prompts, sequence_keys
from dera_jax.prompts import Prompt
from dera_jax.rewards.length import optimal_in_range_rate
from dera_jax.tasks import vocabularies
from tests import golden, prompts

IDS = np.array([7, 3, 11])
LIMIT = 8


@dataclasses.dataclass(frozen=True)
class Given:
    """Stands for a split of a task."""

    prompts: Prompts
    name: str = "the documents of this test"

    def known_vocabulary(self) -> None:
        """Of texts."""

    def read(self, tokenizer) -> Documents:
        del tokenizer
        return Documents(self.prompts, IDS, [Prompt("a")] * len(IDS), ["b"] * len(IDS))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """As many ids as the model has rows."""
    path = str(tmp_path_factory.mktemp("pieces") / "pieces.model")
    vocabularies.train(["some words to make pieces from, and yet more"] * 9, path, 76)
    return SentencePieceVocabulary(path, 52)


@pytest.fixture(scope="module")
def survey(vocabulary):
    model, params, g = golden.load("v1_1")
    loaded = LoadedModel(model, params, vocabulary, {})
    documents = Given(prompts.zero_padded(g["encoder_input_tokens"][:3, :20]))
    return LengthSurvey(loaded, documents, LIMIT, num_samples=5, batch_size=2, seed=4)


def test_sample_is_each_document_s_own_samples(survey):
    lengths, finished = survey.sample()
    assert lengths.shape == finished.shape == (3, 5)
    for row in range(3):
        prompt = jax.tree.map(lambda x, row=row: x[row : row + 1], survey.documents.prompts)
        keys = sequence_keys(4, IDS[row : row + 1], np.arange(5))
        model = survey.model
        alone = sample(model.model, model.params, prompt, keys, Sampling(LIMIT))
        np.testing.assert_array_equal(lengths[row], alone.lengths[0])
        np.testing.assert_array_equal(finished[row], alone.finished[0])


def test_run_reports_the_range_and_the_betas_that_fit_it(survey, monkeypatch, tmp_path):
    # Two documents with every length from 0 to 100, one that is always short.
    text = np.stack([np.arange(101), np.arange(101)[::-1], np.zeros(101, int)])
    monkeypatch.setattr(LengthSurvey, "sample", lambda self: (text + 1, text >= 0))
    found = survey.run(tmp_path)
    low, high = found["low"], found["high"]
    assert low == np.percentile(text, 75, method="nearest") and high - low > 20
    shares = np.array([1, 1, 0]) * (high - low + 1) / 101
    assert found["in_range_rate"] == pytest.approx(shares.mean())
    assert found["ever_in_range"] == pytest.approx(2 / 3)
    assert found["mean_length"] == pytest.approx(100 / 3) and found["finished"] == 1
    beta = found["beta_for_rate"]
    assert beta["0.7"] is beta["0.8"] is None  # more than the two documents that can
    assert optimal_in_range_rate(shares, beta["0.6"]) == pytest.approx(0.6, abs=1e-3)
