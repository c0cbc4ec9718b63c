"""PPO for E[r] − β·KL(π ‖ π_ref): one compiled step of rollout and updates.

The texts of a rollout come from `sample` on the realigned pair at λ = 1, that is from the policy,
so that one decode gives the tokens and their log-probabilities under policy and reference. The
equations are in `policy_gradient.py`.

Axes: B inputs, K rollouts of each input, S input length, T output length, b inputs of a minibatch.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Samples, Sampling, sample
from dera_jax.models.heads import ValueModel, start_teacher_forcing
from dera_jax.models.language_model import LanguageModel, PyTree, streams
from dera_jax.rewards.protocol import Reward, check_limit
from dera_jax.training import policy_gradient as pg
from dera_jax.training.optimizers import Optimizer


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is maximised: E[reward] − beta·KL(policy ‖ reference), over texts of max_length at most.

    Raises:
        ValueError: beta is not positive, or max_length too small for the reward.
    """

    reward: Reward
    max_length: int
    beta: float = 0.1

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"Objective.beta must be positive; found {self.beta}.")
        check_limit(self.reward, self.max_length)


@dataclasses.dataclass(frozen=True)
class Updates:
    """How a rollout is used.

    Attributes:
        rollouts: K, texts sampled for each document of a batch.
        epochs: passes over a rollout.
        minibatches: parts of a pass, each with one update of policy and value.
        clip: ε of the clipped ratio.
        decay: λ of generalized advantage estimation.
    """

    rollouts: int = 4
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    decay: float = 0.95


@dataclasses.dataclass(frozen=True)
class Actors:
    """The architectures: reference and policy are of the same, the value network may be another."""

    model: LanguageModel
    value: ValueModel


@dataclasses.dataclass(frozen=True)
class Optimizers:
    """One for each network, with learning rates of their own; both count minibatches."""

    policy: Optimizer
    value: Optimizer


@struct.dataclass
class Learner:
    """A network under training: its parameters, and optax's state."""

    params: PyTree
    opt_state: PyTree


@struct.dataclass
class PPOState:
    """What a checkpoint holds; step: int32, rollouts made."""

    step: Array
    policy: Learner
    value: Learner


@struct.dataclass
class Fixed:
    """Parameters that PPO reads and never changes."""

    reference: PyTree
    reward: PyTree = None


@struct.dataclass
class Experience:
    """A rollout, ready to learn from.

    Attributes:
        inputs: int32 [B, S].
        tokens: int32 [B, K, T].
        old_log_prob: float32 [B, K, T], of the tokens when they were sampled.
        advantages: float32 [B, K, T], whitened.
        targets: float32 [B, K, T], of the value function.
        weights: float32 [B, K, T]; 0 after the text, and 1 / (mean length of the whole rollout)
            within: the mean over rows of a sum over tokens is then the mean over all tokens, and
            minibatches of short texts do not weigh more.
    """

    inputs: Array
    tokens: Array
    old_log_prob: Array
    advantages: Array
    targets: Array
    weights: Array


def initial_state(optimizers: Optimizers, policy: PyTree, value: PyTree) -> PPOState:
    """A run's first state; the parameters are copied, since a step donates its state."""

    def learner(optimizer: Optimizer, params: PyTree) -> Learner:
        params = jax.tree.map(jnp.array, params)
        return Learner(params, optimizer.transformation.init(params))

    return PPOState(
        jnp.int32(0), learner(optimizers.policy, policy), learner(optimizers.value, value)
    )


