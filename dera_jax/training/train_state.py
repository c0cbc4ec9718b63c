"""The one train state, and the one way in which a step descends.

A step is a pure function step(state, frozen, batch, key) -> (state, metrics), which `partitioning.partition`
compiles. What it only reads (a reference, a reward model) is frozen: it lies on the mesh by the same rules
as what is trained, is never donated, and never in a checkpoint.

A batch is a dict of arrays with B rows: sequences with their lengths, `example_id`, and `weight`, how much
each row counts.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.partitioning import beside, constrain
from dera_jax.training.optimizers import Optimizer

Batch = Mapping[str, PyTree]
Step = Callable[["TrainState", PyTree, Batch, Array], tuple["TrainState", dict[str, Array]]]
_SEQUENCES = ("inputs", "targets", "rejected")
_POLICIES = (
    "nothing_saveable",
    "dots_with_no_batch_dims_saveable",
    "dots_saveable",
    "everything_saveable",
)


@struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
        step: int32, steps made.
        params: what is trained, float32: a network's parameters, or those of several by name.
        opt_state: optax's.
    """

    step: Array
    params: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True)
class Memory:
    """How a step keeps what it holds at once small.

    Losses and gradients are the same up to rounding; with microbatches dropout draws other masks.

    Attributes:
        microbatches: parts of a batch, one after the other; their gradients are added, each by its
            share of all tokens.
        chunk: tokens of each sequence whose logits are held at once; None for all.
        remat: what is kept of each layer's activations, a policy of `jax.checkpoint_policies`; None for
            all.

    Raises:
        ValueError: a setting out of its range.
    """

    microbatches: int = 1
    chunk: int | None = None
    remat: str | None = None

    def __post_init__(self):
        words = " or ".join(map(repr, _POLICIES))
        policy = checks.Check(words, lambda x: x in _POLICIES)
        checks.check_fields(
            self,
            microbatches=checks.whole(1),
            chunk=checks.optional(checks.whole(1)),
            remat=checks.optional(policy),
        )

    def check_batch(self, rows: int) -> None:
        """Raises ValueError unless a batch of so many rows can be divided."""
        if rows % self.microbatches:
            raise ValueError(
                f"a batch of {rows} rows cannot be divided into {self.microbatches} microbatches"
            )

    def of(self, model: TrainableModel) -> TrainableModel:
        """The model, keeping what `remat` says."""
        return model if self.remat is None else dataclasses.replace(model, remat=self.remat)


class Objective(Protocol):
    """What is minimised, a sum over a batch divided by its weight. Frozen, hashable, without arrays."""

    def weight(self, batch: Batch) -> Array:
        """float32 [], such as the tokens of all targets."""

    def __call__(
        self, params: PyTree, frozen: PyTree, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The sum of the losses of some rows, and sums of what is logged beside it."""


def new_state(params: PyTree, optimizer: Optimizer) -> TrainState:
    """The state before the first step, on the devices of `params`: copies, since a step donates it."""
    params = jax.tree.map(jnp.array, params)
    init = optimizer.transformation.init
    where = beside(params, jax.eval_shape(init, params))
    opt_state = jax.jit(init, out_shardings=where)(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def descend(
    objective: Objective,
    optimizer: Optimizer,
    microbatches: int,
    state: TrainState,
    frozen: PyTree,
    batch: Batch,
    key: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """One update; it is not counted as a step.

    Returns:
        The state, and `loss`, `grad_norm` (before clipping) and what the objective logs.
    """
    metrics, grads = _gradients(objective, microbatches, state.params, frozen, batch, key)
    updates, opt_state = optimizer.transformation.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.tree.norm(grads)}
    return state.replace(params=params, opt_state=opt_state), metrics


def make_step(objective: Objective, optimizer: Optimizer, microbatches: int = 1) -> Step:
    """The step of training on given sequences: one update.

    Metrics: those of `descend`, learning_rate, and tokens (padding not counted).
    """

    def step(state: TrainState, frozen: PyTree, batch: Batch, key: Array):
        key = jax.random.fold_in(key, state.step)
        updated, metrics = descend(objective, optimizer, microbatches, state, frozen, batch, key)
        rate = jnp.asarray(optimizer.learning_rate(state.step), jnp.float32)
        tokens = sum(jnp.sum(batch[name].lengths) for name in _SEQUENCES if name in batch)
        metrics |= {"learning_rate": rate, "tokens": tokens}
        return updated.replace(step=state.step + 1), metrics

    return step


def _gradients(
    objective: Objective,
    microbatches: int,
    params: PyTree,
    frozen: PyTree,
    batch: Batch,
    key: Array,
) -> tuple[dict[str, Array], PyTree]:
    """Means over the batch, `loss` among them, and the gradient of that one."""
    total = objective.weight(batch)

    def share(params: PyTree, rows: Batch, key: Array):
        loss, logged = objective(params, frozen, rows, key)
        return loss / total, jax.tree.map(lambda x: x / total, logged)

    def differentiate(rows: Batch, key: Array):
        (loss, logged), grads = jax.value_and_grad(share, has_aux=True)(params, rows, key)
        return {"loss": loss, **logged}, grads

    if microbatches == 1:
        return differentiate(batch, key)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, differentiate(*part)), None

    parts = (
        jax.tree.map(lambda x: _dealt(x, microbatches), batch),
        jax.random.split(key, microbatches),
    )
    like = jax.eval_shape(differentiate, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(add, zeros, parts)[0]


def _dealt(x: Array, parts: int) -> Array:
    """[B, ...] -> [parts, B/parts, ...], row i to part i % parts: each has rows of every device."""
    dealt = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
    return constrain(dealt, None, "batch", *[None] * (x.ndim - 1))
