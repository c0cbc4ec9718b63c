"""Implements best-of-n sampling: draws n samples and keeps the one with the highest reward.

The KL divergence of its distribution π_n from the sampling distribution π is bounded by

    KL(π_n ‖ π) ≤ log n − (n − 1)/n

(Stiennon et al. 2020, arXiv 2009.01325). Beirami et al. 2024 (arXiv 2401.01879) show that this is a
bound, which is tight if no two sequences have equal rewards and no sequence is likely.

Axes: B prompts, K hypotheses of each, G groups of n, K = G·n.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.decoding.arguments import check_per_key, check_prompts
from dera_jax.decoding.sampling import PER_HYPOTHESIS, Samples, Sampling, resolve_sampling, sample
from dera_jax.decoding.scores import check_scores
from dera_jax.decoding.search import Guide
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree
from dera_jax.rewards.protocol import call_reward, check_rewards


@struct.dataclass
class Best:
    """The hypothesis with the highest reward of each group of n.

    Attributes:
        samples: the G best hypotheses of each prompt.
        index: int32 [B, G], the index of each among the K hypotheses.
        rewards: float32 [B, K], the rewards of all hypotheses.
    """

    samples: Samples
    index: Array
    rewards: Array


def best_of_n(
    model: LanguageModel,
    params: PyTree,
    prompts: Prompts,
    keys: Array,
    sampling: Sampling,
    n: int,
    guide: Guide,
) -> Best:
    """Samples K hypotheses of each prompt and keeps the best of every n.

    Hypotheses g·n to g·n + n − 1 form group g; with `sweep_hypotheses` and n samples for each λ, a group
    holds the samples at one λ. With a compiled reward the whole computation is one compiled call.

    Args:
        model, params, prompts, keys, sampling: as for `sample`.
        n: number of hypotheses in a group; divides K.
        guide: the reward.

    Raises:
        ValueError: as `sample`; K is not a multiple of n; or whatever a Python reward raises.
        FloatingPointError: as `sample`, or a reward is NaN or infinite.
    """
    sampling = resolve_sampling(
        sampling, model
    )  # here, since values are unknown inside a compiled call
    check_prompts(model, prompts, keys)
    check_per_key(sampling, keys.shape, *PER_HYPOTHESIS)
    guide.check(len(keys))
    _check_groups(keys.shape[1], n)
    reward = guide.scorer.reward
    if reward.on_host:
        samples = sample(model, params, prompts, keys, sampling)
        rewards, _ = guide.score((samples.tokens, samples.lengths, samples.finished))
        return _best(samples, rewards, n)
    inputs = guide.scorer.params, guide.source
    best, scores = _best_of_n(model, params, prompts, keys, sampling, n, reward, inputs)
    check_scores(scores, prompts.lam)
    check_rewards(best.rewards, reward)
    return best


@functools.partial(jax.jit, static_argnames=("model", "n", "reward"))
def _best_of_n(model, params, prompts, keys, sampling, n, reward, reward_inputs):
    """Returns the best of each group, and the scores of all K hypotheses."""
    samples = sample(model, params, prompts, keys, sampling)
    hypotheses = samples.tokens, samples.lengths, samples.finished
    return _best(samples, call_reward(reward, *reward_inputs, *hypotheses), n), samples.scores


def _best(samples: Samples, rewards: Array, n: int) -> Best:
    index = winners(rewards, n)
    return Best(keep(samples, index), index, rewards)


def winners(rewards: Array, n: int) -> Array:
    """Returns int32 [B, G], the index in rewards[B, K] of the highest of every n (first if tied).

    Raises:
        ValueError: rewards is not an array of numbers [B, K], or K is not a multiple of n.
        FloatingPointError: a reward is NaN or infinite (checked outside of jit only).
    """
    batch, num = checks.check_array("rewards", rewards, "numbers", jnp.number, B=None, K=None)
    _check_groups(num, n)
    check_values({"reward": rewards}, ("input", "hypothesis"))
    best = jnp.argmax(rewards.reshape(batch, num // n, n), axis=-1)
    return best + n * jnp.arange(num // n)


def _check_groups(num_hypotheses: int, n: int) -> None:
    checks.check("n", n, checks.integer(1))
    if num_hypotheses % n:
        raise ValueError(
            f"best of n = {n}: the {num_hypotheses} samples must be a multiple of n; change n, or "
            "the number of PRNG keys of each prompt."
        )


def keep(samples: Samples, index: Array) -> Samples:
    """Gathers the hypotheses index[B, G] of samples [B, K]."""
    gather = jax.vmap(lambda hypotheses, at: hypotheses[at])
    pick = lambda x: gather(x, index)
    scores = samples.scores
    parts = scores.part_log_prob
    kept = jax.tree.map(pick, scores.replace(part_log_prob=None))
    return samples.replace(
        tokens=pick(samples.tokens),
        lengths=pick(samples.lengths),
        finished=pick(samples.finished),
        scores=kept.replace(part_log_prob=None if parts is None else jax.vmap(pick)(parts)),
    )


def kl_bound(n: int) -> float:
    """Returns the bound log n − (n − 1)/n on the KL divergence of best-of-n, in nats."""
    return float(np.log(n) - (n - 1) / n)