def make_step(
    actors: Actors, objective: Objective, updates: Updates, optimizers: Optimizers, seed: int
) -> Callable:
    """The compiled (state, fixed, inputs[B, S], example_ids[B]) -> (state, metrics).

    One rollout and its epochs of updates; `state` is donated. Texts depend on (seed, example id,
    step), minibatches on (seed, step). Metrics are scalars, of the rollout before its updates
    unless they are losses.

    Raises:
        ValueError: (at the first call) B is not divisible by the minibatches.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: PPOState, fixed: Fixed, inputs: Array, example_ids: Array):
        _check_minibatches(inputs.shape[0], updates.minibatches)
        numbers = state.step * updates.rollouts + jnp.arange(updates.rollouts)
        stream = streams(seed, example_ids, numbers)
        experience, observed = roll_out(actors, objective, updates, state, fixed, inputs, stream)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        order = minibatch_order(key, inputs.shape[0], updates)

        def learn(state: PPOState, rows: Array):
            batch = jax.tree.map(lambda x: x[rows], experience)
            return update(actors, optimizers, updates.clip, state, batch)

        state, losses = jax.lax.scan(learn, state, order)
        losses = jax.tree.map(jnp.mean, losses)
        losses["loss"] = losses["policy_loss"] + losses["value_loss"]
        return state.replace(step=state.step + 1), observed | losses

    return step


def roll_out(
    actors: Actors,
    objective: Objective,
    updates: Updates,
    state: PPOState,
    fixed: Fixed,
    inputs: Array,
    stream: Array,
) -> tuple[Experience, dict[str, Array]]:
    """Samples the policy on inputs[B, S] with stream[B, K] and judges what came out."""
    pair = Realigned(actors.model, (actors.model,))
    params = fixed.reference, state.policy.params
    lam = np.ones(stream.shape, np.float32)
    samples = sample(pair, params, inputs, lam, stream, Sampling(objective.max_length))
    reward = objective.reward(
        fixed.reward, inputs, samples.tokens, samples.lengths, samples.finished
    )
    mask = jnp.arange(objective.max_length) < samples.lengths[..., None]
    values = actors.value.values(state.value.params, inputs, samples.tokens) * mask
    log_ratio = samples.scores.sampling_log_prob - samples.scores.part_log_prob[0]

    def credit(reward: Array, log_ratio: Array, length: Array, values: Array) -> Array:
        rewards = pg.token_rewards(reward, log_ratio, length, objective.beta)
        return pg.generalized_advantages(rewards, values, updates.decay)

    advantages = jax.vmap(jax.vmap(credit))(reward, log_ratio, samples.lengths, values)
    experience = Experience(
        inputs=inputs,
        tokens=samples.tokens,
        old_log_prob=samples.scores.sampling_log_prob,
        advantages=pg.whiten(advantages, mask),
        targets=advantages + values,
        weights=mask / jnp.mean(samples.lengths),
    )
    return experience, observe(samples, reward, log_ratio)


def observe(samples: Samples, reward: Array, log_ratio: Array) -> dict[str, Array]:
    """Scalars about a rollout; reward[B, K], log_ratio[B, K, T] = log π − log π_ref."""
    return {
        "tokens": jnp.sum(samples.lengths),
        "reward": jnp.mean(reward),
        "share_in_range": jnp.mean(reward == 0),  # says something of 0/-1 rewards only
        "kl": jnp.mean(jnp.sum(log_ratio, axis=-1)),  # of whole texts, from the tokens drawn
        "full_kl": jnp.mean(jnp.sum(samples.scores.kl, axis=-1)),  # from whole distributions
        "length": jnp.mean(samples.lengths - samples.finished),
        "finished": jnp.mean(samples.finished),
    }


def minibatch_order(key: Array, num_inputs: int, updates: Updates) -> Array:
    """Which inputs each update sees, int32 [epochs * minibatches, b]; each epoch in a new order."""
    keys = jax.random.split(key, updates.epochs)
    order = jax.vmap(jax.random.permutation, (0, None))(keys, num_inputs)
    return order.reshape(updates.epochs * updates.minibatches, -1)


def update(
    actors: Actors, optimizers: Optimizers, clip: float, state: PPOState, batch: Experience
) -> tuple[PPOState, dict[str, Array]]:
    """One step of both optimizers on the inputs [b, S] of a minibatch, with all their rollouts."""
    policy_loss_of = lambda params: policy_loss(actors.model, params, batch, clip)
    value_loss_of = lambda params: value_loss(actors.value, params, batch)
    policy, metrics = _descend(optimizers.policy, state.policy, policy_loss_of)
    value, value_metrics = _descend(optimizers.value, state.value, value_loss_of)
    return state.replace(policy=policy, value=value), metrics | value_metrics


def policy_loss(
    model: LanguageModel, params: PyTree, batch: Experience, clip: float
) -> tuple[Array, dict[str, Array]]:
    """The clipped objective, and what to log of it."""
    state = start_teacher_forcing(model, params, batch.inputs, batch.tokens.shape[1])
    log_probs = jax.nn.log_softmax(model.teacher_forced(params, state, batch.tokens).logits)
    log_prob = jnp.take_along_axis(log_probs, batch.tokens[..., None], axis=-1)[..., 0]
    rows = jax.vmap(jax.vmap(functools.partial(pg.clipped_policy_loss, clip=clip)))
    loss = _mean(rows(log_prob, batch.old_log_prob, batch.advantages), batch.weights)
    return loss, {
        "policy_loss": loss,
        "entropy": _mean(pg.entropy(log_probs), batch.weights),
        "clip_fraction": _mean(pg.is_clipped(log_prob, batch.old_log_prob, clip), batch.weights),
    }


def value_loss(
    model: ValueModel, params: PyTree, batch: Experience
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the value function, and what to log of it."""
    values = model.values(params, batch.inputs, batch.tokens)
    loss = _mean(pg.value_loss(values, batch.targets), batch.weights)
    return loss, {"value_loss": loss}


def _mean(per_token: Array, weights: Array) -> Array:
    """[b, K, T] -> the mean over rows of the weighted sum over tokens."""
    return jnp.mean(jnp.sum(per_token * weights, axis=-1))


def _descend(optimizer: Optimizer, learner: Learner, loss_of: Callable) -> tuple[Learner, dict]:
    grads, metrics = jax.grad(loss_of, has_aux=True)(learner.params)
    changes, opt_state = optimizer.transformation.update(grads, learner.opt_state, learner.params)
    return Learner(optax.apply_updates(learner.params, changes), opt_state), metrics


def _check_minibatches(num_inputs: int, minibatches: int) -> None:
    if num_inputs % minibatches:
        raise ValueError(
            f"the batch of {num_inputs} documents must be divisible by Updates.minibatches "
            f"({minibatches})."
        )
