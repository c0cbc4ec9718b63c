"""Replaces individuals in evolutionary decoding: survivors, donors, and re-prefilling of adopters.

Source: Hung et al. 2024 (arXiv 2406.15193).

Axes: B inputs, N individuals of each, N' adopters of each, L cache length, m tokens per period.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from dera_jax.models.language_model import LanguageModel, PyTree, State, rewind, take
from dera_jax.partitioning import top_k

# Numbers folded into PRNG keys. Token draws fold in their cache slot, which is always smaller.
AHEAD, _DONOR = 2**30, 2**30 + 1


def replacement(rewards: Array, ended: Array, drawn: Array, survivors: int) -> tuple[Array, Array]:
    """Selects the k survivors of each population, and a donor for every replaced individual.

    Args:
        rewards: float32 [B, N].
        ended: bool [B, N]; an individual that has ended is never replaced, but may be a donor.
        drawn: int32 [B, N] in [0, survivors), the rank by reward of the survivor that donates its
            sequence if the individual is replaced.
        survivors: k.

    Returns:
        survived bool [B, N], whether the individual is among the k best; donors int32 [B, N], the
        individual's own index if it is not replaced.
    """
    _, best = top_k(rewards, survivors)
    own = jnp.arange(rewards.shape[-1])
    survived = jnp.any(best[..., None] == own, axis=-2)
    return survived, jnp.where(survived | ended, own, jnp.take_along_axis(best, drawn, axis=-1))


def draw_donors(keys: Array, steps: Array, survivors: int) -> Array:
    """Draws int32 [B, N] uniformly from [0, survivors), by keys[B, N] after `steps` tokens."""
    draw = lambda key: jax.random.randint(fold_in(key, _DONOR, steps), (), 0, survivors)
    return jax.vmap(jax.vmap(draw))(keys)


def fold_in(key: Array, *numbers: int | Array) -> Array:
    """Folds the numbers into a PRNG key, one after the other."""
    return functools.reduce(jax.random.fold_in, numbers, key)


@dataclasses.dataclass(frozen=True)
class Adoption:
    """The individuals that adopt another's sequence, and the sequences after replacement.

    Attributes:
        adopted: bool [B, N]; True for at most N - k individuals of each population.
        tokens: int32 [B, N, L], the sequence that each individual continues.
        steps: int32 [], number of tokens of these sequences, a multiple of m.
        survivors: k.
        period: m.
    """

    adopted: Array
    tokens: Array
    steps: Array
    survivors: int
    period: int


def re_prefill(model: LanguageModel, params: PyTree, state: State, adoption: Adoption) -> State:
    """Rebuilds the caches of adopters by feeding adopted sequences under their own prompts.

    A copy of the donor's cache would be wrong, since it was computed under the donor's prompt. The
    last token of each sequence is not fed, since the next decoding step does that. N' = N - k
    individuals of each population are processed, in blocks of m tokens; others keep their caches.

    Args:
        model, params: the language model and its parameters.
        state: the model's state for B·N prompts.
        adoption: the adopters and the sequences after replacement.
    """
    adopted, m = adoption.adopted, adoption.period
    _, index = top_k(adopted.astype(jnp.int32), adopted.shape[1] - adoption.survivors)
    adopters = take(state, index)
    tokens = jnp.take_along_axis(adoption.tokens, index[..., None], axis=1)
    tokens = tokens.reshape(-1, 1, tokens.shape[-1])
    first = jnp.broadcast_to(adopters.first_token[:, None, None], (*tokens.shape[:2], 1))
    fed = jnp.concatenate([first, tokens[..., :-1]], axis=-1)

    def feed(block: Array, state: State) -> State:
        block_tokens = lax.dynamic_slice_in_dim(fed, block * m, m, axis=-1)
        return model.extend(params, state, block_tokens)[1]

    blocks = jnp.where(jnp.any(adopted), adoption.steps // m, 0)
    rebuilt = lax.fori_loop(0, blocks, feed, rewind(adopters))
    is_new = jnp.take_along_axis(adopted, index, axis=1)
    put = functools.partial(_put, index, is_new)
    return state.replace(cache=jax.tree.map(put, state.cache, rebuilt.cache))


def _put(index: Array, is_new: Array, population: Array, rebuilt: Array) -> Array:
    """Writes rebuilt[B·N', ...] to index[B, N'] of population[B·N, ...] where is_new[B, N']."""
    batch = len(index)
    grouped = population.reshape(batch, -1, *population.shape[1:])
    rebuilt = rebuilt.reshape(batch, -1, *rebuilt.shape[1:])

    def put_in_one(old: Array, at: Array, new: Array, is_new: Array) -> Array:
        mask = is_new.reshape(-1, *[1] * (new.ndim - 1))
        return old.at[at].set(jnp.where(mask, new, old[at]))

    return jax.vmap(put_in_one)(grouped, index, rebuilt, is_new).reshape(population.shape)
