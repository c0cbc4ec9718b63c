"""The lookahead of guided beam search: what each candidate would become if the model went on.

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
    """The candidates with a continuation that the model writes, and the tokens [B, G] it took.

    Each candidate is a hypothesis of the model for a while, with a copy of its beam's cache.

    Args:
        model, params, search: of the search.
        at: the state of its beams, which have been fed all tokens but the candidates' last; its PRNG
            keys [B, G]; and the tokens of each beam, int32 [].
        candidates: k of every beam, one token longer.
    """
    (state, keys, steps), shape = at, candidates.lengths.shape  # [B, G, N·k]
    by_hypothesis = lambda x: x.reshape(shape[0], -1)
    by_search = lambda x: x.reshape(*shape, *x.shape[2:])
    beam = jnp.broadcast_to(jnp.arange(shape[2]) // search.top_k, shape)
    token = lax.dynamic_index_in_dim(candidates.tokens, steps, axis=-1, keepdims=False)
    begun = Hypotheses(
        select(state, pools.hypotheses(beam, search.beams)),
        _lookahead_keys(keys, shape, steps),
        *map(by_hypothesis, (token, candidates.lengths, candidates.finished)),
    )
    sampling = Sampling(search.max_length, greedy=search.greedy, end_ids=search.end_ids)

    def step(hypotheses: Hypotheses, _) -> tuple[Hypotheses, Array]:
        hypotheses, tokens = decode_step(model, params, sampling, hypotheses)
        return hypotheses, tokens.token

    end, ahead = lax.scan(step, begun, length=search.lookahead)
    ahead = by_search(jnp.moveaxis(ahead, 0, -1))
    room = jnp.pad(candidates.tokens, [(0, 0)] * 3 + [(0, search.lookahead)])
    tokens = lax.dynamic_update_slice_in_dim(room, ahead, steps + 1, axis=-1)
    lengths = by_search(end.lengths)
    longer = candidates.replace(
        tokens=tokens[..., : search.max_length], lengths=lengths, finished=by_search(end.finished)
    )
    spent = (lengths - candidates.lengths) * (candidates.log_probs > EMPTY)
    return longer, jnp.sum(spent, axis=-1)


def _lookahead_keys(keys: Array, shape: tuple[int, ...], steps: Array) -> Array:
    """Keys [B, G·N·k], new ones at every step: step and candidate folded into keys[B, G]."""
    draw = lambda key, number: jax.random.fold_in(jax.random.fold_in(key, steps), number)
    each = jax.vmap(jax.vmap(jax.vmap(draw, (None, 0)), (0, None)), (0, None))
    return each(keys, jnp.arange(shape[2])).reshape(shape[0], -1)
