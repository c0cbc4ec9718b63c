"""Pools of hypotheses of searches, and what is done with them.

Axes: B prompts, G searches of each prompt, R hypotheses of a search, T output length.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

EMPTY = -1e7  # log-probability and score of an empty place, as in T5X


@struct.dataclass
class Pool:
    """R hypotheses of each search.

    Attributes:
        tokens: int32 [B, G, R, T], 0 after each hypothesis.
        lengths: int32 [B, G, R], the end token included.
        finished: bool [B, G, R], it ends with an end token.
        log_probs: float32 [B, G, R], of the whole hypothesis.
        rewards: float32 [B, G, R], as last scored: with the lookahead, where it has not ended.
    """

    tokens: Array
    lengths: Array
    finished: Array
    log_probs: Array
    rewards: Array


def empty(searches: tuple[int, int], max_length: int, size: int) -> Pool:
    """A pool of empty places for (B, G) searches."""
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
    """`pool` where condition[B, G, R or 1], else `other`."""
    pick = lambda x, y: jnp.where(condition.reshape(*condition.shape, *[1] * (x.ndim - 3)), x, y)
    return jax.tree.map(pick, pool, other)


def join(*pools: Pool) -> Pool:
    """The hypotheses of each search one after the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), *pools)


def take(pool: Pool, index: Array) -> Pool:
    """The hypotheses index[B, G, R'] of each search."""
    gather = jax.vmap(jax.vmap(lambda hypotheses, at: hypotheses[at]))
    return jax.tree.map(lambda x: gather(x, index), pool)


def by_prompt(pool: Pool) -> tuple[Array, Array, Array]:
    """Tokens [B, G·R, T], lengths and finished [B, G·R], as a reward takes them."""
    merge = lambda x: x.reshape(len(x), -1, *x.shape[3:])
    return merge(pool.tokens), merge(pool.lengths), merge(pool.finished)


def has_ended(pool: Pool) -> Array:
    """bool [B, G, R]; False for empty places and for the copies that a search begins with."""
    return pool.finished & (pool.log_probs > EMPTY)


def hypotheses(beam: Array, beams: int) -> Array:
    """Beams [B, G, R], in [0, beams), of their searches -> hypotheses [B, G·R] of the model."""
    searches = jnp.arange(beam.shape[1])[:, None]
    return (beam + beams * searches).reshape(beam.shape[0], -1)
