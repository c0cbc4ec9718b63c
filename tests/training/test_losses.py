"""Cross-entropy against a plain loop in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.training.losses import cross_entropy, weighted_mean


def loop_cross_entropy(logits, targets, smoothing, z_loss):
    """T5X's definition, one token at a time: Σ −q log p + z (log Z)² − entropy(q)."""
    values = []
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        log_z = np.log(np.sum(np.exp(row - row.max()))) + row.max()
        q = np.full(len(row), smoothing / (len(row) - 1))
        q[target] = 1 - smoothing
        entropy = -sum(x * np.log(x) for x in q if x > 0)
        values.append(-np.sum(q * (row - log_z)) + z_loss * log_z**2 - entropy)
    return np.array(values)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_cross_entropy_is_the_loop(smoothing, z_loss):
    rng = np.random.default_rng(0)
    logits = rng.normal(2.0, 3.0, (7, 11)).astype(np.float32)
    targets = rng.integers(0, 11, 7)
    found = cross_entropy(jnp.array(logits), jnp.array(targets), smoothing, z_loss)
    expected = loop_cross_entropy(logits, targets, smoothing, z_loss)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_smoothed_cross_entropy_of_the_smoothed_target_is_zero():
    q = np.full(5, 0.1 / 4)
    q[2] = 0.9
    loss = cross_entropy(jnp.log(jnp.array(q)), jnp.int32(2), 0.1, 0.0)
    assert abs(float(loss)) < 1e-6


def test_weighted_mean_leaves_out_what_has_no_weight():
    assert float(weighted_mean(jnp.array([1.0, 5.0, 9.0]), jnp.array([1, 1, 0]))) == 3.0
    assert float(weighted_mean(jnp.array([1.0]), jnp.array([0]))) == 0.0
