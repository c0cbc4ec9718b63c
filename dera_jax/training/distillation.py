"""Distils the optimum of E[r] − β·KL(π ‖ π_ref) into a policy, one next-token distribution at a time.

For texts y of an input x the optimum is π*(y) ∝ π_ref(y)·exp(r(y)/β), that is, token by token,

    π*(v | s) ∝ π_ref(v | s)·E[exp(r/β) | s, v]

where s is a prefix and the reference writes what follows v. A critic learns the expectation: with the
highest possible reward r_max, σ(q_v(s)) = E[exp((r − r_max)/β) | s, v] lies in (0, 1). The policy then
learns the whole distribution softmax(h_ref + log σ(q)) at every prefix, which is far less noisy than
the one token that a sample shows (of π* or, as in PPO, with a weight).

First the critic alone learns, from texts of the reference: the policy is still the reference then. After
that the policy alone learns, at the prefixes of its own texts.

Source of the equation: Yang and Klein 2021 (arXiv 2104.05218), Mudgal et al. 2024 (arXiv 2310.17022).

Axes: B prompts, K sequences of each, T output length, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Samples, Sampling, sample
from dera_jax.models.heads import Critic
from dera_jax.models.language_model import (
    Prompts,
    PyTree,
    TrainableModel,
    next_token_logits,
    sequence_keys,
    within,
)
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.ppo import Objective
from dera_jax.training.train_state import Batch, Step, TrainState, descend


@dataclasses.dataclass(frozen=True)
class Setup:
    """How texts are sampled.

    Attributes:
        model: of reference and policy.
        objective: whose optimum is distilled.
        rollouts: K.

    Raises:
        ValueError: a setting out of its range, or a reward without a known bound.
    """

    model: TrainableModel
    objective: Objective
    rollouts: int

    def __post_init__(self):
        checks.check_fields(self, rollouts=checks.whole(1))
        check_bound(self.objective)


def check_bound(objective: Objective) -> None:
    """Raises ValueError unless the highest possible reward is known."""
    if objective.reward.highest is None:
        raise ValueError(f"distillation needs a reward with a bound; {objective.reward} has none")


@struct.dataclass
class Rollout:
    """Texts to learn from, B rows of K."""

    prompts: Prompts
    tokens: Array
    lengths: Array
    reward: Array

    @property
    def written(self) -> Array:
        """Which tokens belong to the texts, bool [B, K, T]."""
        return within(self.lengths, self.tokens.shape[-1])


def roll_out(
    setup: Setup, policy: PyTree, reference: PyTree, batch: Batch, number: Array, key: Array
) -> Samples:
    """K sequences of the policy for each prompt; the reference tells their KL.

    Args:
        setup: of the step.
        policy: its parameters; those of the reference while the critic learns.
        reference: its parameters.
        batch: `inputs` and `example_id`.
        number: int32 [], of the round: texts depend on (key, example id, number).
        key: of the run.
    """
    numbers = number * setup.rollouts + jnp.arange(setup.rollouts)
    keys = sequence_keys(key, batch["example_id"], numbers)
    sampling = Sampling(setup.objective.max_length)
    pair, params = Realigned(setup.model, (setup.model,)), (reference, policy)
    prompts = batch["inputs"].replace(lam=np.ones((len(batch["example_id"]), 1), np.float32))
    return sample(pair, params, prompts, keys, sampling)


def make_step(loss: "CriticLoss | PolicyLoss", optimizer: Optimizer, microbatches: int = 1) -> Step:
    """The step on a rollout with its rewards: one update."""

    def step(state: TrainState, frozen: PyTree, rollout: Rollout, key: Array):
        state, metrics = descend(loss, optimizer, microbatches, state, frozen, rollout, key)
        return state.replace(step=state.step + 1), metrics

    return step


def observe(samples: Samples, rewards: Array) -> dict[str, Array]:
    """Scalars about a round of the policy's texts with their rewards[B, K]."""
    return {
        "tokens": jnp.sum(samples.lengths),
        "reward": jnp.mean(rewards),
        "kl": jnp.mean(jnp.sum(samples.scores.kl, axis=-1)),
        "length": jnp.mean(samples.lengths - samples.finished),
        "finished": jnp.mean(samples.finished),
    }


def optimum_logits(reference: Array, log_odds: Array) -> Array:
    """Logits of π*, [..., V], from the reference's logits and the critic's log-odds q, [..., V]."""
    return reference + jax.nn.log_sigmoid(log_odds)


@dataclasses.dataclass(frozen=True)
class CriticLoss:
    """Binary cross-entropy of σ(q) with a text's goodness exp((r − r_max)/β) in (0, 1], per token.

    Its minimum is σ(q) = E[goodness].
    """

    critic: Critic
    objective: Objective

    def weight(self, batch: Rollout) -> Array:
        return jnp.maximum(jnp.sum(batch.written), 1e-9)

    def __call__(
        self, params: PyTree, frozen: PyTree, batch: Rollout, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """See `train_state.Objective`; trained is the critic."""
        del frozen, key
        goodness = jnp.exp((batch.reward - self.objective.reward.highest) / self.objective.beta)
        log_odds = self.critic.log_odds_of(params, batch.prompts, batch.tokens)
        return jnp.sum(critic_loss(log_odds, goodness) * batch.written), {}


def critic_loss(log_odds: Array, goodness: Array) -> Array:
    """Of each token [B, K, T], from its log-odds q and its text's goodness [B, K]."""
    return jax.nn.softplus(log_odds) - goodness[..., None] * log_odds


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """KL(π ‖ π*) of the next token, at the prefixes of the policy's own texts.

    Summed over a text it is KL(π ‖ π*), and β times that what the policy's E[r] − β·KL(π ‖ π_ref) lacks of
    the highest possible.
    """

    model: TrainableModel
    critic: Critic

    def weight(self, batch: Rollout) -> Array:
        return jnp.maximum(jnp.sum(batch.written), 1e-9)

    def __call__(
        self, params: PyTree, frozen: PyTree, batch: Rollout, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """See `train_state.Objective`; trained is the policy, frozen are `reference` and `critic`."""
        del key
        prompts, tokens = batch.prompts, batch.tokens
        log_odds = self.critic.log_odds(frozen["critic"], prompts, tokens)
        reference = next_token_logits(self.model, frozen["reference"], prompts, tokens)
        targets = jax.lax.stop_gradient(optimum_logits(reference, log_odds))
        logits = next_token_logits(self.model, params, prompts, tokens)
        return jnp.sum(policy_loss(logits, targets) * batch.written), {}


def policy_loss(logits: Array, targets: Array) -> Array:
    """KL(softmax(logits) ‖ softmax(targets)) of [..., V] each: [...]."""
    log_pi, log_target = jax.nn.log_softmax(logits), jax.nn.log_softmax(targets)
    return jnp.sum(jnp.exp(log_pi) * (log_pi - log_target), axis=-1)
