"""Value heads (one number for every prefix) and critic heads (log-odds of every next token).

Axes: B prompts, K hypotheses, N tokens, T output length, E emb_dim, P prefixes, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import Prompts, PyTree, TrainableModel, length_mask
from dera_jax.models.tabular import ReplicatedTable, TabularLM

MEAN, LAST = "mean", "last"


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Defines how the values of a sequence's prefixes become one score of the sequence.

    Attributes:
        kind: 'mean' for the mean over all prefixes; 'last' for the value at the last token, as the
            ...ForSequenceClassification models of transformers.
        padding_id: for 'last', tokens of this id at the end are skipped, as `pad_token_id` in
            transformers, even if it is also the end token; None for none.

    Raises:
        ValueError: naming an invalid field and what it accepts.
    """

    kind: str = MEAN
    padding_id: int | None = None

    def __post_init__(self):
        kind = checks.Check(f"{MEAN!r} or {LAST!r}", lambda x: x in (MEAN, LAST))
        checks.check_fields(self, kind=kind, padding_id=checks.optional(checks.integer(0)))
        if self.kind == MEAN and self.padding_id is not None:
            raise ValueError(
                f"Pooling.padding_id must be None for {MEAN!r}; found {self.padding_id}."
            )


MEAN_OF_PREFIXES = Pooling()


