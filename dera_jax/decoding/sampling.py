"""Samples sequences, and defines the decoding step that all decoding methods share.

One call decodes B prompts x K hypotheses, where the K hypotheses of a prompt may combine any values
of λ with any number of samples (`sweep_hypotheses`). λ, temperature, top-k, top-p, minimum length and end
ids are traced, so new values do not recompile.

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
    check_keys,
    check_per_key,
    check_prompts,
    end_ids,
    with_end_ids,
)
from dera_jax.decoding.realign import LAMBDAS
from dera_jax.decoding.scores import Tokens, check_scores, score_tokens
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, State, rewind
from dera_jax.partitioning import constrain

_TEMPERATURE = checks.Check(
    "a finite number above 0 (for the most likely token, set greedy=True)",
    checks.number(above=0).allows,
)
PER_HYPOTHESIS = (
    "temperature",
    "top_k",
    "top_p",
    "min_length",
)  # settings that may be arrays [B, K]
CHUNK = 8  # steps between two checks of whether every hypothesis has ended


@struct.dataclass
class Sampling:
    """Sampling settings: scalars, or arrays [B, K] with a value for each hypothesis.

    Only new values of static fields recompile.

    Attributes:
        max_length: static; maximum number of tokens, including the end token.
        greedy: static; take the most likely token (the lower id if tied) instead of sampling.
        temperature: divides the combined logits; > 0.
        top_k: number of most likely tokens to sample from; None for all.
        top_p: probability of the smallest nucleus to sample from; None for all tokens.
        min_length: number of tokens before which no end token is generated.
        end_ids: ids of the tokens that end a sequence, [E]; None for the model's, (-1,) for none.
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
    """The decoding state of B x K hypotheses between two steps.

    Attributes:
        state: the model's state.
        keys: PRNG keys [B, K].
        token: int32 [B, K], the next token to feed.
        lengths: int32 [B, K], number of tokens generated, including the end token.
        finished: bool [B, K], whether the end token was generated.
    """

    state: State
    keys: Array
    token: Array
    lengths: Array
    finished: Array


@struct.dataclass
class Prefilled:
    """Prefilled prompts: the result of `prefill` and an argument of `sample_from`.

    Attributes:
        state: the model's state after prefilling the prompts.
        num_hypotheses: static; K.
        room: static; cache length in tokens.
    """

    state: State
    num_hypotheses: int = struct.field(pytree_node=False)
    room: int = struct.field(pytree_node=False)


@struct.dataclass
class Samples:
    """Decoded hypotheses.

    Attributes:
        tokens: int32 [B, K, T], 0 after each hypothesis's length.
        lengths: int32 [B, K], number of tokens, including the end token.
        finished: bool [B, K]; False where the length limit truncated the sequence.
        scores: `Tokens` with fields [B, K, T], 0 after each hypothesis's length.
        steps: int32, number of decoding steps of each component model.
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
        model: any language model; a `Realigned` one combines its components by the prompts' λ.
        params: the model's parameters.
        prompts: B prompts.
        keys: PRNG keys [B, K] from `sequence_keys`; a hypothesis's draws depend on its key and the
            cache slot only.
        sampling: the sampling settings.

    Raises:
        ValueError: a setting is out of range, an argument is not an array of the expected type and
            shape, an id is outside the model's vocabulary, or λ is not finite.
        FloatingPointError: a token's log-probability is NaN or infinite.
    """
    sampling = resolve_sampling(sampling, model)
    check_prompts(model, prompts, keys)
    check_per_key(sampling, keys.shape, *PER_HYPOTHESIS)
    samples = _sample(model, params, prompts, keys, sampling)
    check_scores(samples.scores, prompts.lam)
    return samples


def prefill(
    model: LanguageModel, params: PyTree, prompts: Prompts, num_hypotheses: int, max_length: int
) -> Prefilled:
    """Prefills the prompts once, so that `sample_from` can sample from them many times.

    Args:
        model, params, prompts: as for `sample`.
        num_hypotheses: K.
        max_length: maximum number of tokens of a sequence, including the end token.

    Raises:
        ValueError: as `sample`.
    """
    num_hypotheses = checks.check("num_hypotheses", num_hypotheses, checks.integer(1))
    max_length = checks.check("max_length", max_length, checks.integer(1))
    check_prompts(model, prompts, num_hypotheses)
    room = _room(max_length)
    return Prefilled(_start(model, params, prompts, num_hypotheses, room), num_hypotheses, room)


