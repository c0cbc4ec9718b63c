"""A language model that is a table: one row of logits for every input and every prefix.

Small enough to enumerate, so that what sampling, alignment and search ought to give is known
exactly. It implements the contract of `language_model.py` and nothing more.

Axes: B inputs, K hypotheses, S input length, T horizon, V vocabulary, P prefixes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import Output, PyTree, State, shift_right


@dataclasses.dataclass(frozen=True)
class TabularLM:
    """Logits params[input id, prefix], for the input's first token and the output so far.

    Prefixes are numbered as the nodes of the V-ary tree in breadth-first order: the empty one is 0
    and appending token v to prefix p gives p * V + v + 1. Prefixes of `horizon` tokens or more,
    which no decode of at most `horizon` tokens asks about, share the last row.
    """

    vocab_size: int
    horizon: int
    num_inputs: int = 1
    start_token: int = 0
    end_token: int = 1
    num_ids: None = None  # every id may be produced

    def __post_init__(self):
        sizes = dict.fromkeys(("vocab_size", "horizon", "num_inputs"), checks.whole(1))
        checks.check_fields(self, **sizes)
        checks.check_fields(
            self, start_token=checks.whole(0, self.vocab_size - 1), end_token=checks.whole(0)
        )

    @property
    def num_prefixes(self) -> int:
        return sum(self.vocab_size**t for t in range(self.horizon)) + 1

    def init(self, key: Array) -> Array:
        """Standard normal logits float32 [num_inputs, P, V]."""
        return jax.random.normal(key, (self.num_inputs, self.num_prefixes, self.vocab_size))

    def start(
        self, params: PyTree, inputs: Array, lam: Array, stream: Array, max_len: int
    ) -> State:
        del params, max_len  # a prefix number needs no room
        zeros = jnp.zeros(stream.shape, jnp.int32)
        return State(zeros, stream, lam, shared=inputs[:, 0], cache=zeros)

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        one = jnp.ones_like(state.lengths)
        return self.extend(params, state, tokens[..., None], one, lockstep=state.lockstep)

    def extend(self, params, state: State, tokens: Array, lengths: Array, lockstep: bool = False):
        feed = jnp.arange(tokens.shape[-1]) < lengths[..., None]
        # Token 0 of a row is the start token, which leads from nothing to the empty prefix.
        first = (state.lengths[..., None] + jnp.arange(tokens.shape[-1])) == 0
        prefix, _ = self._walk(state.cache, tokens, feed & ~first)
        state = state.replace(cache=prefix, lengths=state.lengths + lengths, lockstep=lockstep)
        return Output(self._look_up(params, state, prefix)), state

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        fed = shift_right(tokens, self.start_token)
        _, prefixes = self._walk(jnp.zeros_like(state.cache), fed, jnp.arange(fed.shape[-1]) > 0)
        return Output(jax.vmap(lambda p: self._look_up(params, state, p), -1, 2)(prefixes))

    def _walk(self, prefix: Array, tokens: Array, feed: Array) -> tuple[Array, Array]:
        """prefix[B, K] after each of tokens[B, K, N] that is to be fed: the last, and all."""

        def append(prefix, token_and_feed):
            token, feed = token_and_feed
            longer = jnp.minimum(prefix * self.vocab_size + token + 1, self.num_prefixes - 1)
            prefix = jnp.where(feed, longer, prefix)
            return prefix, prefix

        feed = jnp.broadcast_to(feed, tokens.shape)
        per_token = jnp.moveaxis(tokens, -1, 0), jnp.moveaxis(feed, -1, 0)
        last, all_of_them = jax.lax.scan(append, prefix, per_token)
        return last, jnp.moveaxis(all_of_them, 0, -1)

    def _look_up(self, params: Array, state: State, prefix: Array) -> Array:
        return params[state.shared[:, None], prefix].astype(jnp.float32)
