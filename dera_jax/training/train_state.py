"""Defines the train state and the gradient step that all trainers share.

A step is a pure function step(state, frozen, batch, key) -> (state, metrics), which
`partitioning.partition` compiles. Parameters that a step only reads are frozen: they are sharded by
the same rules as the trained ones, but are never donated and never saved in a checkpoint. They are a
dict by role, such as "reference" or "reward"; "base" are the parameters to which trained and frozen
LoRA adapters belong (`lora.with_base`), None without adapters.

A batch is a dict of arrays with B examples along the first axis: sequences with their lengths,
`example_id`, and the `weight` of each example in the loss.
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
from dera_jax.models.lora import with_base
from dera_jax.partitioning import constrain, optimizer_shardings
from dera_jax.training.optimizers import Optimizer

Batch = Mapping[str, PyTree]
Frozen = Mapping[str, PyTree]
Step = Callable[["TrainState", Frozen, Batch, Array], tuple["TrainState", dict[str, Array]]]
_SEQUENCES = ("inputs", "targets", "rejected", "samples")
_POLICIES = (
    "nothing_saveable",
    "dots_with_no_batch_dims_saveable",
    "dots_saveable",
    "everything_saveable",
)


@struct.dataclass
class TrainState:
    """Holds everything that a step changes.

    Attributes:
        step: int32 [], number of steps so far.
        params: trained parameters, float32: those of one network, or of several networks by name;
            for a network with a frozen base its `lora.Adapter`.
        opt_state: state of the optax optimizer.
    """

    step: Array
    params: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True)
class Memory:
    """Reduces the memory of a step by microbatches, chunked logits and rematerialization.

    Losses and gradients stay the same up to rounding; with microbatches the dropout masks differ.

    Attributes:
        microbatches: number of parts of a batch that are processed one after the other; their
            gradients are added, each weighted by its fraction of the batch's weight.
        chunk: tokens of each sequence whose logits are in memory at once; None for all.
        remat: policy of `jax.checkpoint_policies` that selects which activations of each layer are
            stored for the backward pass; None stores all.

    Raises:
        ValueError: a field is out of its range.
    """

    microbatches: int = 1
    chunk: int | None = None
    remat: str | None = None

    def __post_init__(self):
        accepted = " or ".join(map(repr, _POLICIES))
        policy = checks.Check(accepted, lambda x: x in _POLICIES)
        checks.check_fields(
            self,
            microbatches=checks.integer(1),
            chunk=checks.optional(checks.integer(1)),
            remat=checks.optional(policy),
        )

    def check_batch(self, rows: int) -> None:
        """Raises ValueError unless `microbatches` divides the `rows` examples of a batch."""
        if rows % self.microbatches:
            raise ValueError(
                f"a batch of {rows} examples cannot be divided into {self.microbatches} "
                "microbatches; set Memory.microbatches to a divisor of the batch size"
            )

    def of(self, model: TrainableModel) -> TrainableModel:
        """Returns the model with the rematerialization policy `remat`."""
        return model if self.remat is None else dataclasses.replace(model, remat=self.remat)


class LossFunction(Protocol):
    """Computes a loss, which is a sum over a batch divided by the batch's weight.

    Implementations are frozen, hashable and hold no arrays.
    """

    def weight(self, batch: Batch) -> Array:
        """Returns the divisor of the sums, float32 [], such as the number of target tokens."""

    def __call__(
        self, params: PyTree, frozen: Frozen, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the sum of the losses of a (micro)batch, and sums of further metrics by name.

        Adapters among the parameters are already attached to their base.
        """


def new_state(params: PyTree, optimizer: Optimizer) -> TrainState:
    """Returns the initial state on the devices of `params`, as a copy, since a step donates it."""
    params = jax.tree.map(jnp.array, params)
    init = optimizer.transformation.init
    where = optimizer_shardings(params, jax.eval_shape(init, params))
    opt_state = jax.jit(init, out_shardings=where)(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def descend(
    objective: LossFunction,
    optimizer: Optimizer,
    microbatches: int,
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    key: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """Makes one optimizer update, without an increase of `state.step`.

    Returns:
        The state after the update, and scalar metrics: `loss`, `grad_norm` (before clipping) and
        those of the objective.
    """
    metrics, grads = _gradients(objective, microbatches, state.params, frozen, batch, key)
    updates, opt_state = optimizer.transformation.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.tree.norm(grads)}
    return state.replace(params=params, opt_state=opt_state), metrics


def make_step(objective: LossFunction, optimizer: Optimizer, microbatches: int = 1) -> Step:
    """Returns the training step on given sequences, which makes one update.

    Its metrics are those of `descend`, `learning_rate`, and `tokens`, the number of tokens of the
    batch without padding.
    """

    def step(state: TrainState, frozen: Frozen, batch: Batch, key: Array):
        key = jax.random.fold_in(key, state.step)
        updated, metrics = descend(objective, optimizer, microbatches, state, frozen, batch, key)
        rate = jnp.asarray(optimizer.learning_rate(state.step), jnp.float32)
        tokens = sum(jnp.sum(batch[name].lengths) for name in _SEQUENCES if name in batch)
        metrics |= {"learning_rate": rate, "tokens": tokens}
        return updated.replace(step=state.step + 1), metrics

    return step


def _gradients(
    objective: LossFunction,
    microbatches: int,
    params: PyTree,
    frozen: Frozen,
    batch: Batch,
    key: Array,
) -> tuple[dict[str, Array], PyTree]:
    """Returns means over the batch, `loss` among them, and the gradient of the loss."""
    total, base = objective.weight(batch), frozen.get("base")

    def normalized(params: PyTree, microbatch: Batch, key: Array):
        params, fixed = with_base(params, base), with_base(dict(frozen), base)
        loss, metrics = objective(params, fixed, microbatch, key)
        return loss / total, jax.tree.map(lambda x: x / total, metrics)

    def differentiate(microbatch: Batch, key: Array):
        (loss, metrics), grads = jax.value_and_grad(normalized, has_aux=True)(
            params, microbatch, key
        )
        return {"loss": loss, **metrics}, grads

    if microbatches == 1:
        return differentiate(batch, key)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, differentiate(*part)), None

    parts = (
        jax.tree.map(lambda x: _split(x, microbatches), batch),
        jax.random.split(key, microbatches),
    )
    like = jax.eval_shape(differentiate, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(add, zeros, parts)[0]


def _split(x: Array, parts: int) -> Array:
    """Splits x[B, ...] into [parts, B / parts, ...]; each part has examples of every device."""
    split = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
    return constrain(split, None, "batch", *[None] * (x.ndim - 1))
