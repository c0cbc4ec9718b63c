"""Sampling: the compiled step inside `lax.scan` that every method here shares.

One call decodes B prompts x K hypotheses, where the K hypotheses of a prompt may be any mix of λ
values and samples (`sweep_rows`). λ, temperature, top-k, top-p, minimum length and end tokens are
traced: new values compile nothing.

Axes: B prompts, K hypotheses, T output length, V vocabulary, E end tokens, C component models.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.decoding import transforms
from dera_jax.decoding.arguments import (
    check_by_row,
    check_keys,
    check_prompts,
    end_ids,
    with_end_ids,
)
from dera_jax.decoding.realign import LAMBDAS
from dera_jax.decoding.scores import Tokens, check_scores, score_tokens
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, State, rewind
from dera_jax.partitioning import constrain

_TEMPERATURE = checks.Check(
    "a finite number above 0 (for the most likely token set greedy=True)",
    checks.number(above=0).allows,
)
BY_ROW = ("temperature", "top_k", "top_p", "min_length")  # settings that may be [B, K]
CHUNK = 8  # steps between two looks at whether every row has ended


@struct.dataclass
class Sampling:
    """How to draw. Scalars, or [B, K] arrays to differ by row; only static fields recompile.

    Attributes:
        max_length: static; tokens at most, the end token included.
        greedy: static; the most likely token, ties to the lower id.
        temperature: divides the combined logits; > 0.
        top_k: keep this many tokens; None for all.
        top_p: keep the smallest nucleus of this probability; None for all.
        min_length: no end tokens before this many tokens.
        end_ids: the tokens that end a sequence, [E]; None for the model's, (-1,) for none.
    """

    max_length: int = struct.field(pytree_node=False)
    greedy: bool = struct.field(pytree_node=False, default=False)
    temperature: float | Array = 1.0
    top_k: int | Array | None = None
    top_p: float | Array | None = None
    min_length: int | Array = 0
    end_ids: tuple[int, ...] | Array | None = None


@struct.dataclass
class Hypotheses:
    """Texts under way: where the model stands and what it is to be fed next.

    Attributes:
        state: the model's.
        keys: PRNG keys [B, K].
        token: int32 [B, K], the next token to feed.
        lengths: int32 [B, K], tokens produced, the end token included.
        finished: bool [B, K], the end token was produced.
    """

    state: State
    keys: Array
    token: Array
    lengths: Array
    finished: Array


@struct.dataclass
class Prefilled:
    """What `prefill` leaves for `sample_from`.

    Attributes:
        state: the model's, of prefilled prompts.
        num_hypotheses: static; K.
        room: static; tokens that the caches hold.
    """

    state: State
    num_hypotheses: int = struct.field(pytree_node=False)
    room: int = struct.field(pytree_node=False)


@struct.dataclass
class Samples:
    """Decoded hypotheses.

    Attributes:
        tokens: int32 [B, K, T], 0 after each row's length.
        lengths: int32 [B, K], tokens of each row, the end token included.
        finished: bool [B, K]; False where the length limit cut the text off.
        scores: `Tokens` with fields [B, K, T], 0 after each row's length.
        steps: int32, how many times each model was stepped.
    """

    tokens: Array
    lengths: Array
    finished: Array
    scores: Tokens
    steps: Array


def sample(
    model: LanguageModel, params: PyTree, prompts: Prompts, keys: Array, sampling: Sampling
) -> Samples:
    """Decodes K hypotheses of each prompt in one compiled call.

    Args:
        model: any language model; a `Realigned` one mixes by the prompts' λ.
        params: its parameters.
        prompts: B of them.
        keys: PRNG keys [B, K] from `sequence_keys`; the draws of a hypothesis depend on its key and
            the position alone.
        sampling: how to draw.

    Raises:
        ValueError: a setting out of its range, an argument that is no array of its type and shape,
            ids beyond the model's table, or λ that is not finite.
        FloatingPointError: a token's log-probability is NaN or infinite.
    """
    sampling = checked(sampling, model)
    check_prompts(model, prompts, keys)
    check_by_row(sampling, keys.shape, *BY_ROW)
    samples = _sample(model, params, prompts, keys, sampling)
    check_scores(samples.scores, prompts.lam)
    return samples


def prefill(
    model: LanguageModel, params: PyTree, prompts: Prompts, num_hypotheses: int, max_length: int
) -> Prefilled:
    """The work of `sample` on the prompts alone, for `sample_from` to use many times.

    Args:
        model, params, prompts: as of `sample`.
        num_hypotheses: K.
        max_length: tokens of a sequence at most, the end token included.

    Raises:
        ValueError: as `sample`.
    """
    num_hypotheses = checks.check("num_hypotheses", num_hypotheses, checks.whole(1))
    max_length = checks.check("max_length", max_length, checks.whole(1))
    check_prompts(model, prompts, num_hypotheses)
    room = _room(max_length)
    return Prefilled(_start(model, params, prompts, num_hypotheses, room), num_hypotheses, room)


def sample_from(
    model: LanguageModel, params: PyTree, prefilled: Prefilled, keys: Array, sampling: Sampling
) -> Samples:
    """What `sample` gives with these keys on the prompts of `prefilled`, which is kept.

    For other λ than those it was prefilled at see `realign.with_lam`.

    Raises:
        FloatingPointError: as `sample` does.
        ValueError: as `sample` does, or `prefilled` is of another number of hypotheses, or has no
            room for sequences of this length.
    """
    sampling = checked(sampling, model)
    batch, num_hypotheses = check_keys(keys)
    expected = len(prefilled.state.first_token), prefilled.num_hypotheses
    if (batch, num_hypotheses) != expected or _room(sampling.max_length) > prefilled.room:
        raise ValueError(
            f"prefilled for {expected} hypotheses of at most {prefilled.room} tokens; found "
            f"{(batch, num_hypotheses)} of {sampling.max_length}."
        )
    check_by_row(sampling, keys.shape, *BY_ROW)
    samples = _sample_from(model, params, prefilled.state, keys, sampling)
    check_scores(samples.scores)
    return samples


def checked(sampling: Sampling, model: LanguageModel) -> Sampling:
    """The sampling with its end tokens; raises ValueError as `check_sampling`, `with_end_ids`."""
    sampling = with_end_ids(sampling, model)
    check_sampling(sampling, model.vocab_size)
    return sampling


@functools.partial(jax.jit, static_argnums=0)
def _sample(model, params, prompts, keys, sampling: Sampling) -> Samples:
    state = model.start(params, prompts, keys.shape[1], _room(sampling.max_length))
    return _decode(model, params, begin(state, keys), sampling)


@functools.partial(jax.jit, static_argnums=0)
def _sample_from(model, params, state, keys, sampling: Sampling) -> Samples:
    return _decode(model, params, begin(rewind(state), keys), sampling)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _start(model, params, prompts, num_hypotheses: int, room: int) -> State:
    return model.start(params, prompts, num_hypotheses, room)


def _room(max_length: int) -> int:
    """Tokens in the cache, a whole number of chunks: a slice update past its end would be moved
    back onto the last slots without a word."""
    return -(-max_length // CHUNK) * CHUNK


def _decode(model, params, hypotheses: Hypotheses, sampling: Sampling) -> Samples:
    num_chunks = _room(sampling.max_length) // CHUNK
    chunk = functools.partial(decode_chunk, model, params, sampling, num_steps=CHUNK)
    like = jax.eval_shape(lambda h: chunk(h)[1], hypotheses)
    record = jax.tree.map(lambda x: jnp.zeros((num_chunks, *x.shape), x.dtype), like)

    def unfinished(carry):
        i, hypotheses, _ = carry
        return (i < num_chunks) & jnp.any(~hypotheses.finished)

    def body(carry):
        i, hypotheses, record = carry
        hypotheses, tokens = chunk(hypotheses)
        return i + 1, hypotheses, jax.tree.map(lambda all, x: all.at[i].set(x), record, tokens)

    rounds, hypotheses, record = jax.lax.while_loop(unfinished, body, (0, hypotheses, record))
    scores = jax.tree.map(lambda x: _time_last(x, sampling.max_length), record)
    return Samples(
        scores.token, hypotheses.lengths, hypotheses.finished, scores, steps=rounds * CHUNK
    )


def _time_last(x: Array, length: int) -> Array:
    """[chunks, CHUNK, ...] -> [..., length]."""
    return jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 0, -1)[..., :length]


def begin(state: State, keys: Array) -> Hypotheses:
    """Hypotheses with keys[B, K] of a state of `start`, before their first token."""
    keys = constrain(keys, "batch", None)
    zeros = jnp.zeros(keys.shape, jnp.int32)
    return Hypotheses(state, keys, zeros + state.first_token[:, None], zeros, zeros > 0)


def decode_chunk(
    model: LanguageModel, params: PyTree, sampling: Sampling, hypotheses: Hypotheses, num_steps: int
) -> tuple[Hypotheses, Tokens]:
    """`num_steps` sampled tokens of every hypothesis; Tokens' fields are [num_steps, B, K]."""
    step = lambda carry, _: decode_step(model, params, sampling, carry)
    return jax.lax.scan(step, hypotheses, length=num_steps)