def sample_from(
    model: LanguageModel, params: PyTree, prefilled: Prefilled, keys: Array, sampling: Sampling
) -> Samples:
    """Samples as `sample` does, from prompts that were prefilled; `prefilled` can be reused.

    To sample at other λ than the prefill's, replace the λ of its state with `realign.with_lam`.

    Raises:
        FloatingPointError: as `sample`.
        ValueError: as `sample`; `prefilled` has another number of hypotheses; or its caches are too
            short for `sampling.max_length`.
    """
    sampling = resolve_sampling(sampling, model)
    batch, num_hypotheses = check_keys(keys)
    expected = len(prefilled.state.first_token), prefilled.num_hypotheses
    if (batch, num_hypotheses) != expected or _room(sampling.max_length) > prefilled.room:
        raise ValueError(
            f"sample_from: prefilled for {expected} hypotheses [B, K] of at most {prefilled.room} "
            f"tokens; found keys {(batch, num_hypotheses)} and a max_length of "
            f"{sampling.max_length}. Call prefill with these sizes."
        )
    check_per_key(sampling, keys.shape, *PER_HYPOTHESIS)
    samples = _sample_from(model, params, prefilled.state, keys, sampling)
    check_scores(samples.scores)
    return samples


def resolve_sampling(sampling: Sampling, model: LanguageModel) -> Sampling:
    """Resolves end ids and validates; raises ValueError as `with_end_ids` and `check_sampling`."""
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
    """Returns the cache length, `max_length` rounded up to whole chunks.

    JAX would silently move a slice update that reaches past the end back onto the last slots.
    """
    return -(-max_length // CHUNK) * CHUNK


def _decode(model, params, hypotheses: Hypotheses, sampling: Sampling) -> Samples:
    num_chunks = _room(sampling.max_length) // CHUNK
    chunk = functools.partial(decode_chunk, model, params, sampling, num_steps=CHUNK)
    shapes = jax.eval_shape(lambda h: chunk(h)[1], hypotheses)
    record = jax.tree.map(lambda x: jnp.zeros((num_chunks, *x.shape), x.dtype), shapes)

    def unfinished(carry):
        i, hypotheses, _ = carry
        return (i < num_chunks) & jnp.any(~hypotheses.finished)

    def body(carry):
        i, hypotheses, record = carry
        hypotheses, tokens = chunk(hypotheses)
        return i + 1, hypotheses, jax.tree.map(lambda all, x: all.at[i].set(x), record, tokens)

    chunks, hypotheses, record = jax.lax.while_loop(unfinished, body, (0, hypotheses, record))
    scores = jax.tree.map(lambda x: _time_last(x, sampling.max_length), record)
    return Samples(
        scores.token, hypotheses.lengths, hypotheses.finished, scores, steps=chunks * CHUNK
    )


def _time_last(x: Array, length: int) -> Array:
    """Moves time last and cuts it: [chunks, CHUNK, ...] -> [..., length]."""
    return jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 0, -1)[..., :length]


def begin(state: State, keys: Array) -> Hypotheses:
    """Returns hypotheses with keys[B, K] before their first token, given a state from `start`."""
    keys = constrain(keys, "batch", None)
    zeros = jnp.zeros(keys.shape, jnp.int32)
    return Hypotheses(state, keys, zeros + state.first_token[:, None], zeros, zeros > 0)


def decode_chunk(
    model: LanguageModel, params: PyTree, sampling: Sampling, hypotheses: Hypotheses, num_steps: int
) -> tuple[Hypotheses, Tokens]:
    """Runs `num_steps` decoding steps; the fields of the returned Tokens are [num_steps, B, K]."""
    step = lambda carry, _: decode_step(model, params, sampling, carry)
    return jax.lax.scan(step, hypotheses, length=num_steps)


