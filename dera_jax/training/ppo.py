"""Implements PPO for E[r] − β·KL(π ‖ π_ref) as one compiled step of rollout and updates.

The sequences of a rollout are sampled from the realigned mixture of reference and policy at λ = 1,
which is the policy. One decode therefore gives the tokens and their log-probabilities under both
models. The equations are in `policy_gradient.py`.

Axes: B prompts, K hypotheses of each, T output length, b prompts of a minibatch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Samples, Sampling, sample
from dera_jax.models.heads import ValueModel
from dera_jax.models.language_model import (
    Prompts,
    PyTree,
    TrainableModel,
    length_mask,
    log_prob_of,
    sequence_keys,
)
from dera_jax.models.lora import with_base
from dera_jax.rewards.protocol import REWARD, Reward, Source, check_limit
from dera_jax.rewards.scoring import score
from dera_jax.training import policy_gradient as pg
from dera_jax.training.losses import per_token
from dera_jax.training.optimizers import Optimizer, combined
from dera_jax.training.train_state import (
    Batch,
    Frozen,
    Memory,
    Step,
    TrainState,
    descend,
    new_state,
)


@dataclasses.dataclass(frozen=True)
class AlignmentObjective:
    """Defines the objective to maximise, E[reward] − beta·KL(policy ‖ reference policy).

    Attributes:
        reward: reward function of whole outputs.
        max_length: length limit of an output in tokens, the end token included.
        beta: KL coefficient β.

    Raises:
        ValueError: a field is out of its range, or max_length is below the reward's `min_limit`.
    """

    reward: Reward
    max_length: int
    beta: float

    def __post_init__(self):
        checks.check_fields(
            self, reward=REWARD, max_length=checks.integer(1), beta=checks.number(above=0)
        )
        check_limit(self.reward, self.max_length)


@dataclasses.dataclass(frozen=True)
class Updates:
    """Configures the size of a rollout and the updates that are made on it.

    Attributes:
        rollouts: K, hypotheses sampled for each document of a batch.
        epochs: passes over a rollout.
        minibatches: parts of an epoch, each with one update of the policy and the value network.
        clip: ε of the clipped probability ratio.
        decay: λ of generalized advantage estimation.

    Raises:
        ValueError: a field is out of its range.
    """

    rollouts: int
    epochs: int
    minibatches: int
    clip: float = 0.2
    decay: float = 0.95

    def __post_init__(self):
        sizes = dict.fromkeys(("rollouts", "epochs", "minibatches"), checks.integer(1))
        decay = checks.number(least=0, most=1)
        checks.check_fields(self, clip=checks.number(above=0), decay=decay, **sizes)

    def check_batch(self, documents: int) -> None:
        """Raises ValueError unless `minibatches` divides the number of documents of a batch."""
        if documents % self.minibatches:
            raise ValueError(
                f"the batch of {documents} documents must be divisible by Updates.minibatches "
                f"({self.minibatches}); change the batch size or the number of minibatches."
            )


@dataclasses.dataclass(frozen=True)
class Actors:
    """Holds the architectures: `model` of reference and policy, `value` of the value network."""

    model: TrainableModel
    value: ValueModel


@dataclasses.dataclass(frozen=True)
class Optimizers:
    """Holds the optimizers of policy and value network, whose schedules count minibatches.

    Attributes:
        policy: the optimizer of the policy.
        value: the optimizer of the value network.
    """

    policy: Optimizer
    value: Optimizer

    @property
    def together(self) -> Optimizer:
        """Returns one optimizer of the parameters {"policy": …, "value": …}."""
        return combined({"policy": self.policy, "value": self.value})

    def __post_init__(self):
        checks.check_fields(
            self, policy=checks.instance(Optimizer), value=checks.instance(Optimizer)
        )

    def check_warmup(self, name: str, updates: int) -> None:
        """Validates both warm-ups; raises ValueError as `Optimizer.check_warmup`."""
        for optimizer in (self.policy, self.value):
            optimizer.check_warmup(name, updates)


@dataclasses.dataclass(frozen=True)
class PPOSetup:
    """Holds the static configuration of a PPO step."""

    actors: Actors
    objective: AlignmentObjective
    updates: Updates
    optimizers: Optimizers
    memory: Memory = dataclasses.field(default_factory=Memory)

    @property
    def loss(self) -> "PPOLoss":
        """Returns the loss of an update, with the rematerialization and chunking of `memory`."""
        actors, memory = self.actors, self.memory
        value = actors.value
        if memory.remat is not None:
            value = dataclasses.replace(value, trunk=memory.of(value.trunk))
        rematerialized = Actors(memory.of(actors.model), value)
        return PPOLoss(rematerialized, self.updates.clip, memory.chunk)


@struct.dataclass
class Experience:
    """Holds a rollout with its advantages and value targets.

    Attributes:
        prompts: B prompts.
        tokens: int32 [B, K, T].
        old_log_prob: float32 [B, K, T], log-probabilities under the policy that sampled the tokens.
        advantages: float32 [B, K, T], whitened.
        targets: float32 [B, K, T], targets of the value function.
        weights: float32 [B, K, T], 1 / (mean length of the whole rollout) within a hypothesis and 0
            after it. The mean over hypotheses of a weighted sum over tokens is then the mean over
            all tokens, and minibatches of short hypotheses do not get a larger weight per token.
    """

    prompts: Prompts
    tokens: Array
    old_log_prob: Array
    advantages: Array
    targets: Array
    weights: Array


def initial_state(optimizers: Optimizers, policy: PyTree, value: PyTree) -> TrainState:
    """Returns the initial train state of a run, whose `step` counts rollouts."""
    return new_state({"policy": policy, "value": value}, optimizers.together)


def make_step(setup: PPOSetup) -> Step:
    """Returns the PPO step for a compiled reward: one rollout and its epochs of updates.

    The frozen parameters are {"base": …, "reference": …, "reward": …}. The batch has the columns `inputs`,
    `example_id` and those that the reward reads (`rewards.protocol.Source`). Samples depend on
    (key, example id, step), minibatches on (key, step). Metrics are scalars; except for those of
    the loss, they describe the rollout before its updates.

    Raises:
        ValueError: when the step is traced, `Updates.minibatches` does not divide B.
    """

    def step(state: TrainState, frozen: Frozen, batch: Batch, key: Array):
        samples = roll_out(setup, state, frozen, batch, key)
        outputs = samples.tokens, samples.lengths, samples.finished
        rewards = score(setup.objective.reward, frozen["reward"], source_of(batch), *outputs)
        return update_on_rollout(setup, state, frozen, (batch["inputs"], samples, rewards), key)

    return step


def make_split_step(setup: PPOSetup) -> tuple[Callable, Step]:
    """Returns the PPO step in two parts, between which a Python reward function scores the rollout.

    Returns:
        `roll_out` with this setup, and `update_on_rollout` as a step whose batch is the tuple (prompts,
        samples, rewards with their parts).
    """

    return functools.partial(roll_out, setup), functools.partial(update_on_rollout, setup)


def roll_out(
    setup: PPOSetup, state: TrainState, frozen: Frozen, batch: Batch, key: Array
) -> Samples:
    """Samples K hypotheses of the policy for each of batch["inputs"], with the keys of this step.

    Raises:
        ValueError: `Updates.minibatches` does not divide B.
    """
    updates, model, prompts = setup.updates, setup.actors.model, batch["inputs"]
    updates.check_batch(len(prompts.tokens))
    numbers = state.step * updates.rollouts + jnp.arange(updates.rollouts)
    keys = sequence_keys(key, batch["example_id"], numbers)
    params = with_base((frozen["reference"], state.params["policy"]), frozen.get("base"))
    prompts = prompts.replace(lam=np.ones((len(prompts.tokens), 1), np.float32))
    sampling = Sampling(setup.objective.max_length)
    return sample(Realigned(model, (model,)), params, prompts, keys, sampling)


def source_of(batch: Batch) -> Source:
    """Returns the columns of a batch that rewards may read; missing ones are None."""
    optional = (batch.get(name) for name in ("targets", "keywords", "document"))
    return Source(batch["inputs"], *optional)


def update_on_rollout(
    setup: PPOSetup,
    state: TrainState,
    frozen: Frozen,
    rollout: tuple[Prompts, Samples, tuple],
    key: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """Makes the epochs of updates on a rollout and returns the new state and scalar metrics.

    `rollout` holds prompts, samples, and the pair of rewards[B, K] and their named parts [B, K]. Of the
    frozen parameters only "base" is read.
    """
    (prompts, samples, rewards), frozen = rollout, {"base": frozen.get("base")}
    value = with_base(state.params["value"], frozen.get("base"))
    experience = experience_of(setup, value, prompts, samples, rewards[0])
    metrics = rollout_metrics(setup.objective.reward, samples, *rewards)
    key = jax.random.fold_in(key, state.step)
    order = minibatch_order(key, len(prompts.tokens), setup.updates)
    optimizer, microbatches = setup.optimizers.together, setup.memory.microbatches

    def update(state: TrainState, indices: Array):
        minibatch = jax.tree.map(lambda x: x[indices], experience)
        return descend(setup.loss, optimizer, microbatches, state, frozen, minibatch, key)

    state, losses = jax.lax.scan(update, state, order)
    losses = jax.tree.map(jnp.mean, losses)
    return state.replace(step=state.step + 1), metrics | losses


def experience_of(
    setup: PPOSetup, value: PyTree, prompts: Prompts, samples: Samples, reward: Array
) -> Experience:
    """Computes advantages, value targets and weights of a rollout with reward[B, K].

    `value` are the parameters of the value network.
    """
    actors, objective, updates = setup.actors, setup.objective, setup.updates
    mask = length_mask(samples.lengths, objective.max_length)
    prefixes = samples.tokens[..., :-1]  # the value of token t is that of the prefix before it
    values = actors.value.values(value, prompts, prefixes) * mask

    def advantages_of(reward: Array, log_ratio: Array, length: Array, values: Array) -> Array:
        rewards = pg.token_rewards(reward, log_ratio, length, objective.beta)
        return pg.generalized_advantages(rewards, values, updates.decay)

    batched = jax.vmap(jax.vmap(advantages_of))
    advantages = batched(reward, log_ratio(samples), samples.lengths, values)
    return Experience(
        prompts=prompts,
        tokens=samples.tokens,
        old_log_prob=samples.scores.sampling_log_prob,
        advantages=pg.whiten(advantages, mask),
        targets=advantages + values,
        weights=mask / jnp.mean(samples.lengths),
    )


def log_ratio(samples: Samples) -> Array:
    """Returns log π − log π_ref of each token of a rollout, [B, K, T]."""
    return samples.scores.sampling_log_prob - samples.scores.part_log_prob[0]


def rollout_metrics(
    what: Reward, samples: Samples, reward: Array, parts: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns scalar metrics of a rollout with reward[B, K] and its parts; KL is in nats."""
    metrics = what.metrics(samples.lengths, samples.finished)
    return {
        "tokens": jnp.sum(samples.lengths),
        "reward": jnp.mean(reward),
        **{f"reward_{name}": jnp.mean(values) for name, values in parts.items()},
        **{f"{name}_rate": jnp.mean(values) for name, values in metrics.items()},
        # Two estimates of the sequence KL: from the sampled tokens, and from full distributions.
        "kl": jnp.mean(jnp.sum(log_ratio(samples), axis=-1)),
        "full_kl": jnp.mean(jnp.sum(samples.scores.kl, axis=-1)),
        "length": jnp.mean(samples.lengths - samples.finished),
        "finished": jnp.mean(samples.finished),
    }


