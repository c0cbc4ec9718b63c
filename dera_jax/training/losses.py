"""Computes the trainers' losses as pure functions.

Axes: B prompts, K hypotheses of each, T output length, E width of the hidden states, V vocabulary;
`...` any leading axes.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax.models.language_model import Prompts, PyTree, TrainableModel, log_prob_of


def cross_entropy(
    logits: Array,
    targets: Array,
    label_smoothing: float,
    z_loss: float,
    num_ids: int | None = None,
    unused_ids: tuple[int, ...] = (),
) -> Array:
    """Returns the cross-entropy of each token in nats, as T5X defines it.

    A smoothed target distribution has probability 1 − ε at the target and ε / (V − 1) at every
    other id. Its entropy is subtracted, so that a perfect model has loss 0. The term
    `z_loss`·(log Z)² keeps log Z near 0.

    Args:
        logits: float32 [..., V].
        targets: int32 [...], in [0, V).
        label_smoothing: ε, in [0, 1).
        z_loss: weight of (log Z)²; T5 uses 1e-4.
        num_ids: number of the V ids that may be produced, which are the first ones; targets are
            smoothed over these. None for all V. The other ids have the logit
            `language_model.UNUSED_LOGIT`.
        unused_ids: ids among the first that may not be produced either.

    Returns:
        float32 [...], unweighted.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]  # its gradient needs no scatter
    at_target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1) - log_z
    loss = -at_target
    if label_smoothing:
        used = logits[..., :num_ids]
        if unused_ids:
            used = jnp.delete(used, np.array(unused_ids), axis=-1)
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
    """Applies `measure` to the logits that predict each of tokens[B, K, T], in chunks along T.

    Args:
        model, params: the model that computes the logits, and its parameters.
        hidden: [B, K, T, E]; entry t is the hidden state after the t tokens before tokens[..., t].
        tokens: int32 [B, K, T].
        measure: (logits[B, K, t, V], tokens[B, K, t]) -> pytree of arrays [B, K, t].
        chunk: tokens of each sequence whose logits are in memory at once, in the backward pass too;
            None for all T.
    """
    measure_chunk = lambda part: measure(model.logits(params, part[0]), part[1])
    size = tokens.shape[-1]
    if chunk is None or chunk >= size:
        return measure_chunk((hidden, tokens))
    count = -(-size // chunk)

    def split(x: Array) -> Array:
        padding = [(0, 0), (0, 0), (0, count * chunk - size), *[(0, 0)] * (x.ndim - 3)]
        chunks = jnp.pad(x, padding).reshape(*x.shape[:2], count, chunk, *x.shape[3:])
        return jnp.moveaxis(chunks, 2, 0)

    outputs = jax.lax.map(jax.checkpoint(measure_chunk), (split(hidden), split(tokens)))
    join = lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1)[..., :size]
    return jax.tree.map(join, outputs)


def log_probs(
    model: TrainableModel, params: PyTree, prompts: Prompts, tokens: Array, chunk: int | None = None
) -> Array:
    """Returns teacher-forced log-probabilities of tokens[B, K, T], float32 [B, K, T]."""
    hidden = model.hidden(params, prompts, tokens[..., :-1])
    return per_token(model, params, hidden, tokens, log_prob_of, chunk)


def bradley_terry(margin: Array, probability: float | Array = 1.0) -> Array:
    """Returns the loss −p·log σ(margin) − (1 − p)·log σ(−margin) in nats, [...].

    In the model of Bradley and Terry (1952) the first of two sequences is preferred with
    probability σ(r₁ − r₂); the loss is the cross-entropy of that prediction.

    Args:
        margin: r₁ − r₂, [...].
        probability: p, with which the first is preferred; 1 where it is the chosen one.
    """
    return -probability * jax.nn.log_sigmoid(margin) - (1 - probability) * jax.nn.log_sigmoid(
        -margin
    )
