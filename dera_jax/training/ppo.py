"""PPO for E[r] − β·KL(π ‖ π_ref): one compiled step of rollout and updates.

The texts of a rollout come from `sample` on the realigned pair at λ = 1, that is from the policy,
so that one decode gives the tokens and their log-probabilities under policy and reference. The
equations are in `policy_gradient.py`.

Axes: B prompts, K rollouts of each, T output length, b prompts of a minibatch.
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
    log_prob_of,
    sequence_keys,
    within,
)
from dera_jax.rewards.judge import score
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import REWARD, Reward, Source, check_limit
from dera_jax.training import policy_gradient as pg
from dera_jax.training.losses import per_token
from dera_jax.training.optimizers import Optimizer, jointly
from dera_jax.training.train_state import Batch, Memory, Step, TrainState, descend, new_state


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
        checks.check_fields(
            self, reward=REWARD, max_length=checks.whole(1), beta=checks.number(above=0)
        )
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

    Raises:
        ValueError: a setting out of its range.
    """

    rollouts: int = 4
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    decay: float = 0.95

    def __post_init__(self):
        sizes = dict.fromkeys(("rollouts", "epochs", "minibatches"), checks.whole(1))
        decay = checks.number(least=0, most=1)
        checks.check_fields(self, clip=checks.number(above=0), decay=decay, **sizes)

    def check_batch(self, documents: int) -> None:
        """Raises ValueError unless a batch of so many documents can be divided into minibatches."""
        if documents % self.minibatches:
            raise ValueError(
                f"the batch of {documents} documents must be divisible by Updates.minibatches "
                f"({self.minibatches})."
            )


@dataclasses.dataclass(frozen=True)
class Actors:
    """The architectures: reference and policy are of the same, the value network may be another."""

    model: TrainableModel
    value: ValueModel


@dataclasses.dataclass(frozen=True)
class Optimizers:
    """One for each network, with learning rates of their own; both count minibatches."""

    policy: Optimizer
    value: Optimizer

    @property
    def together(self) -> Optimizer:
        """Of {"policy": …, "value": …}."""
        return jointly({"policy": self.policy, "value": self.value})

    def __post_init__(self):
        checks.check_fields(
            self, policy=checks.instance(Optimizer), value=checks.instance(Optimizer)
        )

    def check_warmup(self, name: str, updates: int) -> None:
        """As `Optimizer.check_warmup`, of both."""
        for optimizer in (self.policy, self.value):
            optimizer.check_warmup(name, updates)


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that a step depends on beside its arguments."""

    actors: Actors
    objective: Objective
    updates: Updates
    optimizers: Optimizers
    memory: Memory = dataclasses.field(default_factory=Memory)

    @property
    def loss(self) -> "PPOLoss":
        """What an update minimises."""
        actors, memory = self.actors, self.memory
        value = actors.value
        if memory.remat is not None:
            value = dataclasses.replace(value, trunk=memory.of(value.trunk))
        small = Actors(memory.of(actors.model), value)
        return PPOLoss(small, self.updates.clip, memory.chunk)


@struct.dataclass
class Experience:
    """A rollout, ready to learn from.

    Attributes:
        prompts: B of them.
        tokens: int32 [B, K, T].
        old_log_prob: float32 [B, K, T], of the tokens when they were sampled.
        advantages: float32 [B, K, T], whitened.
        targets: float32 [B, K, T], of the value function.
        weights: float32 [B, K, T]; 0 after the text, and 1 / (mean length of the whole rollout)
            within: the mean over rows of a sum over tokens is then the mean over all tokens, and
            minibatches of short texts do not weigh more.
    """

    prompts: Prompts
    tokens: Array
    old_log_prob: Array
    advantages: Array
    targets: Array
    weights: Array


def initial_state(optimizers: Optimizers, policy: PyTree, value: PyTree) -> TrainState:
    """A run's first state; its steps count rollouts."""
    return new_state({"policy": policy, "value": value}, optimizers.together)


def make_step(setup: Setup) -> Step:
    """The step of PPO, for a compiled reward: one rollout and its epochs of updates.

    Frozen are the parameters of `reference` and `reward`. The batch has `inputs`, `example_id` and what
    the reward reads (`rewards.protocol.Source`). Texts depend on (key, example id, step), minibatches on (key, step). Metrics are scalars, of the rollout
    before its updates unless they are losses.

    Raises:
        ValueError: (at the first call) B is not divisible by the minibatches.
    """

    def step(state: TrainState, frozen: PyTree, batch: Batch, key: Array):
        samples = roll_out(setup, state, frozen, batch, key)
        texts = samples.tokens, samples.lengths, samples.finished
        rewards = score(setup.objective.reward, frozen["reward"], source_of(batch), *texts)
        return learn(setup, state, (batch["inputs"], samples, rewards), key)

    return step


def make_halves(setup: Setup) -> tuple[Callable, Step]:
    """The same step in two, between which a reward in Python scores all texts at once.

    Returns:
        `roll_out`, and `learn` as a step, whose batch are the prompts, the samples and their rewards.
    """

    def improve(state: TrainState, frozen: None, rollout: tuple, key: Array):
        del frozen
        return learn(setup, state, rollout, key)

    return functools.partial(roll_out, setup), improve


