"""Heads: networks that give every prefix of a sequence one number, or one for every next token.

Axes: B prompts, K hypotheses, N tokens, T output length, E emb_dim, P prefixes, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import Prompts, PyTree, TrainableModel, within
from dera_jax.models.tabular import OneTable, TabularLM


class ValueModel(Protocol):
    """A value function over prefixes. Implementations are frozen, hashable, hold no arrays."""

    def values(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """float32 [B, K, N + 1]: entry t is the value of the first t of tokens[B, K, N]."""


@dataclasses.dataclass(frozen=True)
class ValueHead:
    """A language model of its own whose final hidden states [.., E] meet one linear head.

    Parameters: {"trunk": the model's, "head": {"kernel": [E], "bias": []}}.
    """

    trunk: TrainableModel

    def init(self, trunk_params: PyTree) -> PyTree:
        """Starts from a language model's parameters, with a head that gives 0 everywhere."""
        head = {"kernel": jnp.zeros(self.trunk.emb_dim), "bias": jnp.zeros(())}
        return {"trunk": trunk_params, "head": head}

    def random(self, key: Array) -> PyTree:
        """Starts from random parameters of the trunk."""
        return self.init(self.trunk.init(key))

    def param_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each parameter, as the trunk's `param_shapes`."""
        for name, shape in self.trunk.param_shapes():
            yield f"trunk/{name}", shape
        yield "head/kernel", (self.trunk.emb_dim,)
        yield "head/bias", ()

    @property
    def units(self) -> Mapping[str, int]:
        return self.trunk.units

    def param_axes(self) -> Mapping[str, tuple[str | None, ...]]:
        return _under_trunk(self.trunk) | {"head/kernel": ("embed",), "head/bias": ()}

    def values(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        hidden = self.trunk.hidden(params["trunk"], prompts, tokens).astype(jnp.float32)
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def _under_trunk(trunk: TrainableModel) -> dict[str, tuple[str | None, ...]]:
    return {f"trunk/{path}": axes for path, axes in trunk.param_axes().items()}


def value_of_sequences(
    model: ValueModel, params: PyTree, prompts: Prompts, tokens: Array, lengths: Array
) -> Array:
    """float32 [B, K], one number for a prompt and the lengths[B, K] tokens of tokens[B, K, T].

    The mean of the values of all prefixes, from the empty one to the whole sequence. Of few
    comparisons a head on the last state alone learns little, since no state holds the whole sequence
    at first.
    """
    values = model.values(params, prompts, tokens)
    return jnp.sum(values * within(lengths + 1, values.shape[-1]), axis=-1) / (lengths + 1)


class Critic(Protocol):
    """Log-odds for every next token of a prefix. Implementations are frozen, hashable, hold no arrays."""

    def log_odds(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """float32 [B, K, T, V]: at t, for each token v after the t tokens before tokens[..., t]."""

    def log_odds_of(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """float32 [B, K, T], those of tokens[B, K, T] themselves, without the work for all others."""


@dataclasses.dataclass(frozen=True)
class CriticHead:
    """A language model of its own, whose hidden state h_t scores token v by its embedding e_v:

        q_t(v) = (h_t·A/√E + z_t)·e_v + u_t·h_t + c_t

    A, z, u, c are the head. Those with an index t are told the place in the sequence, which a T5
    could only count; `max_length` is the number of places.

    Parameters: {"trunk": the model's, "head": {"A": [E, E], "z", "u": [T, E], "c": [T]}}.
    """

    trunk: TrainableModel
    max_length: int

    def __post_init__(self):
        checks.check_fields(self, max_length=checks.whole(1))

    def init(self, trunk_params: PyTree) -> PyTree:
        """Starts from a language model's parameters, with a head that gives 0 everywhere."""
        T, E = self.max_length, self.trunk.emb_dim
        shapes = {"A": (E, E), "z": (T, E), "u": (T, E), "c": (T,)}
        return {
            "trunk": trunk_params,
            "head": {name: jnp.zeros(shape) for name, shape in shapes.items()},
        }

    @property
    def units(self) -> Mapping[str, int]:
        return self.trunk.units

    def param_axes(self) -> Mapping[str, tuple[str | None, ...]]:
        places = None, "embed"
        head = {"A": ("embed", None), "z": places, "u": places, "c": (None,)}
        return _under_trunk(self.trunk) | {f"head/{name}": axes for name, axes in head.items()}

    def log_odds(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        queries, at_place = self._read(params, prompts, tokens)
        embedding = self.trunk.embedding(params["trunk"])
        return jnp.einsum("bkte,ve->bktv", queries, embedding) + at_place[..., None]

    def log_odds_of(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        queries, at_place = self._read(params, prompts, tokens)
        return jnp.sum(queries * self.trunk.embedding(params["trunk"])[tokens], axis=-1) + at_place

    def _read(self, params: PyTree, prompts: Prompts, tokens: Array) -> tuple[Array, Array]:
        """h_t·A/√E + z_t, [B, K, T, E], and u_t·h_t + c_t, [B, K, T]."""
        hidden = self.trunk.hidden(params["trunk"], prompts, tokens[..., :-1]).astype(jnp.float32)
        head = params["head"]
        queries = hidden @ head["A"] / jnp.sqrt(hidden.shape[-1]) + head["z"]
        return queries, jnp.einsum("bkte,te->bkt", hidden, head["u"]) + head["c"]


@dataclasses.dataclass(frozen=True)
class TabularCritic(OneTable):
    """A table of one value for every prompt, prefix and next token: params [num_inputs, P, V]."""

    table: TabularLM

    def init(self) -> Array:
        """All log-odds 0."""
        return jnp.zeros((self.table.num_inputs, self.table.num_prefixes, self.table.vocab_size))

    def log_odds(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        return self.table.hidden(params, prompts, tokens[..., :-1])

    def log_odds_of(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        every = self.log_odds(params, prompts, tokens)
        return jnp.take_along_axis(every, tokens[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class TabularValue(OneTable):
    """A table of one value for every prompt and every prefix: params [num_inputs, P, 1]."""

    table: TabularLM

    def init(self) -> Array:
        """All values 0."""
        return jnp.zeros((self.table.num_inputs, self.table.num_prefixes, 1))

    def values(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        return self.table.hidden(params, prompts, tokens)[..., 0]
