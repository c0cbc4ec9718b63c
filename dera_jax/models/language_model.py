"""The one contract: a language model that can be stepped.

Everything that decodes takes a `LanguageModel`: T5, a tabular model, or the realigned mixture of
several. Its state is an explicit pytree. What depends on the input alone is stored once per input;
what differs between the hypotheses of an input is stored per hypothesis.

Axes: B inputs, K hypotheses of each input, S input length, N tokens fed at once, T output length,
V vocabulary, M aligned models, C component models (the reference and the M aligned ones).
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dera_jax import checks

PyTree = object
UNUSED = -1e9  # finite, so that 0·UNUSED is 0, and small enough that its exponential is 0


@struct.dataclass
class State:
    """Where B x K hypotheses stand.

    Attributes:
        lengths: int32 [B, K], tokens fed so far, the start token included; the next one's position.
        stream: keys [B, K], the source of each row's randomness (see `streams`).
        lam: float32 [B, K] or [B, K, M], λ of each row; a single model ignores it.
        shared: leaves [B, ...], what depends on the input alone (encoder keys, values and mask).
        cache: leaves [B, K, ...], what differs between hypotheses (decoder keys and values).
        lockstep: static; all lengths are equal, so a cache update is one slice update.
    """

    lengths: Array
    stream: Array
    lam: Array
    shared: PyTree
    cache: PyTree
    lockstep: bool = struct.field(pytree_node=False, default=True)


@struct.dataclass
class Output:
    """Next-token logits.

    Attributes:
        logits: float32 [B, K, V] (`teacher_forced`: [B, K, T, V]).
        parts: float32 [C, B, K, V], the component models' logits, reference first; None for a
            single model.
    """

    logits: Array
    parts: Array | None = None


class LanguageModel(Protocol):
    """What decoding needs of a model. Implementations are frozen, hashable, and hold no arrays.

    `start_token` is the token to feed first; `end_token` ends a sequence, None where the model does
    not say; `vocab_size` is V; `num_ids` is the number of ids that may be produced, None for V.
    """

    start_token: int
    end_token: int | None
    vocab_size: int
    num_ids: int | None

    def start(
        self, params: PyTree, inputs: Array, lam: Array, stream: Array, max_len: int
    ) -> State:
        """Encodes inputs[B, S] for the K rows of stream[B, K] with room for max_len tokens."""

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        """Feeds tokens[B, K]; the output is that of the next position."""

    def extend(
        self, params: PyTree, state: State, tokens: Array, lengths: Array
    ) -> tuple[Output, State]:
        """Feeds the first lengths[B, K] >= 1 tokens of each row of tokens[B, K, N] in one pass.

        The output is that after each row's last token. Equal to stepping through them.
        """

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        """Logits [B, K, T, V] that predict tokens[B, K, T], from an empty cache; state is kept."""


def without_unused(output: Output, num_ids: int | None) -> Output:
    """Give the ids from `num_ids` on the same logit, `UNUSED`, in the mixture and in every part.

    All log-probabilities and KLs are then over the ids that remain. None leaves all as they are.
    """
    if num_ids is None:
        return output
    used = jnp.arange(output.logits.shape[-1]) < num_ids
    return jax.tree.map(lambda logits: jnp.where(used, logits, UNUSED), output)


def rewind(state: State) -> State:
    """Empties the caches and keeps the encoder's work: ready to be fed the start token again."""
    return state.replace(
        lengths=jnp.zeros_like(state.lengths),
        cache=jax.tree.map(jnp.zeros_like, state.cache),
        lockstep=True,
    )


def select(state: State, index: Array, stream: Array | None = None) -> State:
    """Keeps, copies and reorders hypotheses: row k of the result is row index[b, k] of `state`.

    Streams of randomness belong to places, not to texts: two copies of a hypothesis must not draw
    alike. So K' = K rows keep the streams where they are; any other K' needs new ones.

    Args:
        state: of K hypotheses.
        index: int32 [B, K'], in [0, K).
        stream: keys [B, K'] of the new rows.

    Raises:
        ValueError: K' differs from K and no stream is given.
    """
    if stream is None:
        if index.shape != state.stream.shape:
            raise ValueError(
                f"select from {state.stream.shape} to {index.shape} hypotheses needs `stream`: "
                "one key for each new row."
            )
        stream = state.stream
    gather = jax.vmap(lambda rows, at: jnp.take(rows, at, axis=0))
    per_row = (state.lengths, state.lam, state.cache)
    lengths, lam, cache = jax.tree.map(lambda x: gather(x, index), per_row)
    return state.replace(lengths=lengths, lam=lam, cache=cache, stream=stream)


def score(model: LanguageModel, params: PyTree, state: State, tokens: Array, lengths: Array):
    """Log-probabilities float32 [B, K, T] of tokens[B, K, T] under teacher forcing.

    Zero at and after lengths[B, K]. Uses the encoder's work in `state` and leaves its caches alone.
    """
    log_probs = jax.nn.log_softmax(model.teacher_forced(params, state, tokens).logits)
    picked = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
    return jnp.where(jnp.arange(tokens.shape[-1]) < lengths[..., None], picked, 0.0)


def shift_right(targets: Array, start_token: int) -> Array:
    """targets[..., T] -> decoder inputs [..., T]: the start token, then all but the last."""
    padding = [(0, 0)] * (targets.ndim - 1) + [(1, 0)]
    return jnp.pad(targets, padding, constant_values=start_token)[..., :-1]


def streams(seed: int | Array, example_ids: Array, numbers: Array | Sequence[int]) -> Array:
    """Keys [B, K], one for each (seed, example, stream number), whatever the batch around it.

    Args:
        seed: the run's seed.
        example_ids: int32 [B], an id of each input that does not depend on its place in a batch.
        numbers: int32 [K] or [B, K]; rows with equal numbers draw alike (common random numbers).

    Raises:
        ValueError: a seed that is not in [0, 2^32), or arrays of other ranks.
    """
    if not isinstance(seed, jax.core.Tracer):
        seed = checks.check("seed", seed, checks.SEED)
    example_ids = jnp.asarray(example_ids, jnp.int32)
    numbers = jnp.asarray(numbers, jnp.int32)
    if example_ids.ndim != 1 or numbers.ndim not in (1, 2):
        raise ValueError(
            "streams needs example_ids [B] and numbers [K] or [B, K]; found arrays of shapes "
            f"{example_ids.shape} and {numbers.shape}."
        )
    numbers = jnp.broadcast_to(numbers, (example_ids.shape[0], numbers.shape[-1]))
    root = jax.random.key(seed, impl="threefry2x32")
    example_keys = jax.vmap(jax.random.fold_in, (None, 0))(root, example_ids)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(example_keys, numbers)