def decode_step(
    model: LanguageModel, params: PyTree, sampling: Sampling, hypotheses: Hypotheses
) -> tuple[Hypotheses, Tokens]:
    """One token of every hypothesis. Rows that have ended stay as they are and yield zeros."""
    alive = ~hypotheses.finished & (hypotheses.lengths < sampling.max_length)
    keys, slot = hypotheses.keys, hypotheses.state.position
    output, state = model.step(params, hypotheses.state, hypotheses.token)
    logits = sampling_logits(output.logits, hypotheses.lengths, sampling)
    if not sampling.greedy:
        noise = gumbel_noise(keys, slot, logits.shape[-1])
        token = jnp.argmax(logits + noise, axis=-1)
    else:
        token = jnp.argmax(logits, axis=-1)
    tokens = score_tokens(output, logits, token, sampling.greedy)
    tokens = jax.tree.map(lambda x: jnp.where(alive, x, 0), tokens)
    ends = is_end(tokens.token, sampling.end_ids)
    hypotheses = Hypotheses(
        state=state,
        keys=keys,
        token=tokens.token,
        lengths=hypotheses.lengths + alive,
        finished=hypotheses.finished | (alive & ends),
    )
    return hypotheses, tokens


def sampling_logits(logits: Array, lengths: Array, sampling: Sampling) -> Array:
    """Logits [B, K, V] of the distribution to sample from logits[B, K, V] at lengths[B, K]."""
    logits = transforms.forbid(logits, sampling.end_ids, lengths < sampling.min_length)
    if sampling.greedy:
        return logits
    logits = logits / jnp.asarray(sampling.temperature, jnp.float32)[..., None]
    if sampling.top_k is not None:
        logits = transforms.top_k(logits, jnp.asarray(sampling.top_k, jnp.float32))
    if sampling.top_p is not None:
        logits = transforms.top_p(logits, jnp.asarray(sampling.top_p, jnp.float32))
    return logits


