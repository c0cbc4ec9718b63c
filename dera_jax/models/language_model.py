"""Interfaces of language models for decoding and training, and functions on their states.

Every decoding algorithm takes a `LanguageModel`: a T5, a decoder-only model, a table, or the
realigned mixture of several models. Parameters are arguments of every method, and the state is an
explicit pytree with three kinds of leaves:

shared [B, ...]     depends on the prompt only; stored once for all hypotheses of a prompt
kept   [B, K, ...]  belongs to one hypothesis and survives `rewind`
cache  [B, K, ...]  keys and values of the tokens fed so far

All hypotheses are at the same position, a scalar, so a cache update is one slice update. PRNG keys
belong to the decoder. λ is passed with the prompts, and after `start` it is part of the state.

Axes: B prompts, G values of λ for a prompt, K hypotheses of a prompt, S prompt length, N tokens fed
at once, T output length, V vocabulary, M aligned models, C component models (the reference and the
M aligned ones), E width of the final hidden states.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.partitioning import constrain

PyTree = object
THREEFRY = "threefry2x32"  # PRNG implementation of all sampling keys, whatever JAX's default is
UNUSED_LOGIT = -1e9  # a logit: finite, so that 0·UNUSED is 0, and so low that its probability is 0


@struct.dataclass
class Padded:
    """Sequences of token ids of different lengths in one array, padded on the right.

    Attributes:
        tokens: int32 [..., S]. Ids at and after a length are padding, whatever their value.
        lengths: int32 [...], tokens of each sequence.
    """

    tokens: Array
    lengths: Array

    @property
    def mask(self) -> Array:
        """Returns bool [..., S], whether a token lies within its sequence."""
        return length_mask(self.lengths, self.tokens.shape[-1])


@struct.dataclass
class Prompts:
    """B prompts, right-padded, of at least one token each.

    Attributes:
        tokens: int32 [B, S]. Ids at and after a length are padding, whatever their value.
        lengths: int32 [B], tokens of each prompt.
        lam: mixing coefficients λ, float32 [B, G], or [B, G, M] for M aligned models: one for each
            group of K/G adjacent hypotheses; None for a single model.
    """

    tokens: Array
    lengths: Array
    lam: Array | None = None

    @property
    def mask(self) -> Array:
        """Returns bool [B, S], whether a token lies within its prompt."""
        return length_mask(self.lengths, self.tokens.shape[-1])


@struct.dataclass
class State:
    """The decoding state of B x K hypotheses.

    Attributes:
        position: int32 [], tokens fed to each hypothesis so far, hence the next token's cache slot.
        first_token: int32 [B], the token to feed first, into slot 0.
        shared, kept, cache: see the module's docstring.
    """

    position: Array
    first_token: Array
    shared: PyTree
    kept: PyTree
    cache: PyTree


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
    """Interface of a model for decoding. Implementations are frozen, hashable, and hold no arrays.

    `vocab_size` is V. Only the first `num_ids` ids may be produced (None: all V); the others pad
    the tables to a round size. `unused_ids` among them may not either, since no token has them.
    `end_ids` are the tokens that end a sequence, empty if the model defines none. `start_token` is
    fed first; None: the last token of each prompt is fed first.
    """

    vocab_size: int
    num_ids: int | None
    unused_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    start_token: int | None

    def check(self, prompts: Prompts, num_hypotheses: int) -> None:
        """Validates token ids and λ of prompts, outside of jit.

        Raises:
            ValueError: an id is not in the embedding table, a single model is given λ, or a mixture
                has no valid λ.
        """

    def start(self, params: PyTree, prompts: Prompts, num_hypotheses: int, max_len: int) -> State:
        """Prefills the prompts for K = num_hypotheses hypotheses with room for max_len tokens."""

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        """Feeds tokens[B, K] and returns the logits [B, K, V] of the next token."""

    def extend(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        """Feeds tokens[B, K, N] in one pass; the logits [B, K, V] follow the last of them."""

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        """Returns logits [B, K, T, V] that predict tokens[B, K, T]; the cache is not used."""


class TrainableModel(LanguageModel, Protocol):
    """Interface of a single model for trainers and heads, in addition to decoding.

    `emb_dim` is E. `ends_prompts` tells whether prompts end with the end token, as encoders expect.
    `remat` names a policy of `jax.checkpoint_policies`, which selects the activations of a layer to
    save for the gradient instead of recomputing them; None saves all. `block_sizes` are, by logical axis,
    sizes of blocks that a mesh must not split: {"joined_kv": 64} for concatenated heads of 64.
    """

    emb_dim: int
    ends_prompts: bool
    remat: str | None
    block_sizes: Mapping[str, int]

    def init(self, key: Array) -> PyTree:
        """Returns random parameters, float32."""

    def hidden(
        self, params: PyTree, prompts: Prompts, tokens: Array, dropout_key: Array | None = None
    ) -> Array:
        """Returns final hidden states [B, K, N + 1, E]: entry t is after t of tokens[B, K, N].

        Dropout is applied if `dropout_key` is given.
        """

    def logits(self, params: PyTree, hidden: Array) -> Array:
        """Returns next-token logits float32 [..., V] of hidden[..., E]."""

    def embedding(self, params: PyTree) -> Array:
        """Returns the table of token embeddings, [V, E]."""

    def param_axes(self) -> Mapping[str, tuple[str, ...]]:
        """Returns the logical axes of every parameter by its path, joined by '/'."""


def length_mask(lengths: Array, size: int) -> Array:
    """Returns bool [..., size], whether an index is below lengths[...]."""
    return jnp.arange(size) < lengths[..., None]


def pad_sequences(sequences: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads n sequences of at most `size` ids: int32 tokens [n, size] and lengths [n]."""
    tokens = np.zeros((len(sequences), size), np.int32)
    for row, ids in zip(tokens, sequences, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(ids) for ids in sequences], np.int32)


