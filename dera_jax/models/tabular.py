"""A language model that is a table: one row of logits for every prompt and every prefix.

Small enough to enumerate, so that what sampling, alignment and search ought to give is known
exactly. It implements the contract of `language_model.py` and nothing more.

Axes: B prompts, K hypotheses, S prompt length, N tokens, T horizon, V vocabulary, P prefixes.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import Output, Prompts, PyTree, State, check_single


class OneTable:
    """What has one array of three axes as its parameters; every device has it whole."""

    @property
    def units(self) -> Mapping[str, int]:
        return {}

    def param_axes(self) -> Mapping[str, tuple[None, ...]]:
        return {"": (None, None, None)}


@dataclasses.dataclass(frozen=True)
class TabularLM(OneTable):
    """Logits params[prompt, prefix], for the prompt's first token and the output so far.

    Prefixes are numbered as the nodes of the V-ary tree in breadth-first order: the empty one is 0
    and appending token v to prefix p gives p * V + v + 1. Prefixes of `horizon` tokens or more,
    which no decode of at most `horizon` tokens asks about, share the last row. The hidden state of a
    prefix is its row of logits, so E = V.
    """

    vocab_size: int
    horizon: int
    num_inputs: int = 1
    start_token: int = 0
    end_ids: tuple[int, ...] = (1,)
    num_ids: None = None  # every id may be produced
    remat: None = None  # nothing is computed twice

    def __post_init__(self):
        sizes = dict.fromkeys(("vocab_size", "horizon", "num_inputs"), checks.whole(1))
        checks.check_fields(self, **sizes)
        token = checks.whole(0, self.vocab_size - 1)
        end_ids = checks.several(token, "(1,)", least=0)
        checks.check_fields(self, start_token=token, end_ids=end_ids)

    @property
    def emb_dim(self) -> int:
        return self.vocab_size

    @property
    def num_prefixes(self) -> int:
        return sum(self.vocab_size**t for t in range(self.horizon)) + 1

    def init(self, key: Array) -> Array:
        """Standard normal logits float32 [num_inputs, P, V]."""
        return jax.random.normal(key, (self.num_inputs, self.num_prefixes, self.vocab_size))

    def check(self, prompts: Prompts, num_hypotheses: int) -> None:
        """See `LanguageModel`; the ids of prompts are numbers of tables."""
        del num_hypotheses
        check_single(prompts, self.num_inputs)

    def start(self, params: PyTree, prompts: Prompts, num_hypotheses: int, max_len: int) -> State:
        del params, max_len  # a prefix number needs no room
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
        # The first token leads from nothing to the empty prefix.
        fed = state.position + jnp.arange(tokens.shape[-1]) > 0
        prefix = self._walk(state.cache, tokens, fed)[..., -1]
        output = Output(_rows(params, state.shared, prefix))
        return output, state.replace(cache=prefix, position=state.position + tokens.shape[-1])

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        prefixes = self._prefixes(tokens[..., :-1])
        return Output(_rows(params, state.shared, prefixes))

    def hidden(
        self, params: PyTree, prompts: Prompts, tokens: Array, dropout_key: Array | None = None
    ) -> Array:
        """See `TrainableModel`; there is no dropout."""
        del dropout_key
        return _rows(params, prompts.tokens[:, 0], self._prefixes(tokens))

    def logits(self, params: PyTree, hidden: Array) -> Array:
        del params
        return hidden

    def embedding(self, params: PyTree) -> Array:
        del params
        return jnp.eye(self.vocab_size)

    def _prefixes(self, tokens: Array) -> Array:
        """The prefixes [B, K, N + 1] of tokens[B, K, N], from the empty one to all of them."""
        empty = jnp.zeros(tokens.shape[:2], jnp.int32)
        if not tokens.shape[-1]:
            return empty[..., None]
        longer = self._walk(empty, tokens, jnp.ones(tokens.shape[-1], bool))
        return jnp.concatenate([empty[..., None], longer], axis=-1)

    def _walk(self, prefix: Array, tokens: Array, fed: Array) -> Array:
        """prefix[B, K] after each of tokens[B, K, N] where fed[N]: int32 [B, K, N]."""

        def append(prefix, token_and_fed):
            token, fed = token_and_fed
            longer = jnp.minimum(prefix * self.vocab_size + token + 1, self.num_prefixes - 1)
            prefix = jnp.where(fed, longer, prefix)
            return prefix, prefix

        _, prefixes = jax.lax.scan(append, prefix, (jnp.moveaxis(tokens, -1, 0), fed))
        return jnp.moveaxis(prefixes, 0, -1)


def _rows(params: Array, tables: Array, prefixes: Array) -> Array:
    """params[tables[B], prefixes[B, ...]], float32."""
    tables = tables.reshape(-1, *[1] * (prefixes.ndim - 1))
    return params[tables, prefixes].astype(jnp.float32)