def is_end(tokens: Array, end_ids: Array) -> Array:
    """bool [...], whether tokens[...] are one of end_ids[E]."""
    return jnp.any(tokens[..., None] == end_ids, axis=-1)


def gumbel_noise(keys: Array, slot: Array, vocab_size: int) -> Array:
    """Noise [B, K, V] of keys[B, K] at one slot; argmax(logits + noise) samples.

    Gumbel noise and not a uniform through the inverse distribution: slower, but rows that share
    their noise and differ a little in λ then mostly draw the same token (benchmarks/draws.py).
    """
    draw = lambda key: jax.random.gumbel(jax.random.fold_in(key, slot), (vocab_size,))
    return jax.vmap(jax.vmap(draw))(keys)


def sweep_rows(lams: Array, num_samples: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The hypotheses of a λ sweep with `num_samples` samples at each λ.

    Hypothesis g * num_samples + i has λ_g and number i: all λ of a sample share their random
    draws, so λ = 0 and λ = 1 reproduce the single models' samples.

    Args:
        lams: [G], or [G, M] for M aligned models.
        num_samples: samples of each prompt at each λ.
        batch: B.

    Returns:
        lam float32 [B, G] or [B, G, M], and sequence numbers int32 [K], K = G * num_samples.

    Raises:
        ValueError: no λ, one that is not finite, or a number of samples below 1.
    """
    checks.check("sweep_rows.lams", lams, LAMBDAS)
    checks.check("sweep_rows.num_samples", num_samples, checks.whole(1))
    groups = np.asarray(lams, np.float32)
    numbers = np.tile(np.arange(num_samples, dtype=np.int32), len(lams))
    return np.broadcast_to(groups, (batch, *groups.shape)), numbers


def check_sampling(sampling: Sampling, vocab_size: int | None = None) -> None:
    """Raise ValueError for invalid settings. Values traced by an outer jit are not seen.

    Args:
        sampling: the settings.
        vocab_size: V; None as long as no model is known.

    Raises:
        ValueError: naming the setting, what is accepted and what was found.
    """
    checks.check_traced(sampling, max_length=checks.whole(1), greedy=checks.FLAG)
    checks.check_traced(
        sampling,
        temperature=_TEMPERATURE,
        top_k=checks.optional(checks.whole(1, vocab_size)),
        top_p=checks.optional(checks.number(above=0, most=1)),
        min_length=checks.whole(0, sampling.max_length),
    )
    if vocab_size is None and sampling.end_ids is not None:
        checks.check("Sampling.end_ids", sampling.end_ids, end_ids(None))
