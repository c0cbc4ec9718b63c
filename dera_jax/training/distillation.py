"""Distils the KL-regularized optimum of E[r] − β·KL(π ‖ π_ref) into a policy, token by token.

The optimal policy for the completions y of a prompt is π*(y) ∝ π_ref(y)·exp(r(y)/β). Its next-token
distribution after a prefix s is

    π*(v | s) ∝ π_ref(v | s)·E[exp(r/β) | s, v]

where the reference policy samples the tokens that follow v. A critic estimates the expectation:
with the highest possible reward r_max, σ(q_v(s)) = E[exp((r − r_max)/β) | s, v] lies in (0, 1]. The
policy is then trained on the full distribution softmax(h_ref + log σ(q)) at every prefix. This
target has much less variance than the single token that a sample contributes (a sample of π*, or a
weighted one in PPO).

The critic is trained first, on outputs of the reference policy, from which the policy starts. The
policy is trained afterwards, with a frozen critic, at the prefixes of its own outputs.

Sources of the equation: Yang and Klein 2021 (arXiv 2104.05218) and Mudgal et al. 2024
(arXiv 2310.17022).

Axes: B prompts, K hypotheses of each, T output length, V vocabulary.
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
    length_mask,
    next_token_logits,
    sequence_keys,
)
from dera_jax.models.lora import with_base
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.ppo import AlignmentObjective
from dera_jax.training.train_state import Batch, Frozen, Step, TrainState, descend


@dataclasses.dataclass(frozen=True)
class DistillationSetup:
    """Configures the rollouts of distillation.

    Attributes:
        model: architecture of the reference policy and of the trained policy.
        objective: the objective whose optimal policy is distilled.
        rollouts: K, hypotheses sampled for each prompt.

    Raises:
        ValueError: a field is out of its range, or the reward has no known upper bound.
    """

    model: TrainableModel
    objective: AlignmentObjective
    rollouts: int

    def __post_init__(self):
        checks.check_fields(self, rollouts=checks.integer(1))
        check_bound(self.objective)


def check_bound(objective: AlignmentObjective) -> None:
    """Raises ValueError unless the reward declares its highest possible value."""
    if objective.reward.highest is None:
        raise ValueError(
            "distillation needs a reward with a known upper bound (Reward.highest); found "
            f"{objective.reward}. Choose a bounded reward, or run PPO without distillation."
        )


@struct.dataclass
class Rollout:
    """Holds B prompts, tokens[B, K, T] of their hypotheses, lengths[B, K] and reward[B, K]."""

    prompts: Prompts
    tokens: Array
    lengths: Array
    reward: Array

    @property
    def mask(self) -> Array:
        """Returns bool [B, K, T], whether a token lies within its hypothesis."""
        return length_mask(self.lengths, self.tokens.shape[-1])


def roll_out(
    setup: DistillationSetup,
    policy: PyTree,
    frozen: Frozen,
    batch: Batch,
    number: Array,
    key: Array,
) -> Samples:
    """Samples K hypotheses of the policy for each prompt, with their KL from the reference policy.

    Args:
        setup: configuration of the rollouts.
        policy: parameters of the policy; those of the reference while the critic is trained.
        frozen: "reference", the parameters of the reference policy, and "base", see `train_state`.
        batch: the columns `inputs` and `example_id`.
        number: int32 [], index of the rollout: samples depend on (key, example id, number).
        key: PRNG key of the run.
    """
    numbers = number * setup.rollouts + jnp.arange(setup.rollouts)
    keys = sequence_keys(key, batch["example_id"], numbers)
    sampling = Sampling(setup.objective.max_length)
    pair = Realigned(setup.model, (setup.model,))
    params = with_base((frozen["reference"], policy), frozen.get("base"))
    prompts = batch["inputs"].replace(lam=np.ones((len(batch["example_id"]), 1), np.float32))
    return sample(pair, params, prompts, keys, sampling)


def make_step(loss: "CriticLoss | PolicyLoss", optimizer: Optimizer, microbatches: int = 1) -> Step:
    """Returns the step of distillation, which makes one update on a `Rollout`."""

    def step(state: TrainState, frozen: Frozen, rollout: Rollout, key: Array):
        state, metrics = descend(loss, optimizer, microbatches, state, frozen, rollout, key)
        return state.replace(step=state.step + 1), metrics

    return step


def rollout_metrics(samples: Samples, rewards: Array) -> dict[str, Array]:
    """Returns scalar metrics of a rollout with rewards[B, K]; KL is in nats, length in tokens."""
    return {
        "tokens": jnp.sum(samples.lengths),
        "reward": jnp.mean(rewards),
        "kl": jnp.mean(jnp.sum(samples.scores.kl, axis=-1)),
        "length": jnp.mean(samples.lengths - samples.finished),
        "finished": jnp.mean(samples.finished),
    }


def optimal_policy_logits(reference: Array, log_odds: Array) -> Array:
    """Returns the logits of π*, from the reference's logits and the log-odds q, all [..., V]."""
    return reference + jax.nn.log_sigmoid(log_odds)


