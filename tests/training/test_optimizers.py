"""Schedules against their formulas; what the optimizers leave alone."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.training import optimizers


@pytest.mark.parametrize(
    ("schedule", "later"),
    [
        (optimizers.constant(0.5, 10), lambda step: 0.5),
        (optimizers.rsqrt(0.5, 10), lambda step: 0.5 * math.sqrt(10 / step)),
        (
            optimizers.cosine(0.5, 10, 110, final=0.1),
            lambda step: 0.1 + 0.4 * (1 + math.cos(math.pi * min(step - 10, 100) / 100)) / 2,
        ),
    ],
)
def test_schedules_warm_up_and_then_follow_their_formula(schedule, later):
    for step in (0, 1, 5, 9):
        assert float(schedule(step)) == pytest.approx(0.05 * step, rel=1e-5)
    for step in (10, 11, 60, 110, 300):
        assert float(schedule(step)) == pytest.approx(later(step), rel=1e-5)


def test_cosine_needs_steps_after_its_warm_up():
    with pytest.raises(
        ValueError, match=r"warmup_steps must be below total_steps \(10\); found 10"
    ):
        optimizers.cosine(0.5, 10, 10)


def test_weight_decay_shrinks_matrices_only():
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    gradients = {"kernel": jnp.zeros((2, 2)), "scale": jnp.zeros(2)}
    rule = optimizers.adamw(optimizers.constant(0.1, 0), 1.0, weight_decay=0.2).transformation
    updates, _ = rule.update(gradients, rule.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.2, rtol=1e-5)
    np.testing.assert_array_equal(updates["scale"], 0.0)


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.adafactor])
def test_gradients_are_clipped_to_their_global_norm(make):
    """Two gradients in one direction, both above the limit, must move the parameters alike.

    Their sizes change from step to step: neither rule's own scaling would hide that.
    """
    params = {"a": jnp.full((3,), 2.0), "b": jnp.full((2, 2), -1.0)}
    small = {"a": jnp.full((3,), 1.0), "b": jnp.full((2, 2), 2.0)}
    rule = make(optimizers.constant(0.1, 0), clip_norm=1e-7).transformation
    found = []
    for scale in (1.0, 1000.0):
        state = rule.init(params)
        for factor in (scale, 1.0):
            gradients = {name: factor * x for name, x in small.items()}
            updates, state = rule.update(gradients, state, params)
        found.append(updates)
    np.testing.assert_allclose(found[0]["a"], found[1]["a"], rtol=1e-4)
    np.testing.assert_allclose(found[0]["b"], found[1]["b"], rtol=1e-4)


def test_the_warm_up_scales_with_the_steps():
    assert [optimizers.warmup(0.05, steps) for steps in (5, 10, 200, 2000)] == [0, 0, 10, 100]
    assert optimizers.warmup(0.0, 7) == 0 and optimizers.warmup(0.9, 1000) == 900