def trim_padding(prompts: Prompts, longest: int | None = None) -> Prompts:
    """Trims the padding of prompts [..., S] to the smallest of the widths S, S/2, S/4 and S/8.

    Most batches are then prefilled at a fraction of the cost of width S, and a program is compiled
    for at most four widths. Widths are rounded up.

    Args:
        prompts: NumPy arrays, padded to the limit S.
        longest: length of the longest prompt of the whole batch, where `prompts` are only the part
            of one process; None for the longest of `prompts`.
    """
    limit = prompts.tokens.shape[-1]
    longest = int(np.max(prompts.lengths)) if longest is None else longest
    width = next(w for w in (-(-limit // part) for part in (8, 4, 2, 1)) if w >= longest)
    return prompts.replace(tokens=prompts.tokens[..., :width])


def check_padded(
    name: str, sequences: Padded | Prompts, least: int = 0, **axes: int | None
) -> tuple[int, ...]:
    """Validates the tokens and lengths of sequences, and returns the shape of the tokens.

    Args:
        name: name of the argument, for the message.
        sequences: the value of the argument.
        least: minimum number of tokens of each sequence.
        axes: axes of the tokens, see `checks.check_array`; the lengths have all but the last.

    Raises:
        ValueError: an array has another type or shape, or a length is not in [least, S]. Lengths
            that are traced or not on this process are not checked.
    """
    tokens, lengths = sequences.tokens, sequences.lengths
    shape = checks.check_array(f"{name}.tokens", tokens, "token ids", jnp.integer, **axes)
    leading = dict(zip(list(axes)[:-1], shape[:-1], strict=True))
    checks.check_array(f"{name}.lengths", lengths, "lengths", jnp.integer, **leading)
    if not checks.is_known(lengths):
        return shape
    lengths = np.asarray(lengths)
    wrong = np.argwhere((lengths < least) | (lengths > shape[-1]))
    if len(wrong):
        index = tuple(map(int, wrong[0]))
        raise ValueError(
            f"{name}.lengths must be in [{least}, {shape[-1]}], for {name}.tokens of shape {shape}; "
            f"found {lengths[index]} at {list(index)}."
        )
    return shape


def check_single(prompts: Prompts, num_ids: int, unused_ids: Sequence[int] = ()) -> None:
    """Validates the prompts of a single model outside of jit, see `LanguageModel.check`.

    Raises:
        ValueError: λ is given, or a prompt contains an id that is not in [0, num_ids) or is one of
            `unused_ids`. Arrays that are traced or not on this process are not checked.
    """
    if prompts.lam is not None:
        raise ValueError(
            "prompts.lam must be None for a single model; λ mixes the models of a `Realigned`; "
            f"found an array of shape {np.shape(prompts.lam)}."
        )
    tokens, lengths = prompts.tokens, prompts.lengths
    if checks.is_known(tokens) and checks.is_known(lengths):
        # Uses NumPy only: within an outer jit, jax.numpy would trace these known values.
        inside = np.arange(tokens.shape[-1]) < np.asarray(lengths)[..., None]
        used = np.where(inside, tokens, np.asarray(tokens)[..., :1])
        checks.check_token_ids("prompts.tokens", used, num_ids, unused_ids)


def shard_prompts(prompts: Prompts) -> Prompts:
    """Shards prompts along the batch axis of the mesh in use, see `partitioning.constrain`."""
    shard = lambda x: constrain(x, "batch", *[None] * (x.ndim - 1))
    return jax.tree.map(shard, prompts)


def next_token_logits(
    model: TrainableModel,
    params: PyTree,
    prompts: Prompts,
    tokens: Array,
    dropout_key: Array | None = None,
) -> Array:
    """Returns logits float32 [B, K, T, V] that predict tokens[B, K, T] under teacher forcing."""
    hidden = model.hidden(params, prompts, tokens[..., :-1], dropout_key)
    return model.logits(params, hidden)


def mask_unused_logits(output: Output, model: LanguageModel) -> Output:
    """Sets the logits of ids that a model may not produce to `UNUSED_LOGIT`, also in every part.

    All log-probabilities and KLs are then over the remaining ids.
    """
    if model.num_ids is None and not model.unused_ids:
        return output
    size = output.logits.shape[-1]
    used = jnp.arange(size) < (model.num_ids or size)
    used = used.at[np.array(model.unused_ids, int)].set(False)
    return jax.tree.map(lambda logits: jnp.where(used, logits, UNUSED_LOGIT), output)


def rewind(state: State) -> State:
    """Resets position and caches to before the first token; keeps the prefilled prompts."""
    cache = jax.tree.map(jnp.zeros_like, state.cache)
    return state.replace(position=jnp.zeros_like(state.position), cache=cache)


def select(state: State, index: Array) -> State:
    """Copies and reorders hypotheses: hypothesis k of the result is index[b, k] of `state`.

    Args:
        state: state with K hypotheses of each prompt.
        index: int32 [B, K'], in [0, K).
    """
    gather = jax.vmap(lambda hypotheses, chosen: jnp.take(hypotheses, chosen, axis=0))
    kept, cache = jax.tree.map(lambda x: gather(x, index), (state.kept, state.cache))
    return state.replace(kept=kept, cache=cache)


def take(state: State, index: Array) -> State:
    """Gathers whole prompts with all their hypotheses, each within its group of N.

    Args:
        state: state of B·N prompts, the N prompts of a group adjacent.
        index: int32 [B, N'], in [0, N): indices within each group.

    Returns:
        The state of B·N' prompts. Nothing is gathered across groups, so B may be sharded.
    """
    batch = index.shape[0]

    def gather(x: Array) -> Array:
        grouped = x.reshape(batch, -1, *x.shape[1:])
        taken = jax.vmap(lambda group, chosen: jnp.take(group, chosen, axis=0))(grouped, index)
        return taken.reshape(-1, *x.shape[1:])

    leaves = state.first_token, state.shared, state.kept, state.cache
    first_token, shared, kept, cache = jax.tree.map(gather, leaves)
    return state.replace(first_token=first_token, shared=shared, kept=kept, cache=cache)


def score(model: LanguageModel, params: PyTree, state: State, tokens: Array, lengths: Array):
    """Returns log-probabilities float32 [B, K, T] of tokens[B, K, T] under teacher forcing.

    They are 0 at and after lengths[B, K]. Of `state` only the prefilled prompts are used.

    Raises:
        ValueError: tokens or lengths have another type or shape, or a length is not in [0, T].
    """
    check_padded("sequences", Padded(tokens, lengths), B=None, K=None, T=None)
    return _log_probs(model.teacher_forced(params, state, tokens).logits, tokens, lengths)


def score_sequences(
    model: TrainableModel, params: PyTree, prompts: Prompts, tokens: Array, lengths: Array
) -> Array:
    """Returns what `score` does, from prompts before prefill: float32 [B, K, T], differentiable."""
    check_padded("sequences", Padded(tokens, lengths), B=len(prompts.tokens), K=None, T=None)
    return _log_probs(next_token_logits(model, params, prompts, tokens), tokens, lengths)


def log_prob_of(logits: Array, tokens: Array) -> Array:
    """Returns log-probabilities float32 [...] of tokens[...] under softmax(logits[..., V])."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]


def _log_probs(logits: Array, tokens: Array, lengths: Array) -> Array:
    return jnp.where(length_mask(lengths, tokens.shape[-1]), log_prob_of(logits, tokens), 0.0)


def sequence_keys(seed: int | Array, example_ids: Array, numbers: Array | Sequence[int]) -> Array:
    """Returns PRNG keys [B, K] that depend only on seed, example id and sequence number.

    Args:
        seed: the run's seed, or its PRNG key (threefry).
        example_ids: int32 [B], an id of each prompt that does not depend on its place in a batch.
        numbers: int32 [K] or [B, K]; hypotheses of a prompt with equal numbers get equal keys
            (common random numbers).

    Raises:
        ValueError: the seed is not in [0, 2^32), or ids or numbers have another type or shape.
    """
    is_key = isinstance(seed, Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    if not is_key and not isinstance(seed, jax.core.Tracer):
        seed = checks.check("seed", seed, checks.SEED)
    example_ids, numbers = _as_int32("example_ids", example_ids), _as_int32("numbers", numbers)
    leading = example_ids.shape[:1] if numbers.ndim == 2 else ()
    if example_ids.ndim != 1 or numbers.ndim not in (1, 2) or numbers.shape[:-1] != leading:
        raise ValueError(
            "sequence_keys needs example_ids [B] and numbers [K] or [B, K]; found arrays of shapes "
            f"{example_ids.shape} and {numbers.shape}."
        )
    numbers = jnp.broadcast_to(numbers, (example_ids.shape[0], numbers.shape[-1]))
    root = seed if is_key else jax.random.key(seed, impl=THREEFRY)
    example_keys = jax.vmap(jax.random.fold_in, (None, 0))(root, example_ids)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(example_keys, numbers)


def _as_int32(name: str, values: Array | Sequence[int]) -> Array:
    """Validates 32-bit integers and returns them as int32; a cast alone would round or overflow."""
    values = values if isinstance(values, Array) else np.asarray(values)
    limits = np.iinfo(np.int32)
    fits = jnp.issubdtype(values.dtype, jnp.integer)
    if fits and isinstance(values, np.ndarray):
        fits = bool(np.all((values >= limits.min) & (values <= limits.max)))
    if not fits:
        raise ValueError(
            f"sequence_keys needs {name} that are integers in [{limits.min}, {limits.max}]; "
            f"found {values.dtype} values of shape {values.shape}."
        )
    return jnp.asarray(values, jnp.int32)
