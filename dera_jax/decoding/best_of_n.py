"""Best-of-n: the simplest use of a reward. Sample n texts, keep the best.

Its distribution π_n is at most this far from what the texts were sampled from, π:

    KL(π_n ‖ π) ≤ log n − (n − 1)/n

(Stiennon et al. 2020, arXiv 2009.01325; that it is a bound, with equality where no two texts have
one reward and none is likely: Beirami et al. 2024, arXiv 2401.01879).

Axes: B prompts, K hypotheses of each, G groups of n, K = G·n.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.decoding.arguments import check_by_row, check_prompts
from dera_jax.decoding.sampling import BY_ROW, Samples, Sampling, checked, sample
from dera_jax.decoding.scores import check_scores
from dera_jax.decoding.search import Guide
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree
from dera_jax.rewards.protocol import check_rewards, rewards_of


@struct.dataclass
class Best:
    """The winners of their groups.

    Attributes:
        samples: of the G winners of each input.
        index: int32 [B, G], which of the K hypotheses they are.
        rewards: float32 [B, K], of all.
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

    Hypotheses g·n to g·n + n − 1 compete: the samples at one λ of `sweep_rows` with n samples. With
    a compiled reward all is one compiled call.

    Args:
        model, params, prompts, keys, sampling: as of `sample`.
        n: how many compete.
        guide: the reward.

    Raises:
        ValueError: as `sample`, K is no multiple of n, or what a reward in Python raises.
        FloatingPointError: as `sample`, or a reward is NaN or infinite.
    """
    sampling = checked(sampling, model)  # here, since a compiled call sees no values
    check_prompts(model, prompts, keys)
    check_by_row(sampling, keys.shape, *BY_ROW)
    guide.check(len(keys))
    _check_groups(keys.shape[1], n)
    reward = guide.judge.reward
    if reward.on_host:
        samples = sample(model, params, prompts, keys, sampling)
        rewards, _ = guide.score((samples.tokens, samples.lengths, samples.finished))
        return _best(samples, rewards, n)
    scored = guide.judge.params, guide.source
    best, scores = _best_of_n(model, params, prompts, keys, sampling, n, reward, scored)
    check_scores(scores, prompts.lam)
    check_rewards(best.rewards, reward)
    return best


@functools.partial(jax.jit, static_argnames=("model", "n", "reward"))
def _best_of_n(model, params, prompts, keys, sampling, n, reward, scored):
    """The winners, and the scores of all."""
    samples = sample(model, params, prompts, keys, sampling)
    texts = samples.tokens, samples.lengths, samples.finished
    return _best(samples, rewards_of(reward, *scored, *texts), n), samples.scores


def _best(samples: Samples, rewards: Array, n: int) -> Best:
    index = winners(rewards, n)
    return Best(keep(samples, index), index, rewards)


def winners(rewards: Array, n: int) -> Array:
    """int32 [B, G]: of every n of rewards[B, K] the place of the highest, the first if several are.

    Raises:
        ValueError: no array of numbers [B, K], or K is not a multiple of n.
        FloatingPointError: a reward is NaN or infinite (seen outside of jit only): none is highest.
    """
    batch, rows = checks.check_array("rewards", rewards, "numbers", jnp.number, B=None, K=None)
    _check_groups(rows, n)
    check_values({"reward": rewards}, ("input", "hypothesis"))
    best = jnp.argmax(rewards.reshape(batch, rows // n, n), axis=-1)
    return best + n * jnp.arange(rows // n)


def _check_groups(rows: int, n: int) -> None:
    checks.check("n", n, checks.whole(1))
    if rows % n:
        raise ValueError(f"best of n = {n}: the {rows} samples must be a multiple of n")


def keep(samples: Samples, index: Array) -> Samples:
    """The hypotheses index[B, G] of samples [B, K]."""
    gather = jax.vmap(lambda rows, at: rows[at])
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
    """log n − (n − 1)/n, in nats."""
    return float(np.log(n) - (n - 1) / n)
