"""λ: h_λ = (1 − Σ λ_i)·h_ref + Σ λ_i·h_i, and the sampler samples softmax(h_λ)."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from dera_jax.decoding.realign import Realigned, realign_logits
from dera_jax.decoding.sampling import Sampling, sample, sweep_hypotheses
from dera_jax.models.language_model import UNUSED_LOGIT, sequence_keys
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
    sampling = Sampling(max_length=12)
    lam, numbers = sweep_hypotheses([0.0, 0.7, 1.0], num_samples=2, batch=4)
    prompts, keys = golden.prompts(g, lam=lam), sequence_keys(3, np.arange(4), numbers)
    pair = sample(Realigned(model, (model,)), (params, other), prompts, keys, sampling)
    prompts = prompts.replace(lam=None)
    for single, rows in ((params, slice(0, 2)), (other, slice(4, 6))):
        alone = sample(model, single, prompts, keys[:, rows], sampling)
        np.testing.assert_array_equal(pair.tokens[:, rows], alone.tokens)
        np.testing.assert_array_equal(pair.scores.log_prob[:, rows], alone.scores.log_prob)
    assert (pair.tokens[:, 2:4] != pair.tokens[:, 4:6]).any()


def test_a_sweep_has_one_lambda_for_each_group_and_its_numbers_again_at_each():
    lam, numbers = sweep_hypotheses([0.0, 0.5], num_samples=3, batch=2)
    np.testing.assert_array_equal(lam, [[0.0, 0.5]] * 2)
    np.testing.assert_array_equal(numbers, [0, 1, 2, 0, 1, 2])
    lam, numbers = sweep_hypotheses([(0.0, 0.5), (1.0, 2.0)], num_samples=1, batch=3)
    np.testing.assert_array_equal(lam, [[(0.0, 0.5), (1.0, 2.0)]] * 3)
    np.testing.assert_array_equal(numbers, [0, 0])


# Models whose tables differ in size


IDS = 4  # that all models of a mixture have
SIZES = [(4, 6), (6, 4), (5, 7, 4)]


def of_sizes(*sizes: int):
    """A mixture of random tables of these vocabularies, and their parameters.

    The ids that not all have are by far the likeliest where there are any. One row of each table is
    for the empty prefix, the other for all longer ones.
    """
    models = [TabularLM(size, horizon=1) for size in sizes]
    params = [model.init(jax.random.key(i)) for i, model in enumerate(models)]
    return Realigned(models[0], tuple(models[1:])), tuple(x.at[..., IDS:].add(9.0) for x in params)


def cut(table):
    """The model that has only the ids that all have, and its parameters."""
    return TabularLM(IDS, horizon=1), table[..., :IDS]


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_at_lambda_zero_and_one_tables_of_other_sizes_give_the_components_own_tokens(sizes, greedy):
    model, params = of_sizes(*sizes)
    assert (model.vocab_size, model.num_ids) == (max(sizes), IDS)
    sampling, keys = Sampling(6, greedy=greedy), sequence_keys(0, [0], np.arange(64))
    for i, own in enumerate(params):
        lam = np.zeros((1, 1, len(sizes) - 1), np.float32)
        lam[..., i - 1] = float(i > 0)
        mixed = sample(model, params, worlds.whole([[0]], lam), keys, sampling)
        alone = sample(*cut(own), worlds.whole([[0]]), keys, sampling)
        np.testing.assert_array_equal(mixed.tokens, alone.tokens)
        np.testing.assert_allclose(mixed.scores.log_prob, alone.scores.log_prob, atol=1e-5)
        np.testing.assert_allclose(mixed.scores.part_log_prob[i], alone.scores.log_prob, atol=1e-5)


@pytest.mark.parametrize("lam", [-2.0, 0.5, 3.0])
@pytest.mark.parametrize("sizes", SIZES)
def test_ids_that_a_component_lacks_are_not_produced(sizes, lam):
    """Whatever sign their coefficients have; probabilities are those of the ids that all have."""
    model, params = of_sizes(*sizes)
    lams = np.full((1, 1, len(sizes) - 1), lam, np.float32)
    prompts = worlds.whole([[0]], lams)
    out = sample(model, params, prompts, sequence_keys(0, [0], np.arange(64)), Sampling(6))
    assert out.tokens.max() < IDS
    tokens = np.random.default_rng(0).integers(0, IDS, (1, 5, 6))
    output = model.teacher_forced(params, model.start(params, prompts, 5, 6), tokens)
    small = Realigned(TabularLM(IDS, horizon=1), (TabularLM(IDS, horizon=1),) * (len(sizes) - 1))
    own = tuple(cut(x)[1] for x in params)
    right = small.teacher_forced(own, small.start(own, prompts, 5, 6), tokens)
    for found, expected in ((output.logits, right.logits), (output.parts, right.parts)):
        assert (found[..., IDS:] == UNUSED_LOGIT).all()
        np.testing.assert_allclose(found[..., :IDS], expected, atol=1e-5)
        log_probs = jax.nn.log_softmax(found)[..., :IDS]
        np.testing.assert_allclose(log_probs, jax.nn.log_softmax(expected), atol=1e-5)


# What is refused


def test_models_that_do_not_fit_are_errors():
    model = TabularLM(4, horizon=2)
    with pytest.raises(ValueError, match="at least one aligned model"):
        Realigned(model, ())
    others = {"end_ids": ((1, 2), r"\(1,\)", r"\(1, 2\)"), "start_token": (3, "0", "3")}
    for field, (value, expected, found) in others.items():
        other = dataclasses.replace(model, **{field: value})
        sentence = f"{field} of the reference is {expected}, of aligned model 1 it is {found}"
        with pytest.raises(ValueError, match=sentence):
            Realigned(model, (model, other))


@pytest.mark.parametrize(
    ("lam", "message"),
    [
        (np.zeros((1, 3)), r"lam has shape \(1, 3\); expected \[B, G\] = \[1, G\] .* the 2 hyp"),
        (np.zeros((1, 0)), r"lam has shape \(1, 0\); expected \[B, G\]"),
        (np.zeros((2, 2)), r"lam has shape \(2, 2\); expected \[B, G\] = \[1, G\]"),
        (np.zeros((1, 2, 2)), r"lam has shape \(1, 2, 2\); expected .* M aligned models, of .* 1"),
        (np.array([[0.0, np.nan]]), "lam must be finite; found nan"),
        (None, "lam must be an array of numbers .*; found None"),
    ],
)
def test_bad_lambda_is_an_error(lam, message):
    model, params = worlds.tabular_tower(2)
    pair = Realigned(model, (model,))
    prompts, keys = worlds.whole([[0]]).replace(lam=lam), sequence_keys(0, [0], [0, 1])
    with pytest.raises(ValueError, match=message):
        sample(pair, tuple(params), prompts, keys, Sampling(max_length=2))


def test_lambda_for_a_single_model_is_an_error():
    model, (params,) = worlds.tabular_tower(1)
    with pytest.raises(ValueError, match=r"lam must be None for a single model.*shape \(1, 1\)"):
        sample(model, params, *worlds.rows(2, 0.5), Sampling(max_length=2))
