"""Validation of what decoding functions are given, outside of jit and before a compiled call.

Axes: B inputs, K hypotheses of each input, S input length, M aligned models.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.decoding.realign import Realigned, known_lam
from dera_jax.models.language_model import LanguageModel, PyTree


def check_rows(model: LanguageModel, inputs: Array, lam: Array, stream: Array) -> Array:
    """Checks what a decoding call is given, [B, S] and [B, K] (whatever K stands for), outside of jit.

    Returns:
        lam, see `known_lam`.

    Raises:
        ValueError: an argument that is no array of its type and shape, ids of inputs beyond the
            model's table, or as `known_lam`.
    """
    batch, _ = checks.check_array("inputs", inputs, "token ids", jnp.integer, B=None, S=None)
    rows = check_stream(stream, batch)
    checks.check_token_ids("inputs", inputs, num_input_ids(model))
    return known_lam(model, lam, rows)


def check_stream(stream: Array, batch: int | None = None) -> tuple[int, int]:
    """The shape (B, K) of keys; raises ValueError if they are none, or of another B."""
    words = "PRNG keys (see `streams`)"
    return checks.check_array("stream", stream, words, jax.dtypes.prng_key, B=batch, K=None)


def num_input_ids(model: LanguageModel) -> int:
    """How many ids inputs may have: V, or of a tabular model the number of its tables."""
    one = model.reference if isinstance(model, Realigned) else model
    return getattr(one, "num_inputs", one.vocab_size)


def with_end(settings: PyTree, model: LanguageModel) -> PyTree:
    """Settings with a field `eos_id`, which is the model's end token where they do not say it.

    Raises:
        ValueError: neither says it.
    """
    if settings.eos_id is not None:
        return settings
    if model.end_token is None:
        raise ValueError(
            f"{type(settings).__name__}.eos_id is not given, and the model does not say its end "
            "token: load it with its vocabulary (load(path, vocabulary=...)), or give eos_id, -1 for "
            "no end token"
        )
    return settings.replace(eos_id=model.end_token)


def end_id(vocab_size: int | None) -> checks.Check:
    """What an end token's id may be."""
    ids = checks.whole(-1, vocab_size and vocab_size - 1)
    words = f"{ids.words}: a token's id, or -1 for none"
    return checks.optional(dataclasses.replace(ids, words=words))  # None: the model's
