"""Implements the equations of PPO, most of them for one sequence; callers vmap over batches.

The objective is E[r] − β·KL(π ‖ π_ref). The discount factor is γ = 1: a sequence is one short
episode, and a discount would favour short sequences.

Sources: Schulman et al. 2016 (arXiv 1506.02438), generalized advantage estimation; Schulman et al.
2017 (arXiv 1707.06347), the clipped objective.

Axes: T output length, V vocabulary; `...` any axes.
"""

import jax
import jax.numpy as jnp
from jax import Array


def token_rewards(reward: Array, log_ratio: Array, length: Array, beta: float) -> Array:
    """Returns r_t = −β·log(π(y_t)/π_ref(y_t)) + [t is the last token]·r of one sequence.

    Args:
        reward: r, [].
        log_ratio: [T], log π(y_t) − log π_ref(y_t).
        length: int32 [], number of tokens of the sequence, the end token included.
        beta: β, the KL coefficient.

    Returns:
        float32 [T], 0 after the sequence.
    """
    t = jnp.arange(log_ratio.shape[0])
    return jnp.where(t < length, -beta * log_ratio, 0.0) + jnp.where(t == length - 1, reward, 0.0)


def generalized_advantages(rewards: Array, values: Array, decay: float) -> Array:
    """Computes A_t = δ_t + decay·A_{t+1} with δ_t = r_t + V_{t+1} − V_t (2016, Eq. 16, γ = 1).

    Args:
        rewards: [T], 0 after the sequence.
        values: [T], V_t of the prefix before token t; 0 after the sequence.
        decay: λ of the paper, in [0, 1].

    Returns:
        [T], 0 after the sequence; advantages + values are the targets of the value function.
    """

    def backward(carry, now):
        next_advantage, next_value = carry
        reward, value = now
        advantage = reward + next_value - value + decay * next_advantage
        return (advantage, value), advantage

    zero = jnp.float32(0)
    return jax.lax.scan(backward, (zero, zero), (rewards, values), reverse=True)[1]


def whiten(x: Array, mask: Array) -> Array:
    """Normalizes x to mean 0 and variance 1 over the entries where mask is true; 0 elsewhere."""
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(x * mask) / count
    centred = (x - mean) * mask
    return centred * jax.lax.rsqrt(jnp.sum(jnp.square(centred)) / count + 1e-8)


def clipped_policy_loss(
    log_prob: Array, old_log_prob: Array, advantages: Array, clip: float
) -> Array:
    """Returns −min(ρ_t·A_t, clip(ρ_t, 1 − ε, 1 + ε)·A_t), ρ_t = π(y_t)/π_old(y_t) (2017, Eq. 7).

    Args:
        log_prob: [T], log π(y_t) of the policy that is updated.
        old_log_prob: [T], log π_old(y_t) of the policy that sampled the sequence.
        advantages: [T].
        clip: ε.
    """
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)


def is_clipped(log_prob: Array, old_log_prob: Array, clip: float) -> Array:
    """Returns bool [T], whether ρ_t lies outside [1 − ε, 1 + ε]."""
    return jnp.abs(jnp.exp(log_prob - old_log_prob) - 1) > clip


def value_loss(values: Array, targets: Array) -> Array:
    """Returns the squared error ½·(V_t − target_t)² of the value function, [T]."""
    return 0.5 * jnp.square(values - targets)


def entropy(log_probs: Array) -> Array:
    """Returns the entropy −Σ_v π(v)·log π(v) in nats: log_probs[..., V] -> [...]."""
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
