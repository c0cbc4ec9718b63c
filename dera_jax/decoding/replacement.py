"""The replacement of evolutionary decoding: survivors, donors, and adopted sequences.

Source: Hung et al. 2024 (arXiv 2406.15193).

Axes: B inputs, N individuals of each, L room for tokens, m tokens of a period.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from dera_jax.models.language_model import LanguageModel, PyTree, State, rewind, take
from dera_jax.partitioning import top_k

# Folded into a key; the draws of tokens fold in their slots.
AHEAD, _DONOR = 2**30, 2**30 + 1


def replacement(rewards: Array, ended: Array, drawn: Array, survivors: int) -> tuple[Array, Array]:
    """Which individuals survive, and whose sequence each goes on with.

    Args:
        rewards: float32 [B, N].
        ended: bool [B, N]; who has ended is never replaced, but may be a donor.
        drawn: int32 [B, N] in [0, survivors): which of the best, in the order of their rewards,
            gives its sequence, if one has to adopt another's.
        survivors: k.

    Returns:
        survived bool [B, N], among the k best; donors int32 [B, N], oneself if not replaced.
    """
    _, best = top_k(rewards, survivors)
    own = jnp.arange(rewards.shape[-1])
    survived = jnp.any(best[..., None] == own, axis=-2)
    return survived, jnp.where(survived | ended, own, jnp.take_along_axis(best, drawn, axis=-1))


def draws(keys: Array, steps: Array, survivors: int) -> Array:
    """int32 [B, N], uniform in [0, survivors), of keys[B, N] after so many tokens."""
    draw = lambda key: jax.random.randint(fold_in(key, _DONOR, steps), (), 0, survivors)
    return jax.vmap(jax.vmap(draw))(keys)


def fold_in(key: Array, *numbers: int | Array) -> Array:
    """A key with numbers folded in, one after the other."""
    return functools.reduce(jax.random.fold_in, numbers, key)


@dataclasses.dataclass(frozen=True)
class Adoption:
    """Which individuals adopted another's sequence.

    Attributes:
        adopted: bool [B, N]; at most N - survivors of each N.
        tokens: int32 [B, N, L], the sequence that each individual goes on with.
        steps: int32 [], tokens of these sequences, a multiple of m.
        survivors: k.
        period: m.
    """

    adopted: Array
    tokens: Array
    steps: Array
    survivors: int
    period: int


def re_prefilled(model: LanguageModel, params: PyTree, state: State, adoption: Adoption) -> State:
    """The state of B·N prompts in which adopters have been fed their sequences but the last token.

    Only N - k of each N prompts are fed, in blocks of m tokens.
    """
    adopted, m = adoption.adopted, adoption.period
    _, index = top_k(adopted.astype(jnp.int32), adopted.shape[1] - adoption.survivors)
    adopters = take(state, index)
    tokens = jnp.take_along_axis(adoption.tokens, index[..., None], axis=1)
    tokens = tokens.reshape(-1, 1, tokens.shape[-1])
    first = jnp.broadcast_to(adopters.first_token[:, None, None], (*tokens.shape[:2], 1))
    fed = jnp.concatenate([first, tokens[..., :-1]], axis=-1)

    def feed(block: Array, state: State) -> State:
        some = lax.dynamic_slice_in_dim(fed, block * m, m, axis=-1)
        return model.extend(params, state, some)[1]

    blocks = jnp.where(jnp.any(adopted), adoption.steps // m, 0)
    rebuilt = lax.fori_loop(0, blocks, feed, rewind(adopters))
    is_new = jnp.take_along_axis(adopted, index, axis=1)
    put = functools.partial(_put, index, is_new)
    return state.replace(cache=jax.tree.map(put, state.cache, rebuilt.cache))


def _put(index: Array, is_new: Array, everyone: Array, some: Array) -> Array:
    """everyone[B·N, ...] with some[B·N', ...] at index[B, N'] of each N, where is_new[B, N']."""
    batch = len(index)
    grouped = everyone.reshape(batch, -1, *everyone.shape[1:])
    some = some.reshape(batch, -1, *some.shape[1:])

    def of_one(all: Array, at: Array, new: Array, is_new: Array) -> Array:
        here = is_new.reshape(-1, *[1] * (new.ndim - 1))
        return all.at[at].set(jnp.where(here, new, all[at]))

    return jax.vmap(of_one)(grouped, index, some, is_new).reshape(everyone.shape)
