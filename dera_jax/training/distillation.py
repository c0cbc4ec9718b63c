"""Distils the optimum of E[r] − β·KL(π ‖ π_ref) into a policy, one next-token distribution at a time.

For texts y of an input x the optimum is π*(y) ∝ π_ref(y)·exp(r(y)/β), that is, token by token,

    π*(v | s) ∝ π_ref(v | s)·E[exp(r/β) | s, v]

where s is a prefix and the reference writes what follows v. A critic learns the expectation: with the
highest possible reward r_max, σ(q_v(s)) = E[exp((r − r_max)/β) | s, v] lies in (0, 1). The policy then
learns the whole distribution softmax(h_ref + log σ(q)) at every prefix, which is far less noisy than
the one token that a sample shows (of π* or, as in PPO, with a weight).

Of an input's K texts text k is begun by the policy and, from its τ_k-th token on, ended by the
reference, τ_k from 0 to the length limit. So the critic learns from the reference's own endings, as the
equation demands, but at prefixes that the policy reaches; the last text is the policy's alone.

Source of the equation: Yang and Klein 2021 (arXiv 2104.05218), Mudgal et al. 2024 (arXiv 2310.17022).

Axes: B inputs, K texts of each input, S input length, T output length, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Samples, Sampling, sample
from dera_jax.models.heads import Critic, start_teacher_forcing
from dera_jax.models.language_model import LanguageModel, Output, PyTree, State, streams
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
        rollouts: K, at least 2.
        optimizers: of policy and critic (`value`).
        seed: of texts.

    Raises:
        ValueError: fewer than 2 rollouts, or a reward without a known bound.
    """

    model: LanguageModel
    critic: Critic
    objective: Objective
    rollouts: int
    optimizers: Optimizers
    seed: int

    def __post_init__(self):
        if self.rollouts < 2:
            raise ValueError(f"distillation needs at least 2 rollouts; found {self.rollouts}")
        if self.objective.reward.highest is None:
            raise ValueError(
                f"distillation needs a reward with a bound; {self.objective.reward} has none"
            )


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


class Handover(Realigned):
    """A pair of which the aligned model writes the first τ tokens of a text, the reference the rest.

    τ of each row is in the place of λ: [B, K].
    """

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        by_aligned = (state.lengths < state.lam).astype(jnp.float32)
        output, stepped = super().step(params, state.replace(lam=by_aligned), tokens)
        return output, stepped.replace(lam=state.lam)


def make_step(setup: Setup, judge: Judge) -> Callable:
    """(state, reference, source, example_ids[B], documents[B]) -> (state, metrics).

    A round of texts, its rewards, and one update of critic and policy; `state` is donated. Texts
    depend on (seed, example id, step). Metrics are scalars; reward and length are those of the
    policy's own texts.
    """
    write = jax.jit(functools.partial(roll_out, setup))
    improve = jax.jit(functools.partial(learn, setup), donate_argnums=0)

    def step(
        state: DistillationState,
        reference: PyTree,
        source: Source,
        example_ids: Array,
        documents: Sequence[str] | None = None,
    ):
        samples = write(state, reference, source.inputs, example_ids)
        texts = samples.tokens, samples.lengths, samples.finished
        rewards, _ = judge(source, documents, *texts)
        return improve(state, reference, source.inputs, samples, rewards)

    return step


def handovers(setup: Setup) -> np.ndarray:
    """τ_k, the tokens of text k that the policy writes: float32 [K], from none to all."""
    return np.linspace(0, setup.objective.max_length, setup.rollouts).round().astype(np.float32)


def roll_out(
    setup: Setup, state: DistillationState, reference: PyTree, inputs: Array, example_ids: Array
) -> Samples:
    """K texts for each of inputs[B, S], begun by the policy and ended by the reference."""
    numbers = state.step * setup.rollouts + jnp.arange(setup.rollouts)
    stream = streams(setup.seed, example_ids, numbers)
    tau = np.broadcast_to(handovers(setup), stream.shape)
    model = Handover(setup.model, (setup.model,))
    params = reference, state.policy.params
    return sample(model, params, inputs, tau, stream, Sampling(setup.objective.max_length))


def learn(
    setup: Setup,
    state: DistillationState,
    reference: PyTree,
    inputs: Array,
    samples: Samples,
    rewards: Array,
) -> tuple[DistillationState, dict[str, Array]]:
    """One update of critic and policy on texts with their rewards[B, K]."""
    objective, tokens = setup.objective, samples.tokens
    t = jnp.arange(objective.max_length)
    written = t < samples.lengths[..., None]
    # What follows token t is the reference's own if it took over at t + 1 or before.
    ended_by_reference = written & (t + 1 >= handovers(setup)[:, None])
    goodness = jnp.exp((rewards - objective.reward.highest) / objective.beta)

    critic_loss_of = lambda params: critic_loss(
        setup.critic.log_odds_of(params, inputs, tokens), goodness, ended_by_reference
    )
    critic, critic_metrics = descend(setup.optimizers.value, state.critic, critic_loss_of)
    log_odds = setup.critic.log_odds(critic.params, inputs, tokens)
    targets = optimum_logits(logits_of(setup.model, reference, inputs, tokens), log_odds)
    policy_loss_of = lambda params: policy_loss(
        logits_of(setup.model, params, inputs, tokens), targets, written
    )
    policy, policy_metrics = descend(setup.optimizers.policy, state.policy, policy_loss_of)
    metrics = policy_metrics | critic_metrics
    metrics["loss"] = metrics["policy_loss"] + metrics["critic_loss"]
    state = DistillationState(state.step + 1, policy, critic)
    return state, metrics | observe(samples, rewards)


def observe(samples: Samples, rewards: Array) -> dict[str, Array]:
    """Scalars about a round; reward, length and finished of the texts that are the policy's alone."""
    lengths, finished = samples.lengths[:, -1], samples.finished[:, -1]
    return {
        "tokens": jnp.sum(samples.lengths),
        "reward": jnp.mean(rewards[:, -1]),
        "length": jnp.mean(lengths - finished),
        "finished": jnp.mean(finished),
    }


def logits_of(model: LanguageModel, params: PyTree, inputs: Array, tokens: Array) -> Array:
    """Next-token logits float32 [B, K, T, V] at the prefixes of tokens[B, K, T]."""
    state = start_teacher_forcing(model, params, inputs, tokens.shape[1])
    return model.teacher_forced(params, state, tokens).logits


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
    return mean, {"critic_loss": mean}


def policy_loss(logits: Array, targets: Array, weights: Array) -> tuple[Array, dict[str, Array]]:
    """KL(softmax(targets) ‖ softmax(logits)), [..., V] each, averaged with weights[...]."""
    target = jax.nn.softmax(targets)
    kl = jnp.sum(target * (jax.nn.log_softmax(targets) - jax.nn.log_softmax(logits)), axis=-1)
    mean = weighted_mean(kl, weights)
    return mean, {"policy_loss": mean}
