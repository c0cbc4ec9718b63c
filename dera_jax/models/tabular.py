"""A language model that is a table of logits, one row for every prompt and every prefix.

It is small enough to enumerate all sequences, so that the exact results of sampling, alignment and
search are known. It implements `language_model.TrainableModel`.

Axes: B prompts, K hypotheses, S prompt length, N tokens, T horizon, V vocabulary, P prefixes.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import Output, Prompts, PyTree, State, check_single


class ReplicatedTable:
    """Base class of models with one parameter array of three axes, replicated on all devices."""

    @property
    def block_sizes(self) -> Mapping[str, int]:
        """Returns no block sizes, see `TrainableModel`."""
        return {}

    def param_axes(self) -> Mapping[str, tuple[None, ...]]:
        """Returns no logical axis names for the array, whose path is empty."""
        return {"": (None, None, None)}


@dataclasses.dataclass(frozen=True)
class TabularLM(ReplicatedTable):
    """A table with logits params[i, p] for the prompt whose first token is i, and output prefix p.

    Prefixes are numbered as the nodes of the V-ary tree in breadth-first order: the empty one is 0
    and appending token v to prefix p gives p * V + v + 1. Prefixes of `horizon` tokens or more
    share the last row; decoding at most `horizon` tokens never uses it. The hidden state of a
    prefix is its row of logits, so E = V. Methods without docstrings are those of `TrainableModel`.

    Raises:
        ValueError: naming an invalid field and what it accepts.
    """

    vocab_size: int
    horizon: int
    num_inputs: int = 1
    start_token: int = 0
    end_ids: tuple[int, ...] = (1,)
    num_ids: None = None  # all ids may be produced
    unused_ids: tuple[int, ...] = ()
    remat: None = None  # no activations are recomputed

    def __post_init__(self):
        sizes = dict.fromkeys(("vocab_size", "horizon", "num_inputs"), checks.integer(1))
        checks.check_fields(self, **sizes)
        token = checks.integer(0, self.vocab_size - 1)
        ids = checks.sequence(token, "(1,)", least=0)
        checks.check_fields(self, start_token=token, end_ids=ids, unused_ids=ids)

    @property
    def emb_dim(self) -> int:
        """Returns E = V."""
        return self.vocab_size

    @property
    def num_prefixes(self) -> int:
        """Returns P: the prefixes of fewer than `horizon` tokens, and one row for all others."""
        return sum(self.vocab_size**t for t in range(self.horizon)) + 1

    def init(self, key: Array) -> Array:
        """Returns standard normal logits, float32 [num_inputs, P, V]."""
        return jax.random.normal(key, (self.num_inputs, self.num_prefixes, self.vocab_size))

    def check(self, prompts: Prompts, num_hypotheses: int) -> None:
        """See `LanguageModel`; the ids of prompts must be in [0, num_inputs)."""
        del num_hypotheses
        check_single(prompts, self.num_inputs)

    def start(self, params: PyTree, prompts: Prompts, num_hypotheses: int, max_len: int) -> State:
        del params, max_len  # the cache is one prefix number
        tables = prompts.tokens[:, 0]
        return State(
            position=jnp.zeros((), jnp.int32),
            first_token=jnp.full_like(tables, self.start_token),
            shared=tables,
            kept=(),
            cache=jnp.zeros((len(tables), num_hypotheses), jnp.int32),
        )

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        return self.extend(params, state, tokens[..., None])

    def extend(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        # The start token is not part of a prefix: after it the prefix is empty.
        fed = state.position + jnp.arange(tokens.shape[-1]) > 0
        prefix = self._append_tokens(state.cache, tokens, fed)[..., -1]
        output = Output(_rows(params, state.shared, prefix))
        return output, state.replace(cache=prefix, position=state.position + tokens.shape[-1])

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        prefixes = self._prefixes(tokens[..., :-1])
        return Output(_rows(params, state.shared, prefixes))

    def hidden(
        self, params: PyTree, prompts: Prompts, tokens: Array, dropout_key: Array | None = None
    ) -> Array:
        """See `TrainableModel`; there is no dropout, so `dropout_key` has no effect."""
        del dropout_key
        return _rows(params, prompts.tokens[:, 0], self._prefixes(tokens))

    def logits(self, params: PyTree, hidden: Array) -> Array:
        del params
        return hidden

    def embedding(self, params: PyTree) -> Array:
        del params
        return jnp.eye(self.vocab_size)

    def _prefixes(self, tokens: Array) -> Array:
        """Returns numbers [B, K, N + 1] of all prefixes of tokens[B, K, N], shortest first."""
        empty = jnp.zeros(tokens.shape[:2], jnp.int32)
        if not tokens.shape[-1]:
            return empty[..., None]
        longer = self._append_tokens(empty, tokens, jnp.ones(tokens.shape[-1], bool))
        return jnp.concatenate([empty[..., None], longer], axis=-1)

    def _append_tokens(self, prefix: Array, tokens: Array, fed: Array) -> Array:
        """Returns int32 [B, K, N]: prefix[B, K] after each of tokens[B, K, N] that has fed[N]."""

        def append(prefix, token_and_fed):
            token, fed = token_and_fed
            longer = jnp.minimum(prefix * self.vocab_size + token + 1, self.num_prefixes - 1)
            prefix = jnp.where(fed, longer, prefix)
            return prefix, prefix

        _, prefixes = jax.lax.scan(append, prefix, (jnp.moveaxis(tokens, -1, 0), fed))
        return jnp.moveaxis(prefixes, 0, -1)


def _rows(params: Array, tables: Array, prefixes: Array) -> Array:
    """Returns params[tables[B], prefixes[B, ...]] in float32."""
    tables = tables.reshape(-1, *[1] * (prefixes.ndim - 1))
    return params[tables, prefixes].astype(jnp.float32)