def decode_step(
    model: LanguageModel, params: PyTree, sampling: Sampling, hypotheses: Hypotheses
) -> tuple[Hypotheses, Tokens]:
    """Generates one token of every hypothesis; those that have ended are unchanged and yield 0."""
    active = ~hypotheses.finished & (hypotheses.lengths < sampling.max_length)
    keys, slot = hypotheses.keys, hypotheses.state.position
    output, state = model.step(params, hypotheses.state, hypotheses.token)
    logits = sampling_logits(output.logits, hypotheses.lengths, sampling)
    if not sampling.greedy:
        noise = gumbel_noise(keys, slot, logits.shape[-1])
        token = jnp.argmax(logits + noise, axis=-1)
    else:
        token = jnp.argmax(logits, axis=-1)
    tokens = score_tokens(output, logits, token, sampling.greedy)
    tokens = jax.tree.map(lambda x: jnp.where(active, x, 0), tokens)
    ends = is_end(tokens.token, sampling.end_ids)
    hypotheses = Hypotheses(
        state=state,
        keys=keys,
        token=tokens.token,
        lengths=hypotheses.lengths + active,
        finished=hypotheses.finished | (active & ends),
    )
    return hypotheses, tokens


def sampling_logits(logits: Array, lengths: Array, sampling: Sampling) -> Array:
    """Applies minimum length, temperature, top-k and top-p to the combined logits[B, K, V].

    Args:
        logits: the model's next-token logits.
        lengths: int32 [B, K], tokens generated so far.
        sampling: the settings; greedy decoding uses the minimum length only.

    Returns:
        Logits [B, K, V] of the distribution to sample from.
    """
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
    """Returns bool [...], whether each of tokens[...] is one of end_ids[E]."""
    return jnp.any(tokens[..., None] == end_ids, axis=-1)


def gumbel_noise(keys: Array, slot: Array, vocab_size: int) -> Array:
    """Draws Gumbel noise [B, K, V] by keys[B, K] at one slot; argmax(logits + noise) is a sample.

    Inverse-CDF sampling would be faster, but with shared Gumbel noise hypotheses whose λ differ a
    little mostly draw the same token (benchmarks/draws.py).
    """
    draw = lambda key: jax.random.gumbel(jax.random.fold_in(key, slot), (vocab_size,))
    return jax.vmap(jax.vmap(draw))(keys)


def sweep_hypotheses(lams: Array, num_samples: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Lays out the hypotheses of a λ sweep with `num_samples` samples at each λ.

    Hypothesis g * num_samples + i has λ_g and sequence number i. All λ share the random draws of
    sample i, so λ = 0 and λ = 1 reproduce the single models' samples.

    Args:
        lams: [G], or [G, M] for M aligned models.
        num_samples: number of samples of each prompt at each λ.
        batch: B.

    Returns:
        λ for `Prompts.lam`, float32 [B, G] or [B, G, M]; and the sequence numbers for
        `sequence_keys`, int32 [K] with K = G * num_samples.

    Raises:
        ValueError: no λ is given, a λ is not finite, or num_samples is below 1.
    """
    checks.check("sweep_hypotheses.lams", lams, LAMBDAS)
    checks.check("sweep_hypotheses.num_samples", num_samples, checks.integer(1))
    groups = np.asarray(lams, np.float32)
    numbers = np.tile(np.arange(num_samples, dtype=np.int32), len(lams))
    return np.broadcast_to(groups, (batch, *groups.shape)), numbers


def check_sampling(sampling: Sampling, vocab_size: int | None = None) -> None:
    """Validates sampling settings. Values traced by an outer jit are skipped.

    Args:
        sampling: the settings.
        vocab_size: V; None if the model is not known yet.

    Raises:
        ValueError: a setting is invalid; the message names it, what is accepted, what was found.
    """
    checks.check_traced(sampling, max_length=checks.integer(1), greedy=checks.FLAG)
    checks.check_traced(
        sampling,
        temperature=_TEMPERATURE,
        top_k=checks.optional(checks.integer(1, vocab_size)),
        top_p=checks.optional(checks.number(above=0, most=1)),
        min_length=checks.integer(0, sampling.max_length),
    )
    if vocab_size is None and sampling.end_ids is not None:
        checks.check("Sampling.end_ids", sampling.end_ids, end_ids(None))
