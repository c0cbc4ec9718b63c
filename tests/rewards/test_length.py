"""The length reward, and what it makes of a reference: share(λ) = p / (p + (1 − p)·exp(−λ/β))."""

import math

import jax
import numpy as np
import pytest

from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.rewards.length import (
    LengthInRange,
    beta_for_rate,
    length_range_of,
    optimal_in_range_rate,
    optimal_policy,
)
from dera_jax.rewards.protocol import Source, check_limit
from tests import prompts
from tests.decoding import worlds


def reward_of(reward, lengths, finished) -> np.ndarray:
    lengths, finished = np.array([lengths]), np.array([finished])
    tokens = np.zeros((*lengths.shape, 70), int)
    return np.asarray(
        reward(None, Source(prompts.whole(np.ones((1, 3)))), tokens, lengths, finished)
    )[0]


def test_the_paper_s_range_is_the_default():
    # A finished row of n tokens holds n - 1 of text and the end token.
    lengths = [50, 51, 61, 62, 1]
    np.testing.assert_array_equal(
        reward_of(LengthInRange(50, 60), lengths, [True] * 5), [-1, 0, 0, -1, -1]
    )


def test_a_text_that_was_cut_off_scores_minus_one():
    reward = LengthInRange(low=2, high=4)
    np.testing.assert_array_equal(reward_of(reward, [2, 3, 4], [False] * 3), [-1, -1, -1])
    np.testing.assert_array_equal(reward_of(reward, [3, 3], [True, False]), [0, -1])


def test_an_empty_text_can_be_in_range():
    np.testing.assert_array_equal(reward_of(LengthInRange(0, 0), [1, 2], [True, True]), [0, -1])


def test_reward_of_samples_is_what_counting_their_tokens_gives():
    model, (params,) = worlds.tabular_tower(1)
    samples = sample(model, params, *worlds.rows(200), Sampling(worlds.HORIZON))
    reward = LengthInRange(low=1, high=1)
    found = jax.jit(reward)(
        None, None, samples.tokens, samples.lengths, samples.finished
    )  # in a compiled loop
    texts = [tuple(row) for row in np.asarray(samples.tokens[0]).tolist()]
    expected = [0 if t[0] != worlds.EOS and t[1] == worlds.EOS else -1 for t in texts]
    assert 0 < np.count_nonzero(expected) < 200
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize(("low", "high"), [(3, 2), (-1, 2), (1.5, 2), (1, None), (True, 2)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(
        ValueError, match="LengthInRange.*(low 3, high 2|an integer of at least 0; found)"
    ):
        LengthInRange(low, high)


def test_the_limit_must_leave_room_for_a_text_that_is_too_long():
    check_limit(LengthInRange(10, 20), 22)
    with pytest.raises(ValueError, match="max_length must be at least 22 .* found 21"):
        check_limit(LengthInRange(10, 20), 21)


def test_optimal_in_range_rate_is_the_optimum_s_by_enumeration():
    model, (params,) = worlds.tabular_tower(1)
    texts = worlds.texts(model.vocab_size)
    table = np.asarray(params)[0]
    reference = worlds.text_probabilities(
        lambda prefix: table[worlds.prefix_number(prefix, model.vocab_size)], texts
    )
    good = np.array([len(t) == 2 and t[-1] == worlds.EOS for t in texts])
    p, beta = reference[good].sum(), 0.4
    for lam in (0.0, 0.5, 1.0, 2.0):
        weights = reference * np.exp(-lam / beta * ~good)
        expected = weights[good].sum() / weights.sum()
        assert optimal_in_range_rate(p, beta, lam) == pytest.approx(expected)
        assert optimal_in_range_rate(p, beta, lam + 0.1) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("p", "target"), [(0.05, 0.6), (0.2, 0.7), (0.5, 0.8)])
def test_beta_for_rate_is_one_over_the_difference_of_logits(p, target):
    logit = lambda x: math.log(x / (1 - x))
    expected = 1 / (logit(target) - logit(p))
    assert beta_for_rate(p, target) == pytest.approx(expected, rel=1e-5)
    assert optimal_in_range_rate(p, expected) == pytest.approx(target)


def test_documents_that_differ_lag_behind_the_share_at_their_mean():
    p = np.array([0.0, 0.1, 0.4, 0.5])
    assert optimal_in_range_rate(p, 0.5) == pytest.approx(
        np.mean([optimal_in_range_rate(x, 0.5) for x in p])
    )
    assert optimal_in_range_rate(p, 0.5) < optimal_in_range_rate(p.mean(), 0.5) - 0.05
    assert optimal_in_range_rate(p, beta_for_rate(p, 0.7)) == pytest.approx(0.7, abs=1e-6)


def test_the_optimal_policy_s_objective_is_the_log_partition_function():
    """E[r] − β·KL of π* is β·log E_ref[exp(r/β)], document by document; 0 and 1 included."""
    p, beta = np.array([0.0, 0.1, 0.4, 1.0]), 0.45
    found = optimal_policy(p, beta)
    partition = p + (1 - p) * np.exp(-1 / beta)
    assert found["objective"] == pytest.approx(np.mean(beta * np.log(partition)))
    assert found["reward"] == pytest.approx(optimal_in_range_rate(p, beta) - 1)
    assert found["kl"] > 0.1
    assert found["objective"] > np.mean(p - 1)  # the reference's own


@pytest.mark.parametrize(("p", "target"), [(0.5, 0.4), (0.5, 1.0), (np.array([0, 0.5]), 0.6)])
def test_beta_for_a_share_no_alignment_gives_is_refused(p, target):
    with pytest.raises(ValueError, match=f"found the target {target}"):
        beta_for_rate(p, target)


def test_range_of_is_the_75th_to_the_95th_percentile_of_text_lengths():
    text = np.random.default_rng(0).permutation(np.arange(101))  # percentile q is q
    finished = text < 99
    assert length_range_of(text + finished, finished) == LengthInRange(75, 95)
