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
import functools
from collections.abc import Callable, Sequence

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
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import Source
from dera_jax.training.losses import weighted_mean
from dera_jax.training.ppo import Learner, Objective, Optimizers, descend, new_learner


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that a step depends on beside its arguments.

    Attributes:
        model: of reference and policy.
        critic: the architecture; it is trained and then thrown away.
        objective: whose optimum is distilled.
        rollouts: K.
        critic_steps: rounds of texts for the critic, before those for the policy.
        optimizers: of policy and critic (`value`).
        seed: of texts.

    Raises:
        ValueError: a setting out of its range, or a reward without a known bound.
    """

    model: TrainableModel
    critic: Critic
    objective: Objective
    rollouts: int
    critic_steps: int
    optimizers: Optimizers
    seed: int

    def __post_init__(self):
        sizes = {"rollouts": checks.whole(1), "critic_steps": checks.whole(0)}
        checks.check_fields(self, seed=checks.SEED, **sizes)
        check_bound(self.objective)


def check_bound(objective: Objective) -> None:
    """Raises ValueError unless the highest possible reward is known."""
    if objective.reward.highest is None:
        raise ValueError(f"distillation needs a reward with a bound; {objective.reward} has none")


@struct.dataclass
class DistillationState:
    """What a checkpoint holds; step: int32, rounds of texts so far."""

    step: Array
    policy: Learner
    critic: Learner


def initial_state(optimizers: Optimizers, policy: PyTree, critic: PyTree) -> DistillationState:
    """A run's first state."""
    policy, critic = new_learner(optimizers.policy, policy), new_learner(optimizers.value, critic)
    return DistillationState(jnp.int32(0), policy, critic)


def make_step(setup: Setup, judge: Judge) -> Callable:
    """(state, reference, source, example_ids[B], documents[B]) -> (state, metrics).

    A round of the policy's texts, its rewards, and one update of the critic or, after
    `critic_steps`, of the policy; `state` is donated. Texts depend on (seed, example id, step).
    Metrics are scalars, `loss` that of the one that learns.
    """
    write = jax.jit(functools.partial(roll_out, setup))
    teach_critic = jax.jit(functools.partial(learn_critic, setup), donate_argnums=0)
    teach_policy = jax.jit(functools.partial(learn_policy, setup), donate_argnums=0)

    def step(
        state: DistillationState,
        reference: PyTree,
        source: Source,
        example_ids: Array,
        documents: Sequence[str] | None = None,
    ):
        critic_learns = int(state.step) < setup.critic_steps
        samples = write(state, reference, source.prompts, example_ids)
        texts = samples.tokens, samples.lengths, samples.finished
        rewards, _ = judge(source, documents, *texts)
        if critic_learns:
            state, metrics = teach_critic(state, source.prompts, samples, rewards)
        else:
            state, metrics = teach_policy(state, reference, source.prompts, samples)
        return state, metrics | observe(samples, rewards)

    return step


def roll_out(
    setup: Setup, state: DistillationState, reference: PyTree, prompts: Prompts, example_ids: Array
) -> Samples:
    """K sequences of the policy for each prompt; the reference tells their KL."""
    numbers = state.step * setup.rollouts + jnp.arange(setup.rollouts)
    keys = sequence_keys(setup.seed, example_ids, numbers)
    sampling = Sampling(setup.objective.max_length)
    pair, params = Realigned(setup.model, (setup.model,)), (reference, state.policy.params)
    prompts = prompts.replace(lam=np.ones((len(example_ids), 1), np.float32))
    return sample(pair, params, prompts, keys, sampling)


def learn_critic(
    setup: Setup, state: DistillationState, prompts: Prompts, samples: Samples, rewards: Array
) -> tuple[DistillationState, dict[str, Array]]:
    """One update of the critic on texts of the reference with their rewards[B, K]."""
    objective, tokens = setup.objective, samples.tokens
    goodness = jnp.exp((rewards - objective.reward.highest) / objective.beta)
    loss_of = lambda params: critic_loss(
        setup.critic.log_odds_of(params, prompts, tokens), goodness, written(samples)
    )
    critic, metrics = descend(setup.optimizers.value, state.critic, loss_of)
    return state.replace(step=state.step + 1, critic=critic), metrics


def learn_policy(
    setup: Setup, state: DistillationState, reference: PyTree, prompts: Prompts, samples: Samples
) -> tuple[DistillationState, dict[str, Array]]:
    """One update of the policy at all prefixes of its texts."""
    tokens = samples.tokens
    log_odds = setup.critic.log_odds(state.critic.params, prompts, tokens)
    targets = optimum_logits(next_token_logits(setup.model, reference, prompts, tokens), log_odds)
    loss_of = lambda params: policy_loss(
        next_token_logits(setup.model, params, prompts, tokens), targets, written(samples)
    )
    policy, metrics = descend(setup.optimizers.policy, state.policy, loss_of)
    return state.replace(step=state.step + 1, policy=policy), metrics


def written(samples: Samples) -> Array:
    """Which tokens belong to the texts, bool [B, K, T]."""
    return within(samples.lengths, samples.tokens.shape[-1])


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


def critic_loss(log_odds: Array, goodness: Array, weights: Array) -> tuple[Array, dict[str, Array]]:
    """Binary cross-entropy of σ(q) with a text's goodness in (0, 1], and what to log of it.

    Its minimum is σ(q) = E[goodness].

    Args:
        log_odds: [B, K, T], q of each token of the texts.
        goodness: [B, K].
        weights: [B, K, T].
    """
    loss = jax.nn.softplus(log_odds) - goodness[..., None] * log_odds
    mean = weighted_mean(loss, weights)
    return mean, {"loss": mean}


def policy_loss(logits: Array, targets: Array, weights: Array) -> tuple[Array, dict[str, Array]]:
    """KL(softmax(logits) ‖ softmax(targets)), [..., V] each, averaged with weights[...].

    At the prefixes of the policy's own texts. Summed over a text it is KL(π ‖ π*), and β times that
    what the policy's E[r] − β·KL(π ‖ π_ref) lacks of the highest possible.
    """
    log_pi, log_target = jax.nn.log_softmax(logits), jax.nn.log_softmax(targets)
    mean = weighted_mean(jnp.sum(jnp.exp(log_pi) * (log_pi - log_target), axis=-1), weights)
    return mean, {"loss": mean}