@dataclasses.dataclass(frozen=True)
class CriticLoss:
    """Sums the binary cross-entropy of σ(q) with the target exp((r − r_max)/β) over all tokens.

    All tokens of a hypothesis share its target, which lies in (0, 1]. The minimum is at
    σ(q) = E[target].
    """

    critic: Critic
    objective: AlignmentObjective

    def weight(self, batch: Rollout) -> Array:
        """Returns the number of tokens of the rollout, float32 []."""
        return jnp.maximum(jnp.sum(batch.mask), 1e-9)

    def __call__(
        self, params: PyTree, frozen: Frozen, batch: Rollout, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Computes the loss; `params` are the critic's, `frozen` is not used."""
        del frozen, key
        targets = jnp.exp((batch.reward - self.objective.reward.highest) / self.objective.beta)
        log_odds = self.critic.log_odds_of(params, batch.prompts, batch.tokens)
        return jnp.sum(critic_loss(log_odds, targets) * batch.mask), {}


def critic_loss(log_odds: Array, targets: Array) -> Array:
    """Returns the binary cross-entropy in nats of log_odds[B, K, T] with targets targets[B, K]."""
    return jax.nn.softplus(log_odds) - targets[..., None] * log_odds


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """Sums the next-token KL(π ‖ π*) over the prefixes of the policy's own outputs.

    The expected sum over an output is the sequence-level KL(π ‖ π*). β times that KL is the gap
    between the policy's E[r] − β·KL(π ‖ π_ref) and the highest possible value of this objective.
    """

    model: TrainableModel
    critic: Critic

    def weight(self, batch: Rollout) -> Array:
        """Returns the number of tokens of the rollout, float32 []."""
        return jnp.maximum(jnp.sum(batch.mask), 1e-9)

    def __call__(
        self, params: PyTree, frozen: Frozen, batch: Rollout, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Computes the loss; `params` are the policy's, `frozen` has `reference` and `critic`."""
        del key
        prompts, tokens = batch.prompts, batch.tokens
        log_odds = self.critic.log_odds(frozen["critic"], prompts, tokens)
        reference = next_token_logits(self.model, frozen["reference"], prompts, tokens)
        targets = jax.lax.stop_gradient(optimal_policy_logits(reference, log_odds))
        logits = next_token_logits(self.model, params, prompts, tokens)
        return jnp.sum(policy_loss(logits, targets) * batch.mask), {}


def policy_loss(logits: Array, targets: Array) -> Array:
    """Returns KL(softmax(logits) ‖ softmax(targets)) in nats, [...], of [..., V] each."""
    log_pi, log_target = jax.nn.log_softmax(logits), jax.nn.log_softmax(targets)
    return jnp.sum(jnp.exp(log_pi) * (log_pi - log_target), axis=-1)
