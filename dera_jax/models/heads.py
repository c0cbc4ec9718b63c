"""Scalar heads: networks that give every prefix of a text one number.

Axes: B inputs, K hypotheses, S input length, T output length, E emb_dim, P prefixes.
"""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from dera_jax.models.language_model import LanguageModel, PyTree, State
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