def roll_out(setup: Setup, state: TrainState, frozen: PyTree, batch: Batch, key: Array) -> Samples:
    """Samples the policy, K sequences for each prompt, with the keys of this step."""
    updates, model, prompts = setup.updates, setup.actors.model, batch["inputs"]
    updates.check_batch(len(prompts.tokens))
    numbers = state.step * updates.rollouts + jnp.arange(updates.rollouts)
    keys = sequence_keys(key, batch["example_id"], numbers)
    params = frozen["reference"], state.params["policy"]
    prompts = prompts.replace(lam=np.ones((len(prompts.tokens), 1), np.float32))
    sampling = Sampling(setup.objective.max_length)
    return sample(Realigned(model, (model,)), params, prompts, keys, sampling)


def source_of(batch: Batch) -> Source:
    """What rewards know of a batch."""
    optional = (batch.get(name) for name in ("targets", "keywords", "document"))
    return Source(batch["inputs"], *optional)


def learn(
    setup: Setup, state: TrainState, rollout: tuple[Prompts, Samples, tuple], key: Array
) -> tuple[TrainState, dict[str, Array]]:
    """The epochs of updates on a rollout: prompts, samples, and rewards[B, K] with their named parts."""
    prompts, samples, rewards = rollout
    experience = judged(setup, state, prompts, samples, rewards[0])
    observed = observe(setup.objective.reward, samples, *rewards)
    key = jax.random.fold_in(key, state.step)
    order = minibatch_order(key, len(prompts.tokens), setup.updates)
    optimizer, microbatches = setup.optimizers.together, setup.memory.microbatches

    def improve(state: TrainState, rows: Array):
        batch = jax.tree.map(lambda x: x[rows], experience)
        return descend(setup.loss, optimizer, microbatches, state, None, batch, key)

    state, losses = jax.lax.scan(improve, state, order)
    losses = jax.tree.map(jnp.mean, losses)
    return state.replace(step=state.step + 1), observed | losses


def judged(
    setup: Setup, state: TrainState, prompts: Prompts, samples: Samples, reward: Array
) -> Experience:
    """A rollout and its reward[B, K], ready to learn from."""
    actors, objective, updates = setup.actors, setup.objective, setup.updates
    mask = within(samples.lengths, objective.max_length)
    before = samples.tokens[..., :-1]  # of each token the value of what stands before it
    values = actors.value.values(state.params["value"], prompts, before) * mask

    def credit(reward: Array, log_ratio: Array, length: Array, values: Array) -> Array:
        rewards = pg.token_rewards(reward, log_ratio, length, objective.beta)
        return pg.generalized_advantages(rewards, values, updates.decay)

    each = jax.vmap(jax.vmap(credit))
    advantages = each(reward, log_ratio(samples), samples.lengths, values)
    return Experience(
        prompts=prompts,
        tokens=samples.tokens,
        old_log_prob=samples.scores.sampling_log_prob,
        advantages=pg.whiten(advantages, mask),
        targets=advantages + values,
        weights=mask / jnp.mean(samples.lengths),
    )


def log_ratio(samples: Samples) -> Array:
    """log π − log π_ref of each token of a rollout, [B, K, T]."""
    return samples.scores.sampling_log_prob - samples.scores.part_log_prob[0]


def observe(
    what: Reward, samples: Samples, reward: Array, parts: Mapping[str, Array]
) -> dict[str, Array]:
    """Scalars about a rollout with rewards and their parts, [B, K] each."""
    shares = {"share_in_range": jnp.mean(reward == 0)} if isinstance(what, LengthInRange) else {}
    return {
        "tokens": jnp.sum(samples.lengths),
        "reward": jnp.mean(reward),
        **{f"reward_{name}": jnp.mean(values) for name, values in parts.items()},
        **shares,
        # Of whole texts, from the tokens drawn; and from whole distributions.
        "kl": jnp.mean(jnp.sum(log_ratio(samples), axis=-1)),
        "full_kl": jnp.mean(jnp.sum(samples.scores.kl, axis=-1)),
        "length": jnp.mean(samples.lengths - samples.finished),
        "finished": jnp.mean(samples.finished),
    }


def minibatch_order(key: Array, num_inputs: int, updates: Updates) -> Array:
    """Which inputs each update sees, int32 [epochs * minibatches, b]; each epoch in a new order."""
    keys = jax.random.split(key, updates.epochs)
    order = jax.vmap(jax.random.permutation, (0, None))(keys, num_inputs)
    return order.reshape(updates.epochs * updates.minibatches, -1)


@dataclasses.dataclass(frozen=True)
class PPOLoss:
    """The clipped objective of the policy, and the squared error of the value function.

    Attributes:
        actors: whose.
        clip: ε.
        chunk: see `train_state.Memory`.
    """

    actors: Actors
    clip: float
    chunk: int | None = None

    def weight(self, batch: Experience) -> Array:
        """The texts of a minibatch of b prompts, b·K."""
        return jnp.float32(math.prod(batch.tokens.shape[:2]))

    def __call__(
        self, params: PyTree, frozen: None, batch: Experience, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """See `train_state.Objective`; there is no dropout."""
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
        rows = jax.vmap(jax.vmap(functools.partial(pg.clipped_policy_loss, clip=self.clip)))
        total = lambda each: jnp.sum(each * batch.weights)
        return total(rows(log_prob, batch.old_log_prob, batch.advantages)), {
            "entropy": total(entropy),
            "clip_fraction": total(pg.is_clipped(log_prob, batch.old_log_prob, self.clip)),
        }

    def _value(self, params: PyTree, batch: Experience) -> Array:
        values = self.actors.value.values(params, batch.prompts, batch.tokens[..., :-1])
        return jnp.sum(pg.value_loss(values, batch.targets) * batch.weights)
