"""The contract of every model: it can be stepped, and its log-probabilities can be trained.

Everything that decodes takes a `LanguageModel`: a T5, a decoder-only model, a table, or the realigned
mixture of several. Parameters are arguments of every method, and the state is an explicit pytree
with three kinds of leaves:

shared [B, ...]     what depends on the prompt alone; held once for all hypotheses of a prompt
kept   [B, K, ...]  what follows its hypothesis and survives `rewind`
cache  [B, K, ...]  keys and values of the tokens fed so far

All hypotheses stand at one position, a scalar, so a cache update is one slice update. PRNG keys
belong to the decoder, λ to the prompts and, from `start` on, to the state.

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
THREEFRY = "threefry2x32"  # of all keys of draws, whatever JAX's default is
UNUSED = -1e9  # finite, so that 0·UNUSED is 0, and small enough that its exponential is 0


@struct.dataclass
class Padded:
    """Sequences of token ids of different lengths in one array, padded on the right.

    Attributes:
        tokens: int32 [..., S]. Ids past a length mean nothing, whatever their value.
        lengths: int32 [...].
    """

    tokens: Array
    lengths: Array

    @property
    def mask(self) -> Array:
        """bool [..., S], whether a token lies within its sequence."""
        return within(self.lengths, self.tokens.shape[-1])


@struct.dataclass
class Prompts:
    """B prompts, right-padded, of at least one token each.

    Attributes:
        tokens: int32 [B, S]. Ids past a length mean nothing, whatever their value.
        lengths: int32 [B].
        lam: float32 [B, G], or [B, G, M] for M aligned models: λ of each group of K/G adjacent
            hypotheses; None for a single model.
    """

    tokens: Array
    lengths: Array
    lam: Array | None = None

    @property
    def mask(self) -> Array:
        """bool [B, S], whether a token lies within its prompt."""
        return within(self.lengths, self.tokens.shape[-1])


@struct.dataclass
class State:
    """The decoding state of B x K hypotheses.

    Attributes:
        position: int32 [], tokens fed so far to each hypothesis: the cache slot of the next one.
        first_token: int32 [B], the token to feed first, into slot 0.
        shared, kept, cache: see the module.
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
    """What decoding needs of a model. Implementations are frozen, hashable, and hold no arrays.

    `vocab_size` is V. `num_ids` is how many of the V ids may be produced, None for all: the others only
    pad the tables to a round size. `end_ids` are the tokens that end a sequence, empty where the model does
    not say. `start_token` is fed first; None for models that are fed the last token of each prompt.
    """

    vocab_size: int
    num_ids: int | None
    end_ids: tuple[int, ...]
    start_token: int | None

    def check(self, prompts: Prompts, num_hypotheses: int) -> None:
        """Validates prompts outside of jit: token ids in the model's table, and λ.

        Raises:
            ValueError: an id beyond the table, λ for a single model, or no valid λ for a mixture.
        """

    def start(self, params: PyTree, prompts: Prompts, num_hypotheses: int, max_len: int) -> State:
        """Prefills the prompts for K = num_hypotheses hypotheses with room for max_len tokens."""

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        """Feeds tokens[B, K]; the output is that of the next position."""

    def extend(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        """Feeds tokens[B, K, N] in one pass; the output is that after the last of them."""

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        """Logits [B, K, T, V] that predict tokens[B, K, T], from an empty cache; state is kept."""


class TrainableModel(LanguageModel, Protocol):
    """What trainers and heads need of a single model beyond decoding.

    `emb_dim` is E. `ends_prompts` is whether the end token follows a prompt, as an encoder was trained.
    `remat` names what training keeps of each layer's activations for the gradient, of
    `jax.checkpoint_policies`; the rest is computed again. None keeps all. `units` are the sizes of what no
    mesh cuts, by logical axis: {"joined_kv": 64} where that axis is heads of 64 end to end.
    """

    emb_dim: int
    ends_prompts: bool
    remat: str | None
    units: Mapping[str, int]

    def init(self, key: Array) -> PyTree:
        """Random parameters, float32."""

    def hidden(
        self, params: PyTree, prompts: Prompts, tokens: Array, dropout_key: Array | None = None
    ) -> Array:
        """Final hidden states [B, K, N + 1, E] of tokens[B, K, N]: entry t has read t tokens.

        A dropout key turns dropout on.
        """

    def logits(self, params: PyTree, hidden: Array) -> Array:
        """Next-token logits float32 [..., V] of hidden[..., E]."""

    def embedding(self, params: PyTree) -> Array:
        """The table of token embeddings, [V, E]."""

    def param_axes(self) -> Mapping[str, tuple[str, ...]]:
        """The logical axes of every parameter, by its path joined by '/'."""


def within(lengths: Array, size: int) -> Array:
    """bool [..., size], whether a place lies within the first lengths[...] of a sequence."""
    return jnp.arange(size) < lengths[..., None]


def padded(sequences: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of at most `size` ids as int32 tokens [n, size], right-padded, and lengths [n]."""
    tokens = np.zeros((len(sequences), size), np.int32)
    for row, ids in zip(tokens, sequences, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(ids) for ids in sequences], np.int32)


def narrowed(prompts: Prompts, longest: int | None = None) -> Prompts:
    """The prompts [..., S] in the smallest of the widths S, S/2, S/4 and S/8 that holds them.

    So most batches are read at a fraction of the cost of the longest prompt, and a program is compiled
    once for each of four widths at most.

    Args:
        prompts: NumPy arrays, padded to the limit S.
        longest: length of the longest prompt of the batch, where these are a process's share of it.
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
        name: of the argument.
        sequences: what was given.
        least: tokens that each has at least.
        axes: of the tokens, as of `checks.check_array`; the lengths have all but the last.

    Raises:
        ValueError: an array of another type or shape, or a length that is not in [least, S]. Lengths
            whose values are not known on this process are skipped.
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
        place = tuple(map(int, wrong[0]))
        raise ValueError(
            f"{name}.lengths must be in [{least}, {shape[-1]}], for {name}.tokens of shape {shape}; "
            f"found {lengths[place]} at {list(place)}."
        )
    return shape


def check_single(prompts: Prompts, num_ids: int) -> None:
    """Validates the prompts of a single model outside of jit, see `LanguageModel.check`.

    Args:
        prompts: of the model.
        num_ids: ids that a prompt may contain.

    Raises:
        ValueError: λ is given, or naming the first id that is not in [0, num_ids). Arrays whose values
            are not known on this process are skipped.
    """
    if prompts.lam is not None:
        raise ValueError(
            "prompts.lam must be None for a single model: only a Realigned one mixes by λ; found "
            f"an array of shape {np.shape(prompts.lam)}."
        )
    tokens, lengths = prompts.tokens, prompts.lengths
    if checks.is_known(tokens) and checks.is_known(lengths):
        # NumPy alone: within an outer jit, jax.numpy would trace what is known.
        inside = np.arange(tokens.shape[-1]) < np.asarray(lengths)[..., None]
        used = np.where(inside, tokens, 0)
        checks.check_token_ids("prompts.tokens", used, num_ids)


def spread(prompts: Prompts) -> Prompts:
    """The prompts with their rows along the mesh in use, see `partitioning.constrain`."""
    rows = lambda x: constrain(x, "batch", *[None] * (x.ndim - 1))
    return jax.tree.map(rows, prompts)


def next_token_logits(
    model: TrainableModel,
    params: PyTree,
    prompts: Prompts,
    tokens: Array,
    dropout_key: Array | None = None,
) -> Array:
    """Logits float32 [B, K, T, V] that predict tokens[B, K, T] under teacher forcing."""
    hidden = model.hidden(params, prompts, tokens[..., :-1], dropout_key)
    return model.logits(params, hidden)


def without_unused(output: Output, num_ids: int | None) -> Output:
    """Gives the ids from `num_ids` on the same logit, `UNUSED`, in the mixture and in every part.

    All log-probabilities and KLs are then over the ids that remain. None leaves all as they are.
    """
    if num_ids is None:
        return output
    used = jnp.arange(output.logits.shape[-1]) < num_ids
    return jax.tree.map(lambda logits: jnp.where(used, logits, UNUSED), output)


def rewind(state: State) -> State:
    """Empties the caches and keeps the prefilled prompts: ready to be fed the first token again."""
    cache = jax.tree.map(jnp.zeros_like, state.cache)
    return state.replace(position=jnp.zeros_like(state.position), cache=cache)


def select(state: State, index: Array) -> State:
    """Copies and reorders hypotheses: hypothesis k of the result is index[b, k] of `state`.

    Args:
        state: of K hypotheses.
        index: int32 [B, K'], in [0, K).
    """
    gather = jax.vmap(lambda hypotheses, at: jnp.take(hypotheses, at, axis=0))
    kept, cache = jax.tree.map(lambda x: gather(x, index), (state.kept, state.cache))
    return state.replace(kept=kept, cache=cache)


def take(state: State, index: Array) -> State:
    """Gathers whole prompts with all their hypotheses, each within its group of N.

    Args:
        state: of B·N prompts, the N of a group one after the other.
        index: int32 [B, N'], in [0, N): which of its group.

    Returns:
        The state of B·N' prompts. Nothing is gathered across groups, so B may be sharded.
    """
    batch = index.shape[0]

    def gather(x: Array) -> Array:
        grouped = x.reshape(batch, -1, *x.shape[1:])
        taken = jax.vmap(lambda group, at: jnp.take(group, at, axis=0))(grouped, index)
        return taken.reshape(-1, *x.shape[1:])

    leaves = state.first_token, state.shared, state.kept, state.cache
    first_token, shared, kept, cache = jax.tree.map(gather, leaves)
    return state.replace(first_token=first_token, shared=shared, kept=kept, cache=cache)


def score(model: LanguageModel, params: PyTree, state: State, tokens: Array, lengths: Array):
    """Log-probabilities float32 [B, K, T] of tokens[B, K, T] under teacher forcing.

    Zero at and after lengths[B, K]. Uses the prefilled prompts of `state` and leaves its caches alone.

    Raises:
        ValueError: tokens or lengths of another type or shape.
    """
    check_padded("sequences", Padded(tokens, lengths), B=None, K=None, T=None)
    return _log_probs(model.teacher_forced(params, state, tokens).logits, tokens, lengths)


def score_sequences(
    model: TrainableModel, params: PyTree, prompts: Prompts, tokens: Array, lengths: Array
) -> Array:
    """What `score` gives, from the prompts themselves: float32 [B, K, T], differentiable."""
    check_padded("sequences", Padded(tokens, lengths), B=len(prompts.tokens), K=None, T=None)
    return _log_probs(next_token_logits(model, params, prompts, tokens), tokens, lengths)


def log_prob_of(logits: Array, tokens: Array) -> Array:
    """Log-probabilities of tokens[...] under softmax(logits[..., V]): float32 [...]."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]


def _log_probs(logits: Array, tokens: Array, lengths: Array) -> Array:
    return jnp.where(within(lengths, tokens.shape[-1]), log_prob_of(logits, tokens), 0.0)


def sequence_keys(seed: int | Array, example_ids: Array, numbers: Array | Sequence[int]) -> Array:
    """PRNG keys [B, K], one for each (seed, example, sequence number), whatever the batch around it.

    Args:
        seed: the run's seed, or its key (threefry).
        example_ids: int32 [B], an id of each prompt that does not depend on its place in a batch.
        numbers: int32 [K] or [B, K]; hypotheses with equal numbers draw alike (common random
            numbers).

    Raises:
        ValueError: a seed that is not in [0, 2^32), or what are no int32 arrays of these shapes.
    """
    is_key = isinstance(seed, Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    if not is_key and not isinstance(seed, jax.core.Tracer):
        seed = checks.check("seed", seed, checks.SEED)
    example_ids, numbers = _as_int32("example_ids", example_ids), _as_int32("numbers", numbers)
    rows = example_ids.shape[:1] if numbers.ndim == 2 else ()
    if example_ids.ndim != 1 or numbers.ndim not in (1, 2) or numbers.shape[:-1] != rows:
        raise ValueError(
            "sequence_keys needs example_ids [B] and numbers [K] or [B, K]; found arrays of shapes "
            f"{example_ids.shape} and {numbers.shape}."
        )
    numbers = jnp.broadcast_to(numbers, (example_ids.shape[0], numbers.shape[-1]))
    root = seed if is_key else jax.random.key(seed, impl=THREEFRY)
    example_keys = jax.vmap(jax.random.fold_in, (None, 0))(root, example_ids)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(example_keys, numbers)


def _as_int32(name: str, values: Array | Sequence[int]) -> Array:
    """The values as int32; a cast would round fractions and wrap around what is too large."""
    values = values if isinstance(values, Array) else np.asarray(values)
    limits = np.iinfo(np.int32)
    fits = jnp.issubdtype(values.dtype, jnp.integer)
    if fits and isinstance(values, np.ndarray):
        fits = bool(np.all((values >= limits.min) & (values <= limits.max)))
    if not fits:
        raise ValueError(
            f"sequence_keys needs {name} that are integers of 32 bits; found {values.dtype} values "
            f"of shape {values.shape}."
        )
    return jnp.asarray(values, jnp.int32)
