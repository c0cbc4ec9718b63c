"""Losses of the trainers, as pure functions.

Axes: V vocabulary; `...` any leading axes.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax.models.language_model import Prompts, PyTree, TrainableModel, log_prob_of


def cross_entropy(
    logits: Array,
    targets: Array,
    label_smoothing: float,
    z_loss: float,
    num_ids: int | None = None,
) -> Array:
    """Cross-entropy of each token in nats, as T5X defines it.

    Smoothed targets hold 1 − ε at the target and ε / (V − 1) elsewhere, and their entropy is
    subtracted, so that a perfect model has loss 0; `z_loss`·(log Z)² keeps log Z near 0.

    Args:
        logits: float32 [..., V].
        targets: int32 [...], in [0, V).
        label_smoothing: ε, in [0, 1).
        z_loss: weight of (log Z)², T5 uses 1e-4.
        num_ids: the first so many of the V ids may be produced, over which targets are smoothed; None
            for all. The logits of the others are `language_model.UNUSED`.

    Returns:
        float32 [...], unweighted.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]  # its gradient needs no scatter
    at_target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1) - log_z
    loss = -at_target
    if label_smoothing:
        used = logits[..., :num_ids]
        confidence, other = 1.0 - label_smoothing, label_smoothing / (used.shape[-1] - 1)
        everywhere = jnp.sum(used, axis=-1) - used.shape[-1] * log_z
        loss = -(confidence - other) * at_target - other * everywhere
        loss += confidence * math.log(confidence) + label_smoothing * math.log(other)
    return loss + z_loss * jnp.square(log_z)


def per_token(
    model: TrainableModel,
    params: PyTree,
    hidden: Array,
    tokens: Array,
    measure: Callable[[Array, Array], PyTree],
    chunk: int | None = None,
) -> PyTree:
    """Something about each of tokens[B, K, T], from the logits that predict it.

    Args:
        model, params: whose logits.
        hidden: [B, K, T, E], entry t has read the t tokens before.
        tokens: int32 [B, K, T].
        measure: (logits[B, K, t, V], tokens[B, K, t]) -> arrays [B, K, t].
        chunk: tokens of each sequence whose logits are held at once, in the gradient too; None for all.
    """
    read = lambda part: measure(model.logits(params, part[0]), part[1])
    size = tokens.shape[-1]
    if chunk is None or chunk >= size:
        return read((hidden, tokens))
    count = -(-size // chunk)

    def cut(x: Array) -> Array:
        missing = [(0, 0), (0, 0), (0, count * chunk - size), *[(0, 0)] * (x.ndim - 3)]
        whole = jnp.pad(x, missing).reshape(*x.shape[:2], count, chunk, *x.shape[3:])
        return jnp.moveaxis(whole, 2, 0)

    found = jax.lax.map(jax.checkpoint(read), (cut(hidden), cut(tokens)))
    joined = lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1)[..., :size]
    return jax.tree.map(joined, found)


def log_probs(
    model: TrainableModel, params: PyTree, prompts: Prompts, tokens: Array, chunk: int | None = None
) -> Array:
    """Log-probability of each of tokens[B, K, T] under teacher forcing, float32 [B, K, T]."""
    hidden = model.hidden(params, prompts, tokens[..., :-1])
    return per_token(model, params, hidden, tokens, log_prob_of, chunk)


def bradley_terry(margin: Array, probability: float | Array = 1.0) -> Array:
    """−p·log σ(margin) − (1 − p)·log σ(−margin), in nats.

    The loss of a model in which the first of two texts is preferred with probability σ(r₁ − r₂)
    (Bradley and Terry, 1952).

    Args:
        margin: r₁ − r₂, [...].
        probability: p that the first is preferred; 1 for a pair of chosen and rejected.
    """
    return -probability * jax.nn.log_sigmoid(margin) - (1 - probability) * jax.nn.log_sigmoid(
        -margin
    )
