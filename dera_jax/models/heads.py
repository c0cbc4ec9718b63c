"""Heads: networks that give every prefix of a text one number, or one for every next token.

Axes: B inputs, K hypotheses, S input length, T output length, E emb_dim, P prefixes, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import LanguageModel, PyTree, State
from dera_jax.models.t5 import param_shapes
from dera_jax.models.t5_lm import T5
from dera_jax.models.tabular import TabularLM


class ValueModel(Protocol):
    """A value function over prefixes. Implementations are frozen, hashable, hold no arrays."""

    def values(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        """float32 [B, K, T]: at t, the value of inputs[B, S] and the t tokens before tokens[.., t]."""


@dataclasses.dataclass(frozen=True)
class T5Value:
    """A T5 of its own whose final decoder states [.., E] meet one linear head.

    Parameters: {"trunk": T5X's tree, "head": {"kernel": [E], "bias": []}}.
    """

    trunk: T5

    def init(self, trunk_params: PyTree) -> PyTree:
        """Starts from a T5's parameters, with a head that gives 0 everywhere."""
        head = {"kernel": jnp.zeros(self.trunk.config.emb_dim), "bias": jnp.zeros(())}
        return {"trunk": trunk_params, "head": head}

    def random(self, key: Array) -> PyTree:
        """Starts from random parameters of the trunk."""
        return self.init(self.trunk.init(key))

    def param_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """As `t5.param_shapes`, with the head."""
        for name, shape in param_shapes(self.trunk.config):
            yield f"trunk/{name}", shape
        yield "head/kernel", (self.trunk.config.emb_dim,)
        yield "head/bias", ()

    def values(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        state = start_teacher_forcing(self.trunk, params["trunk"], inputs, tokens.shape[1])
        hidden = self.trunk.hidden(params["trunk"], state, tokens).astype(jnp.float32)
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def value_of_texts(
    model: ValueModel, params: PyTree, inputs: Array, tokens: Array, lengths: Array
) -> Array:
    """float32 [B, K], one number for inputs[B, S] and the lengths[B, K] tokens of tokens[B, K, T].

    The mean of the values of all prefixes, from the empty text to the whole one. Of few comparisons
    a head on the last state alone learns little, since no state holds the whole text at first.
    """
    longer = jnp.pad(tokens, [(0, 0), (0, 0), (0, 1)])  # the last token is read after T steps
    values = model.values(params, inputs, longer)
    read = jnp.arange(longer.shape[-1]) <= lengths[..., None]
    return jnp.sum(values * read, axis=-1) / (lengths + 1)


class Critic(Protocol):
    """Log-odds for every next token of a prefix. Implementations are frozen, hashable, hold no arrays."""

    def log_odds(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        """float32 [B, K, T, V]: at t, for each token v after the t tokens before tokens[..., t]."""

    def log_odds_of(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        """float32 [B, K, T], those of tokens[B, K, T] themselves, without the work for all others."""


@dataclasses.dataclass(frozen=True)
class T5Critic:
    """A T5 of its own, whose decoder state h_t scores token v by its embedding e_v:

        q_t(v) = (h_t·A/√E + z_t)·e_v + u_t·h_t + c_t

    A, z, u, c are the head. Those with an index t are told the place in the text, which a T5 could
    only count; `max_length` is the number of places.

    Parameters: {"trunk": T5X's tree, "head": {"A": [E, E], "z", "u": [T, E], "c": [T]}}.
    """

    trunk: T5
    max_length: int

    def __post_init__(self):
        checks.check_fields(self, max_length=checks.whole(1))

    def init(self, trunk_params: PyTree) -> PyTree:
        """Starts from a T5's parameters, with a head that gives 0 everywhere."""
        T, E = self.max_length, self.trunk.config.emb_dim
        shapes = {"A": (E, E), "z": (T, E), "u": (T, E), "c": (T,)}
        return {
            "trunk": trunk_params,
            "head": {name: jnp.zeros(shape) for name, shape in shapes.items()},
        }

    def log_odds(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        queries, at_place = self._read(params, inputs, tokens)
        return jnp.einsum("bkte,ve->bktv", queries, self._embedding(params)) + at_place[..., None]

    def log_odds_of(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        queries, at_place = self._read(params, inputs, tokens)
        return jnp.sum(queries * self._embedding(params)[tokens], axis=-1) + at_place

    def _read(self, params: PyTree, inputs: Array, tokens: Array) -> tuple[Array, Array]:
        """h_t·A/√E + z_t, [B, K, T, E], and u_t·h_t + c_t, [B, K, T]."""
        state = start_teacher_forcing(self.trunk, params["trunk"], inputs, tokens.shape[1])
        hidden = self.trunk.hidden(params["trunk"], state, tokens).astype(jnp.float32)
        head = params["head"]
        queries = hidden @ head["A"] / jnp.sqrt(hidden.shape[-1]) + head["z"]
        return queries, jnp.einsum("bkte,te->bkt", hidden, head["u"]) + head["c"]

    def _embedding(self, params: PyTree) -> Array:
        return params["trunk"]["token_embedder"]["embedding"]


@dataclasses.dataclass(frozen=True)
class TabularCritic:
    """A table of one value for every input, prefix and next token: params [num_inputs, P, V]."""

    table: TabularLM

    def init(self) -> Array:
        """All log-odds 0."""
        return jnp.zeros((self.table.num_inputs, self.table.num_prefixes, self.table.vocab_size))

    def log_odds(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        state = start_teacher_forcing(self.table, params, inputs, tokens.shape[1])
        return self.table.teacher_forced(params, state, tokens).logits

    def log_odds_of(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        every = self.log_odds(params, inputs, tokens)
        return jnp.take_along_axis(every, tokens[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class TabularValue:
    """A table of one value for every input and every prefix: params [num_inputs, P, 1]."""

    table: TabularLM

    def init(self) -> Array:
        """All values 0."""
        return jnp.zeros((self.table.num_inputs, self.table.num_prefixes, 1))

    def values(self, params: PyTree, inputs: Array, tokens: Array) -> Array:
        state = start_teacher_forcing(self.table, params, inputs, tokens.shape[1])
        return self.table.teacher_forced(params, state, tokens).logits[..., 0]


def start_teacher_forcing(
    model: LanguageModel, params: PyTree, inputs: Array, num_rows: int
) -> State:
    """The state of K = num_rows hypotheses of inputs[B, S] that will only be teacher-forced."""
    nothing = jnp.zeros((inputs.shape[0], num_rows))  # no λ, no randomness, no room for a cache
    return model.start(params, inputs, nothing, nothing, max_len=1)
