"""Pools of beam-search hypotheses, and functions to join, filter and index them.

Axes: B prompts, G searches of each prompt, R hypotheses of a search, T output length.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

EMPTY = -1e7  # log-probability and score of an empty entry, as in T5X


@struct.dataclass
class Pool:
    """R hypotheses of each search; entries whose log-probability is at most EMPTY are unused.

    Attributes:
        tokens: int32 [B, G, R, T], 0 after each hypothesis.
        lengths: int32 [B, G, R], including the end token.
        finished: bool [B, G, R], whether the hypothesis ends with an end token.
        log_probs: float32 [B, G, R], sum over the tokens of the hypothesis.
        rewards: float32 [B, G, R], from the last scoring, which includes the lookahead if the
            hypothesis has not ended.
    """

    tokens: Array
    lengths: Array
    finished: Array
    log_probs: Array
    rewards: Array


def empty(searches: tuple[int, int], max_length: int, size: int) -> Pool:
    """Returns a pool with `size` unused entries for each of (B, G) searches."""
    shape = (*searches, size)
    none = jnp.zeros(shape, jnp.int32)
    return Pool(
        tokens=jnp.zeros((*shape, max_length), jnp.int32),
        lengths=none,
        finished=none > 0,
        log_probs=jnp.full(shape, EMPTY, jnp.float32),
        rewards=jnp.zeros(shape),
    )


def where(condition: Array, pool: Pool, other: Pool) -> Pool:
    """Selects `pool` where condition[B, G, R or 1] is True, and `other` elsewhere."""
    pick = lambda x, y: jnp.where(condition.reshape(*condition.shape, *[1] * (x.ndim - 3)), x, y)
    return jax.tree.map(pick, pool, other)


def join(*pools: Pool) -> Pool:
    """Concatenates the hypotheses of each search along R."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), *pools)


def take(pool: Pool, index: Array) -> Pool:
    """Gathers the hypotheses index[B, G, R'] of each search."""
    gather = jax.vmap(jax.vmap(lambda hypotheses, at: hypotheses[at]))
    return jax.tree.map(lambda x: gather(x, index), pool)


def by_prompt(pool: Pool) -> tuple[Array, Array, Array]:
    """Returns tokens [B, G·R, T], lengths and finished [B, G·R], the arguments of a reward."""
    merge = lambda x: x.reshape(len(x), -1, *x.shape[3:])
    return merge(pool.tokens), merge(pool.lengths), merge(pool.finished)


def has_ended(pool: Pool) -> Array:
    """Returns bool [B, G, R]: finished, and not an unused entry or a copy that filled a beam."""
    return pool.finished & (pool.log_probs > EMPTY)


def hypotheses(beam: Array, beams: int) -> Array:
    """Converts beam[B, G, R], in [0, beams) of each search, to model hypotheses [B, G·R]."""
    searches = jnp.arange(beam.shape[1])[:, None]
    return (beam + beams * searches).reshape(beam.shape[0], -1)