class ValueModel(Protocol):
    """A value function over prefixes. Implementations are frozen, hashable and hold no arrays.

    `pooling` says how `value_of_sequences` reads one score from the values.
    """

    pooling: Pooling

    def values(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """Returns float32 [B, K, N + 1]: entry t is the value of the first t of tokens[B, K, N]."""


@dataclasses.dataclass(frozen=True)
class ValueHead:
    """A value model: a linear head on the final hidden states [..., E] of its own language model.

    Attributes:
        trunk: the language model below the head.
        pooling: how the values of a sequence's prefixes become one score of the sequence.

    Parameters: {"trunk": those of the language model, "head": {"kernel": [E], "bias": []}}.
    """

    trunk: TrainableModel
    pooling: Pooling = MEAN_OF_PREFIXES

    def init(self, trunk_params: PyTree) -> PyTree:
        """Returns parameters with the given trunk and a head of zeros: all values are 0."""
        head = {"kernel": jnp.zeros(self.trunk.emb_dim), "bias": jnp.zeros(())}
        return {"trunk": trunk_params, "head": head}

    def random(self, key: Array) -> PyTree:
        """Returns parameters with a random trunk and a head of zeros."""
        return self.init(self.trunk.init(key))

    def param_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields name and shape of each parameter; the trunk must have `param_shapes` too."""
        for name, shape in self.trunk.param_shapes():
            yield f"trunk/{name}", shape
        yield "head/kernel", (self.trunk.emb_dim,)
        yield "head/bias", ()

    @property
    def block_sizes(self) -> Mapping[str, int]:
        """The trunk's `block_sizes`, see `TrainableModel`."""
        return self.trunk.block_sizes

    def param_axes(self) -> Mapping[str, tuple[str | None, ...]]:
        """Returns the logical axes of every parameter, see `TrainableModel`."""
        return _under_trunk(self.trunk) | {"head/kernel": ("embed",), "head/bias": ()}

    def values(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """See `ValueModel`."""
        hidden = self.trunk.hidden(params["trunk"], prompts, tokens).astype(jnp.float32)
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def _under_trunk(trunk: TrainableModel) -> dict[str, tuple[str | None, ...]]:
    return {f"trunk/{path}": axes for path, axes in trunk.param_axes().items()}


def value_of_sequences(
    model: ValueModel, params: PyTree, prompts: Prompts, tokens: Array, lengths: Array
) -> Array:
    """Returns one value for each sequence, float32 [B, K], by the model's `pooling`.

    A sequence is the first lengths[B, K] of tokens[B, K, T]. Its prefixes reach from the empty one
    to the whole sequence. A head on the last hidden state alone learns little from few comparisons,
    because before training no hidden state represents the whole sequence; so reward models that are
    trained here take the mean over all prefixes.
    """
    values = model.values(params, prompts, tokens)
    if model.pooling.kind == LAST:
        last = _last_read(tokens, lengths, model.pooling.padding_id)
        return jnp.take_along_axis(values, last[..., None], axis=-1)[..., 0]
    return jnp.sum(values * length_mask(lengths + 1, values.shape[-1]), axis=-1) / (lengths + 1)


def _last_read(tokens: Array, lengths: Array, padding_id: int | None) -> Array:
    """Returns the number of tokens up to the last one that is not padding, int32 [B, K]."""
    counts = jnp.arange(1, tokens.shape[-1] + 1)
    is_read = counts <= lengths[..., None]
    if padding_id is not None:
        is_read &= tokens != padding_id
    return jnp.max(jnp.where(is_read, counts, 0), axis=-1, initial=0)


class Critic(Protocol):
    """Log-odds of every next token. Implementations are frozen, hashable and hold no arrays."""

    def log_odds(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """Returns float32 [B, K, T, V]: entry (t, v) is for token v after tokens[..., :t]."""

    def log_odds_of(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """Returns float32 [B, K, T], the log-odds of tokens[B, K, T] only."""


@dataclasses.dataclass(frozen=True)
class CriticHead:
    """A critic whose own language model scores token v by hidden state h_t and embedding e_v:

        q_t(v) = (h_t·A/√E + z_t)·e_v + u_t·h_t + c_t

    A, z, u and c are the head. z, u and c depend on the position t, because a T5 has only relative
    positions and would have to count. Sequences have T = `max_length` tokens, padding included.

    Parameters: {"trunk": those of the model, "head": {"A": [E, E], "z", "u": [T, E], "c": [T]}}.

    Raises:
        ValueError: `max_length` is not an integer of at least 1.
    """

    trunk: TrainableModel
    max_length: int

    def __post_init__(self):
        checks.check_fields(self, max_length=checks.integer(1))

    def init(self, trunk_params: PyTree) -> PyTree:
        """Returns parameters with the given trunk and a head of zeros: all log-odds are 0."""
        T, E = self.max_length, self.trunk.emb_dim
        shapes = {"A": (E, E), "z": (T, E), "u": (T, E), "c": (T,)}
        return {
            "trunk": trunk_params,
            "head": {name: jnp.zeros(shape) for name, shape in shapes.items()},
        }

    @property
    def block_sizes(self) -> Mapping[str, int]:
        """The trunk's `block_sizes`, see `TrainableModel`."""
        return self.trunk.block_sizes

    def param_axes(self) -> Mapping[str, tuple[str | None, ...]]:
        """Returns the logical axes of every parameter, see `TrainableModel`."""
        per_position = None, "embed"
        head = {"A": ("embed", None), "z": per_position, "u": per_position, "c": (None,)}
        return _under_trunk(self.trunk) | {f"head/{name}": axes for name, axes in head.items()}

    def log_odds(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """See `Critic`."""
        queries, biases = self._queries_and_biases(params, prompts, tokens)
        embedding = self.trunk.embedding(params["trunk"])
        return jnp.einsum("bkte,ve->bktv", queries, embedding) + biases[..., None]

    def log_odds_of(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """See `Critic`; this does not compute the log-odds of other tokens."""
        queries, biases = self._queries_and_biases(params, prompts, tokens)
        return jnp.sum(queries * self.trunk.embedding(params["trunk"])[tokens], axis=-1) + biases

    def _queries_and_biases(
        self, params: PyTree, prompts: Prompts, tokens: Array
    ) -> tuple[Array, Array]:
        """Returns h_t·A/√E + z_t, [B, K, T, E], and u_t·h_t + c_t, [B, K, T]."""
        hidden = self.trunk.hidden(params["trunk"], prompts, tokens[..., :-1]).astype(jnp.float32)
        head = params["head"]
        queries = hidden @ head["A"] / jnp.sqrt(hidden.shape[-1]) + head["z"]
        return queries, jnp.einsum("bkte,te->bkt", hidden, head["u"]) + head["c"]


@dataclasses.dataclass(frozen=True)
class TabularCritic(ReplicatedTable):
    """A critic that is a table over prompt, prefix and next token: params [num_inputs, P, V]."""

    table: TabularLM

    def init(self) -> Array:
        """Returns parameters with which all log-odds are 0."""
        return jnp.zeros((self.table.num_inputs, self.table.num_prefixes, self.table.vocab_size))

    def log_odds(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """See `Critic`."""
        return self.table.hidden(params, prompts, tokens[..., :-1])

    def log_odds_of(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """See `Critic`."""
        log_odds = self.log_odds(params, prompts, tokens)
        return jnp.take_along_axis(log_odds, tokens[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class TabularValue(ReplicatedTable):
    """A value model that is a table over prompt and prefix: params [num_inputs, P, 1]."""

    table: TabularLM
    pooling = MEAN_OF_PREFIXES

    def init(self) -> Array:
        """Returns parameters with which all values are 0."""
        return jnp.zeros((self.table.num_inputs, self.table.num_prefixes, 1))

    def values(self, params: PyTree, prompts: Prompts, tokens: Array) -> Array:
        """See `ValueModel`."""
        return self.table.hidden(params, prompts, tokens)[..., 0]
