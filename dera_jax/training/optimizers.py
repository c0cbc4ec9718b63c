"""Optimizers and learning-rate schedules from optax, under one signature for gin.

A schedule is a function step -> learning rate; all warm up linearly from 0 at step 0.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation, and its schedule for the log."""

    transformation: optax.GradientTransformation
    learning_rate: optax.Schedule


def constant(peak: float, warmup_steps: int) -> optax.Schedule:
    """Stays at `peak` after the warm-up."""
    return _warmed_up(peak, warmup_steps, optax.constant_schedule(peak))


def rsqrt(peak: float, warmup_steps: int) -> optax.Schedule:
    """peak·√(warmup_steps / step) after the warm-up, T5's pre-training schedule."""
    start = max(warmup_steps, 1)
    decay = lambda step: peak * jnp.sqrt(start / (jnp.maximum(step, 0) + start))
    return _warmed_up(peak, warmup_steps, decay)


def cosine(peak: float, warmup_steps: int, total_steps: int, final: float = 0.0) -> optax.Schedule:
    """A half cosine from `peak` at the end of the warm-up to `final` at `total_steps`.

    Raises:
        ValueError: the warm-up does not end before `total_steps`.
    """
    if warmup_steps >= total_steps:
        raise ValueError(
            f"cosine.warmup_steps must be below total_steps ({total_steps}); found {warmup_steps}"
        )
    decay = optax.cosine_decay_schedule(peak, total_steps - warmup_steps, final / peak)
    return _warmed_up(peak, warmup_steps, decay)


def _warmed_up(peak: float, steps: int, then: optax.Schedule) -> optax.Schedule:
    return optax.join_schedules([optax.linear_schedule(0.0, peak, steps), then], [steps])


def adamw(
    learning_rate: optax.Schedule,
    clip_norm: float,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.01,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) on gradients clipped to the global norm `clip_norm`.

    Weight decay leaves vectors (the scales of the norms) alone.
    """
    update = optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=_matrices)
    return _clipped(update, learning_rate, clip_norm)


def _matrices(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def adafactor(
    learning_rate: optax.Schedule, clip_norm: float, decay_rate: float = 0.8
) -> Optimizer:
    """Adafactor (Shazeer and Stern, 2018) with updates scaled by each parameter's size, as in T5."""
    update = optax.adafactor(learning_rate, decay_rate=decay_rate)
    return _clipped(update, learning_rate, clip_norm)


def _clipped(update: optax.GradientTransformation, rate: optax.Schedule, norm: float) -> Optimizer:
    return Optimizer(optax.chain(optax.clip_by_global_norm(norm), update), rate)
