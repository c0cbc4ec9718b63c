"""Validation of what decoding functions are given, outside of jit and before a compiled call.

Axes: B prompts, K hypotheses of each prompt, S prompt length, E end tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, check_padded

NO_END = -1  # an end token that no token is


def check_prompts(model: LanguageModel, prompts: Prompts, keys: Array | int) -> None:
    """Validates B prompts.

    Args:
        model: that is to read them.
        prompts: of it.
        keys: [B, K], or the number of hypotheses K alone.

    Raises:
        ValueError: an argument that is no array of its type and shape, a prompt without a token, or
            as `LanguageModel.check`.
    """
    checks.check("prompts", prompts, checks.instance(Prompts))
    batch, _ = check_padded("prompts", prompts, least=1, B=None, S=None)
    model.check(prompts, keys if isinstance(keys, int) else check_keys(keys, batch)[1])


def check_keys(keys: Array, batch: int | None = None) -> tuple[int, int]:
    """The shape (B, K) of keys; raises ValueError if they are none, or of another B."""
    words = "PRNG keys (see `sequence_keys`)"
    return checks.check_array("keys", keys, words, jax.dtypes.prng_key, B=batch, K=None)


def check_by_row(settings: PyTree, rows: tuple[int, int], *names: str) -> None:
    """Validates the shapes of settings that may differ by row; others would be broadcast silently.

    Args:
        settings: a dataclass.
        rows: (B, K), the shape of the keys.
        names: of its fields that may be one number or an array [B, K].

    Raises:
        ValueError: a field of another shape.
    """
    for name in names:
        shape = np.shape(getattr(settings, name))
        if shape not in ((), rows):
            raise ValueError(
                f"{type(settings).__name__}.{name} must be one number, or an array of the shape of "
                f"the keys {rows}; found shape {shape}."
            )


def with_end_ids(settings: PyTree, model: LanguageModel) -> PyTree:
    """Settings with their `end_ids` as int32 [E]: the model's where they do not say them.

    Raises:
        ValueError: neither says them, or an id beyond the model's table.
    """
    ids = model.end_ids if settings.end_ids is None else settings.end_ids
    name = f"{type(settings).__name__}.end_ids"
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(ids)):
        checks.check_array(name, jnp.asarray(ids), "token ids", jnp.integer, E=None)
        return settings.replace(end_ids=jnp.asarray(ids, jnp.int32))
    if not np.size(ids):
        raise ValueError(
            f"{name} is not given, and the model does not say its end tokens: load it with its "
            "vocabulary (load(path, vocabulary=...)), or give end_ids, (-1,) for no end token"
        )
    known = checks.check(name, ids, end_ids(model.vocab_size))
    return settings.replace(end_ids=np.array(known, np.int32))


def end_ids(vocab_size: int | None) -> checks.Check:
    """What end tokens may be; None: the model's."""
    token = checks.whole(NO_END, vocab_size and vocab_size - 1)
    words = f"{token.words}: a token's id, or -1 for none"
    return checks.optional(checks.several(dataclasses.replace(token, words=words), "(1,)"))
