"""Cross-entropy against a plain loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.models.language_model import UNUSED_LOGIT, Padded, Prompts
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.training import optimizers
from dera_jax.training.losses import cross_entropy
from dera_jax.training.train_state import new_state
from dera_jax.training.train_step import Loss
from tests.training import steps


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


def test_smoothed_targets_leave_out_ids_that_are_not_produced():
    """Rows that only pad a table have no part in the loss, however small their logits are made."""
    used = jax.random.normal(jax.random.key(0), (2, 3, 5))
    targets = jnp.array([[0, 4, 2], [1, 1, 3]])
    expected = cross_entropy(used, targets, 0.1, 1e-4)
    masked = jnp.concatenate([used, jnp.full((2, 3, 3), UNUSED_LOGIT)], axis=-1)
    found = cross_entropy(masked, targets, 0.1, 1e-4, num_ids=5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    holes = jnp.insert(used, np.array([1, 3]), UNUSED_LOGIT, axis=-1)  # now at 1 and 4
    moved = jnp.array([0, 2, 3, 5, 6])[targets]
    found = cross_entropy(holes, moved, 0.1, 1e-4, unused_ids=(1, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    over_the_whole_table = cross_entropy(masked, targets, 0.1, 1e-4)
    assert np.all(np.abs(over_the_whole_table - expected) > 1e6)


def test_a_step_with_smoothed_targets_is_over_the_ids_of_the_vocabulary():
    model = T5(T5Config(64, 16, 2, 1, 1, 8, 16, ("relu",), True, 0.0), num_ids=50)
    optimizer = optimizers.adamw(optimizers.constant(1e-3, 0), clip_norm=1.0)
    step = steps.sft(model, optimizer, Loss(label_smoothing=0.1, z_loss=1e-4))
    state = new_state(model.init(jax.random.key(0)), optimizer)
    tokens, lengths = jnp.ones((2, 4), jnp.int32), jnp.full(2, 4)
    _, metrics = step(state, Prompts(tokens, lengths), Padded(tokens, lengths))
    assert 0 < metrics["loss"] < 2 * np.log(50)
