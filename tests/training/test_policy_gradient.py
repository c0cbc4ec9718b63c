"""The equations of PPO against plain float64 loops and closed forms."""

import jax
import numpy as np
import pytest

from dera_jax.training import policy_gradient as pg

T = 7


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_token_rewards_put_the_reward_on_the_last_token(rng):
    log_ratio = rng.normal(size=T)
    found = pg.token_rewards(2.5, log_ratio, 4, beta=0.3)
    expected = [0.0] * T
    for t in range(4):
        expected[t] = -0.3 * log_ratio[t]
    expected[3] += 2.5
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def advantages_by_definition(rewards, values, decay):
    """A_t = Σ_l decay^l·δ_{t+l}, summed term by term."""
    padded = np.append(values, 0.0)
    deltas = [rewards[t] + padded[t + 1] - padded[t] for t in range(len(rewards))]
    return [
        sum(decay ** (s - t) * deltas[s] for s in range(t, len(rewards)))
        for t in range(len(rewards))
    ]


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.95])
def test_generalized_advantages_are_the_sum_of_decayed_errors(rng, decay):
    rewards, values = rng.normal(size=(2, T))
    found = pg.generalized_advantages(rewards, values, decay)
    np.testing.assert_allclose(found, advantages_by_definition(rewards, values, decay), rtol=1e-4)


def test_generalized_advantages_without_decay_are_returns_less_values(rng):
    rewards, values = rng.normal(size=(2, T))
    returns = np.cumsum(rewards[::-1])[::-1]
    found = pg.generalized_advantages(rewards, values, 1.0)
    np.testing.assert_allclose(found, returns - values, rtol=1e-4, atol=1e-6)


def test_generalized_advantages_end_with_the_text(rng):
    rewards, values = rng.normal(size=(2, T)) * (np.arange(T) < 4)
    found = pg.generalized_advantages(rewards, values, 0.9)
    np.testing.assert_allclose(found[:4], pg.generalized_advantages(rewards[:4], values[:4], 0.9))
    np.testing.assert_array_equal(found[4:], 0)


def test_whiten_scales_real_tokens_and_zeroes_the_rest(rng):
    x, mask = 5 + 3 * rng.normal(size=(4, T)), rng.uniform(size=(4, T)) < 0.6
    found = np.asarray(pg.whiten(x, mask))
    expected = (x[mask] - x[mask].mean()) / x[mask].std()
    np.testing.assert_allclose(found[mask], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[~mask], 0)


def test_whiten_of_equal_values_is_zero():
    np.testing.assert_allclose(pg.whiten(np.full(T, 3.0), np.ones(T, bool)), 0, atol=1e-3)


def test_clipped_policy_loss_is_the_equation(rng):
    new, old, advantages = rng.normal(size=(3, 50))
    expected = []
    for log_prob, old_log_prob, advantage in zip(new, old, advantages, strict=True):
        ratio = np.exp(log_prob - old_log_prob)
        clipped = min(max(ratio, 0.8), 1.2)
        expected.append(-min(ratio * advantage, clipped * advantage))
    found = pg.clipped_policy_loss(new, old, advantages, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.0, 1.0, True), (1.3, 1.0, False), (1.3, -1.0, True), (0.7, 1.0, True), (0.7, -1.0, False)],
)
def test_clipped_policy_loss_stops_pushing_past_the_bound_only(ratio, advantage, moves):
    slope = jax.grad(pg.clipped_policy_loss)(np.log(ratio), 0.0, advantage, 0.2)
    assert float(slope) == pytest.approx(-ratio * advantage if moves else 0.0, rel=1e-5)


def test_is_clipped_counts_ratios_outside():
    found = pg.is_clipped(np.log([0.79, 0.81, 1.0, 1.19, 1.21]), 0.0, 0.2)
    np.testing.assert_array_equal(found, [True, False, False, False, True])


def test_value_loss_has_the_error_as_its_slope():
    assert float(pg.value_loss(3.0, 1.0)) == 2.0
    assert float(jax.grad(pg.value_loss)(3.0, 1.0)) == 2.0


def test_entropy_of_known_distributions():
    p = np.array([[0.25] * 4, [0.5, 0.5, 1e-30, 1e-30]])
    np.testing.assert_allclose(pg.entropy(np.log(p)), np.log([4, 2]), rtol=1e-5)