def minibatch_order(key: Array, num_inputs: int, updates: Updates) -> Array:
    """Returns the prompts of each update, int32 [epochs * minibatches, b], shuffled per epoch."""
    keys = jax.random.split(key, updates.epochs)
    order = jax.vmap(jax.random.permutation, (0, None))(keys, num_inputs)
    return order.reshape(updates.epochs * updates.minibatches, -1)


@dataclasses.dataclass(frozen=True)
class PPOLoss:
    """Computes the clipped loss of the policy plus the squared error of the value function.

    Attributes:
        actors: architectures of policy and value network.
        clip: ε of the clipped probability ratio.
        chunk: see `train_state.Memory`.
    """

    actors: Actors
    clip: float
    chunk: int | None = None

    def weight(self, batch: Experience) -> Array:
        """Returns b·K, the number of hypotheses of a minibatch of b prompts, float32 []."""
        return jnp.float32(math.prod(batch.tokens.shape[:2]))

    def __call__(
        self, params: PyTree, frozen: Frozen, batch: Experience, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Computes the loss, see `train_state.LossFunction`; dropout is not used."""
        del frozen, key
        policy, logged = self._policy(params["policy"], batch)
        value = self._value(params["value"], batch)
        return policy + value, logged | {"policy_loss": policy, "value_loss": value}

    def _policy(self, params: PyTree, batch: Experience) -> tuple[Array, dict[str, Array]]:
        def measure(logits: Array, tokens: Array) -> tuple[Array, Array]:
            return log_prob_of(logits, tokens), pg.entropy(jax.nn.log_softmax(logits))

        model, tokens = self.actors.model, batch.tokens
        hidden = model.hidden(params, batch.prompts, tokens[..., :-1])
        log_prob, entropy = per_token(model, params, hidden, tokens, measure, self.chunk)
        policy_loss = functools.partial(pg.clipped_policy_loss, clip=self.clip)
        losses = jax.vmap(jax.vmap(policy_loss))(log_prob, batch.old_log_prob, batch.advantages)
        total = lambda values: jnp.sum(values * batch.weights)
        return total(losses), {
            "entropy": total(entropy),
            "clip_fraction": total(pg.is_clipped(log_prob, batch.old_log_prob, self.clip)),
        }

    def _value(self, params: PyTree, batch: Experience) -> Array:
        values = self.actors.value.values(params, batch.prompts, batch.tokens[..., :-1])
        return jnp.sum(pg.value_loss(values, batch.targets) * batch.weights)
