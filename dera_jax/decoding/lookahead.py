"""Generates the lookahead of reward-guided beam search: a continuation of every candidate.

The reward scores a candidate together with its lookahead, which is then discarded
(Huang et al. 2024, arXiv 2402.06147). `beam_search` holds the rule that uses it.

Axes: B prompts, G searches of each prompt, N beams, k candidates of a beam, T output length.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array, lax

from dera_jax.decoding import pools
from dera_jax.decoding.pools import EMPTY, Pool
from dera_jax.decoding.sampling import Hypotheses, Sampling, decode_step
from dera_jax.models.language_model import LanguageModel, PyTree, State, select

if TYPE_CHECKING:
    from dera_jax.decoding.beam_search import Search


def look_ahead(
    model: LanguageModel,
    params: PyTree,
    search: "Search",
    at: tuple[State, Array, Array],
    candidates: Pool,
) -> tuple[Pool, Array]:
    """Extends every candidate by up to `search.lookahead` tokens that the model generates.

    Each candidate temporarily becomes a hypothesis of the model, with a copy of its beam's cache.

    Args:
        model, params: the language model and its parameters.
        search: the settings of the search.
        at: the model's state for the beams, which has processed all tokens of a candidate but the
            last; the PRNG keys [B, G]; and the number of tokens of each beam, int32 [].
        candidates: the pool [B, G, N·k] of candidates, each one token extended than its beam.

    Returns:
        The candidates with their lookahead, cut to `max_length`, and int32 [B, G], the number of
        tokens that were generated for it (none for unused entries).
    """
    (state, keys, steps), shape = at, candidates.lengths.shape  # [B, G, N·k]
    by_hypothesis = lambda x: x.reshape(shape[0], -1)
    by_search = lambda x: x.reshape(*shape, *x.shape[2:])
    beam = jnp.broadcast_to(jnp.arange(shape[2]) // search.top_k, shape)
    token = lax.dynamic_index_in_dim(candidates.tokens, steps, axis=-1, keepdims=False)
    start = Hypotheses(
        select(state, pools.hypotheses(beam, search.beams)),
        _lookahead_keys(keys, shape, steps),
        *map(by_hypothesis, (token, candidates.lengths, candidates.finished)),
    )
    sampling = Sampling(search.max_length, greedy=search.greedy, end_ids=search.end_ids)

    def step(hypotheses: Hypotheses, _) -> tuple[Hypotheses, Array]:
        hypotheses, tokens = decode_step(model, params, sampling, hypotheses)
        return hypotheses, tokens.token

    end, ahead = lax.scan(step, start, length=search.lookahead)
    ahead = by_search(jnp.moveaxis(ahead, 0, -1))
    padded = jnp.pad(candidates.tokens, [(0, 0)] * 3 + [(0, search.lookahead)])
    tokens = lax.dynamic_update_slice_in_dim(padded, ahead, steps + 1, axis=-1)
    lengths = by_search(end.lengths)
    extended = candidates.replace(
        tokens=tokens[..., : search.max_length], lengths=lengths, finished=by_search(end.finished)
    )
    generated = (lengths - candidates.lengths) * (candidates.log_probs > EMPTY)
    return extended, jnp.sum(generated, axis=-1)


def _lookahead_keys(keys: Array, shape: tuple[int, ...], steps: Array) -> Array:
    """Returns keys [B, G·N·k]: keys[B, G] with the step and the candidate's number folded in."""
    draw = lambda key, number: jax.random.fold_in(jax.random.fold_in(key, steps), number)
    each = jax.vmap(jax.vmap(jax.vmap(draw, (None, 0)), (0, None)), (0, None))
    return each(keys, jnp.arange(shape[2])).reshape(shape[0], -1)
