"""The compiled step of supervised training.

Axes: B examples of a batch, S prompt length, T target length.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    PyTree,
    TrainableModel,
    check_padded,
    next_token_logits,
)
from dera_jax.training.losses import cross_entropy, weighted_mean
from dera_jax.training.optimizers import Optimizer


@dataclasses.dataclass(frozen=True)
class Loss:
    """See `losses.cross_entropy`."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        checks.check_fields(
            self, label_smoothing=checks.number(least=0, below=1), z_loss=checks.number(least=0)
        )


@struct.dataclass
class TrainState:
    """What a checkpoint holds.

    Attributes:
        step: int32, updates made.
        params: the model's, float32.
        opt_state: optax's.
        best_loss: float32, the lowest validation loss so far.
        best_step: int32, when that was.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    best_loss: Array
    best_step: Array


def initial_state(params: PyTree, optimizer: Optimizer) -> TrainState:
    """The state before the first step; `params` are copied, since the step donates its state."""
    params = jax.tree.map(jnp.array, params)
    opt_state = optimizer.transformation.init(params)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, opt_state, jnp.full((), jnp.inf, jnp.float32), zero + 0)


def make_step(model: TrainableModel, optimizer: Optimizer, loss: Loss, seed: int) -> Callable:
    """Compiles (state, prompts, targets) -> (state, metrics); `state` is donated.

    Metrics: loss, grad_norm (before clipping), learning_rate, tokens (padding not counted).

    Raises:
        ValueError: (when a shape is new) prompts or targets of another type or shape than [B, S], [B, T].
    """
    root = jax.random.key(seed)

    def mean_loss(params: PyTree, prompts: Prompts, targets: Padded, key: Array) -> Array:
        logits = next_token_logits(model, params, prompts, targets.tokens[:, None], key)[:, 0]
        settings = loss.label_smoothing, loss.z_loss, model.num_ids
        tokens = cross_entropy(logits, targets.tokens, *settings)
        return weighted_mean(tokens, targets.mask)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, prompts: Prompts, targets: Padded):
        batch, _ = check_padded("prompts", prompts, B=None, S=None)
        check_padded("targets", targets, B=batch, T=None)
        key = jax.random.fold_in(root, state.step)
        value, grads = jax.value_and_grad(mean_loss)(state.params, prompts, targets, key)
        updates, opt_state = optimizer.transformation.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(optimizer.learning_rate(state.step), jnp.float32),
            "tokens": jnp.sum(prompts.lengths) + jnp.sum(targets.lengths),
        }
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step
