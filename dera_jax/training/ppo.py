"""PPO for E[r] − β·KL(π ‖ π_ref): one compiled step of rollout and updates.

The texts of a rollout come from `sample` on the realigned pair at λ = 1, that is from the policy,
so that one decode gives the tokens and their log-probabilities under policy and reference. The
equations are in `policy_gradient.py`.

Axes: B prompts, K rollouts of each, T output length, b prompts of a minibatch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    next_token_logits,
    sequence_keys,
    within,
)
from dera_jax.rewards.judge import Judge, score
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import REWARD, Reward, Source, check_limit
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
    """All that a step depends on beside its arguments; seed: of texts and minibatches."""

    actors: Actors
    objective: Objective
    updates: Updates
    optimizers: Optimizers
    seed: int

    def __post_init__(self):
        checks.check_fields(self, seed=checks.SEED)


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


def initial_state(optimizers: Optimizers, policy: PyTree, value: PyTree) -> PPOState:
    """A run's first state."""
    policy, value = new_learner(optimizers.policy, policy), new_learner(optimizers.value, value)
    return PPOState(jnp.int32(0), policy, value)


def new_learner(optimizer: Optimizer, params: PyTree) -> Learner:
    """Starts from these parameters, copied, since a step donates its state."""
    params = jax.tree.map(jnp.array, params)
    return Learner(params, optimizer.transformation.init(params))


def make_step(setup: Setup) -> Callable:
    """The compiled (state, fixed, source, example_ids[B]) -> (state, metrics).

    One rollout and its epochs of updates; `state` is donated. Texts depend on (seed, example id,
    step), minibatches on (seed, step). Metrics are scalars, of the rollout before its updates
    unless they are losses.

    Raises:
        ValueError: (at the first call) B is not divisible by the minibatches.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: PPOState, fixed: Fixed, source: Source, example_ids: Array):
        samples = roll_out(setup, state, fixed, source.prompts, example_ids)
        texts = samples.tokens, samples.lengths, samples.finished
        rewards = score(setup.objective.reward, fixed.reward, source, *texts)
        return learn(setup, state, source.prompts, samples, rewards)

    return step


def make_host_step(setup: Setup, judge: Judge) -> Callable:
    """What `make_step` gives, for a reward in Python: (state, fixed, source, ids, documents[B]).

    Two compiled calls, with the judge between them, which sees all texts of the rollout at once.
    """

    write, improve = make_halves(setup)

    def step(state, fixed, source, example_ids, documents: Sequence[str]):
        samples = write(state, fixed, source.prompts, example_ids)
        texts = samples.tokens, samples.lengths, samples.finished
        rewards = judge(source, documents, *texts)
        return improve(state, source.prompts, samples, rewards)

    return step


def make_halves(setup: Setup) -> tuple[Callable, Callable]:
    """`roll_out` and `learn`, compiled; the second's state is donated."""
    write = jax.jit(functools.partial(roll_out, setup))
    return write, jax.jit(functools.partial(learn, setup), donate_argnums=0)


def roll_out(
    setup: Setup, state: PPOState, fixed: Fixed, prompts: Prompts, example_ids: Array
) -> Samples:
    """Samples the policy, K sequences for each prompt, with the keys of this step."""
    updates, model = setup.updates, setup.actors.model
    updates.check_batch(len(prompts.tokens))
    numbers = state.step * updates.rollouts + jnp.arange(updates.rollouts)
    keys = sequence_keys(setup.seed, example_ids, numbers)
    params = fixed.reference, state.policy.params
    prompts = prompts.replace(lam=np.ones((len(prompts.tokens), 1), np.float32))
    sampling = Sampling(setup.objective.max_length)
    return sample(Realigned(model, (model,)), params, prompts, keys, sampling)


def learn(
    setup: Setup,
    state: PPOState,
    prompts: Prompts,
    samples: Samples,
    rewards: tuple[Array, Mapping[str, Array]],
) -> tuple[PPOState, dict[str, Array]]:
    """The epochs of updates on a rollout with its rewards[B, K] and their named parts."""
    experience = judged(setup, state, prompts, samples, rewards[0])
    observed = observe(setup.objective.reward, samples, *rewards)
    key = jax.random.fold_in(jax.random.key(setup.seed), state.step)
    order = minibatch_order(key, len(prompts.tokens), setup.updates)

    def improve(state: PPOState, rows: Array):
        batch = jax.tree.map(lambda x: x[rows], experience)
        return update(setup.actors, setup.optimizers, setup.updates.clip, state, batch)

    state, losses = jax.lax.scan(improve, state, order)
    losses = jax.tree.map(jnp.mean, losses)
    losses["loss"] = losses["policy_loss"] + losses["value_loss"]
    return state.replace(step=state.step + 1), observed | losses


def judged(
    setup: Setup, state: PPOState, prompts: Prompts, samples: Samples, reward: Array
) -> Experience:
    """A rollout and its reward[B, K], ready to learn from."""
    actors, objective, updates = setup.actors, setup.objective, setup.updates
    mask = within(samples.lengths, objective.max_length)
    before = samples.tokens[..., :-1]  # of each token the value of what stands before it
    values = actors.value.values(state.value.params, prompts, before) * mask

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


def update(
    actors: Actors, optimizers: Optimizers, clip: float, state: PPOState, batch: Experience
) -> tuple[PPOState, dict[str, Array]]:
    """One step of both optimizers on the b prompts of a minibatch, with all their rollouts."""
    policy_loss_of = lambda params: policy_loss(actors.model, params, batch, clip)
    value_loss_of = lambda params: value_loss(actors.value, params, batch)
    policy, metrics = descend(optimizers.policy, state.policy, policy_loss_of)
    value, value_metrics = descend(optimizers.value, state.value, value_loss_of)
    return state.replace(policy=policy, value=value), metrics | value_metrics


def policy_loss(
    model: TrainableModel, params: PyTree, batch: Experience, clip: float
) -> tuple[Array, dict[str, Array]]:
    """The clipped objective, and what to log of it."""
    log_probs = jax.nn.log_softmax(next_token_logits(model, params, batch.prompts, batch.tokens))
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
    values = model.values(params, batch.prompts, batch.tokens[..., :-1])
    loss = _mean(pg.value_loss(values, batch.targets), batch.weights)
    return loss, {"value_loss": loss}


def _mean(per_token: Array, weights: Array) -> Array:
    """[b, K, T] -> the mean over rows of the weighted sum over tokens."""
    return jnp.mean(jnp.sum(per_token * weights, axis=-1))


def descend(optimizer: Optimizer, learner: Learner, loss_of: Callable) -> tuple[Learner, dict]:
    """One step on loss_of(params) -> (loss, what to log)."""
    grads, metrics = jax.grad(loss_of, has_aux=True)(learner.params)
    changes, opt_state = optimizer.transformation.update(grads, learner.opt_state, learner.params)
    return Learner(optax.apply_updates(learner.params, changes), opt_state), metrics
