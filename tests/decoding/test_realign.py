"""λ: h_λ = (1 − Σ λ_i)·h_ref + Σ λ_i·h_i, and the sampler samples softmax(h_λ)."""

import jax
import numpy as np
import pytest
from scipy import stats

from dera_jax.decoding.realign import Realigned, realign_logits
from dera_jax.decoding.sampling import Sampling, sample, sweep_rows
from dera_jax.models.language_model import streams
from dera_jax.models.tabular import TabularLM
from tests import golden
from tests.decoding import worlds

NUM_SAMPLES = 8192


def test_realign_logits_is_the_equation():
    rng = np.random.default_rng(0)
    reference, first, second = rng.normal(size=(3, 5, 7)).astype(np.float32)
    lam = rng.normal(size=(5, 2)).astype(np.float32)
    expected = np.empty((5, 7))
    for row in range(5):
        for v in range(7):
            expected[row, v] = (
                (1 - lam[row, 0] - lam[row, 1]) * reference[row, v]
                + lam[row, 0] * first[row, v]
                + lam[row, 1] * second[row, v]
            )
    np.testing.assert_allclose(realign_logits(reference, [first, second], lam), expected, rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_lambda_zero_and_one_are_exact(jit):
    rng = np.random.default_rng(1)
    reference, aligned = 30 * rng.normal(size=(2, 4, 1000)).astype(np.float32)
    mix = jax.jit(realign_logits) if jit else realign_logits
    np.testing.assert_array_equal(mix(reference, [aligned], np.ones((4, 1), np.float32)), aligned)
    np.testing.assert_array_equal(
        mix(reference, [aligned], np.zeros((4, 1), np.float32)), reference
    )


def mixture_chi_square(lam, sampled_lam) -> float:
    """p-value that samples at `sampled_lam` come from the exact mixture at `lam`."""
    model, params = worlds.tabular_tower(1 + len(lam))
    pair = Realigned(model, (model,) * len(lam))
    weights = [1 - sum(lam), *lam]

    def logits(prefix):
        at = worlds.prefix_number(prefix, model.vocab_size)
        return sum(
            w * np.asarray(p, np.float64)[0, at] for w, p in zip(weights, params, strict=True)
        )

    texts = worlds.texts(model.vocab_size)
    exact = worlds.text_probabilities(logits, texts)
    assert exact.sum() == pytest.approx(1)
    out = sample(
        pair,
        tuple(params),
        np.zeros((1, 1), int),
        *worlds.rows(NUM_SAMPLES, sampled_lam),
        Sampling(max_length=worlds.HORIZON),
    )
    counts = worlds.count(out.tokens[0], out.lengths[0], texts)
    return stats.chisquare(counts, NUM_SAMPLES * exact).pvalue


@pytest.mark.parametrize("lam", [(0.5,), (2.0,), (0.4, 0.3), (0.2, 0.5, 0.6)])
def test_samples_follow_the_enumerated_mixture(lam):
    assert mixture_chi_square(lam, lam) > 0.01


@pytest.mark.parametrize("lam", [(0.5,), (2.0,), (0.4, 0.3), (0.2, 0.5, 0.6)])
def test_the_same_test_rejects_a_neighbouring_lambda(lam):
    neighbour = (lam[0] + 0.15, *lam[1:])
    assert mixture_chi_square(lam, neighbour) < 1e-4


def test_lambda_zero_and_one_reproduce_the_single_models_token_for_token():
    model, params, g = golden.load("v1_1")
    other = jax.tree.map(lambda x: 1.1 * x, params)
    inputs, sampling = g["encoder_input_tokens"], Sampling(max_length=12)
    lam, numbers = sweep_rows([0.0, 0.7, 1.0], num_samples=2, batch=4)
    stream = streams(3, np.arange(4), numbers)
    pair = sample(Realigned(model, (model,)), (params, other), inputs, lam, stream, sampling)
    for single, rows in ((params, slice(0, 2)), (other, slice(4, 6))):
        alone = sample(model, single, inputs, lam[:, rows], stream[:, rows], sampling)
        np.testing.assert_array_equal(pair.tokens[:, rows], alone.tokens)
        np.testing.assert_array_equal(pair.scores.log_prob[:, rows], alone.scores.log_prob)
    assert (pair.tokens[:, 2:4] != pair.tokens[:, 4:6]).any()


def test_models_that_do_not_fit_are_refused():
    small, large = TabularLM(3, horizon=2), TabularLM(4, horizon=2)
    with pytest.raises(
        ValueError, match="vocab_size of the reference is 3, of aligned model 1 it is 4"
    ):
        Realigned(small, (small, large))
    with pytest.raises(ValueError, match="at least one aligned model"):
        Realigned(small, ())


@pytest.mark.parametrize(
    ("lam", "message"),
    [
        (np.zeros((1, 3)), r"lam has shape \(1, 3\); expected \(1, 2, 1\) or \(1, 2\)"),
        (np.array([[0.0, np.nan]]), "lam must be finite; found nan"),
    ],
)
def test_bad_lambda_is_refused(lam, message):
    model, params = worlds.tabular_tower(2)
    stream = streams(0, [0], [0, 1])
    with pytest.raises(ValueError, match=message):
        sample(
            Realigned(model, (model,)), tuple(params), np.zeros((1, 1), int), lam, stream,
            Sampling(max_length=2),
        )  # fmt: skip
