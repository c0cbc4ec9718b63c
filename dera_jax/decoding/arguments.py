"""Validates the arguments of decoding functions, outside of jit and before the compiled call.

Axes: B prompts, K hypotheses of each prompt, S prompt length, E end tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, check_padded

NO_END = -1  # an end id that equals no token id


def check_prompts(model: LanguageModel, prompts: Prompts, keys: Array | int) -> None:
    """Validates the prompts that a model is to decode from, and the shape of their PRNG keys.

    Args:
        model: the model that reads the prompts.
        prompts: B prompts.
        keys: PRNG keys [B, K], or the number of hypotheses K alone.

    Raises:
        ValueError: an argument is not an array of the expected type and shape, a prompt has no
            token, or `LanguageModel.check` rejects the prompts.
    """
    checks.check("prompts", prompts, checks.instance(Prompts))
    batch, _ = check_padded("prompts", prompts, least=1, B=None, S=None)
    model.check(prompts, keys if isinstance(keys, int) else check_keys(keys, batch)[1])


def check_keys(keys: Array, batch: int | None = None) -> tuple[int, int]:
    """Returns the shape (B, K) of PRNG keys; raises ValueError for other arrays or another B."""
    accepted = "PRNG keys (see `sequence_keys`)"
    return checks.check_array("keys", keys, accepted, jax.dtypes.prng_key, B=batch, K=None)


def check_per_key(settings: PyTree, rows: tuple[int, int], *names: str) -> None:
    """Validates the shapes of settings that may differ for each PRNG key.

    Arrays of another shape would be broadcast silently along an axis that was not meant.

    Args:
        settings: a dataclass.
        rows: (B, K), the shape of the keys.
        names: the fields of `settings` that may be one number or an array [B, K].

    Raises:
        ValueError: a field has another shape.
    """
    for name in names:
        shape = np.shape(getattr(settings, name))
        if shape not in ((), rows):
            raise ValueError(
                f"{type(settings).__name__}.{name} must be one number, or an array of the same "
                f"shape as the PRNG keys, {rows}; found shape {shape}."
            )


def with_end_ids(settings: PyTree, model: LanguageModel) -> PyTree:
    """Returns the settings with `end_ids` as int32 [E]; None becomes the end ids of the model.

    Raises:
        ValueError: neither the settings nor the model name end ids, or an id is outside the model's
            vocabulary.
    """
    ids = model.end_ids if settings.end_ids is None else settings.end_ids
    name = f"{type(settings).__name__}.end_ids"
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(ids)):
        checks.check_array(name, jnp.asarray(ids), "token ids", jnp.integer, E=None)
        return settings.replace(end_ids=jnp.asarray(ids, jnp.int32))
    if not np.size(ids):
        raise ValueError(
            f"{name} is not given, and the model has no end token ids: load the model with its "
            "vocabulary (load(path, vocabulary=...)), or set end_ids; (-1,) means no end token."
        )
    validated = checks.check(name, ids, end_ids(model.vocab_size))
    return settings.replace(end_ids=np.array(validated, np.int32))


def end_ids(vocab_size: int | None) -> checks.Check:
    """Returns the check of end ids: None, or token ids below `vocab_size` and -1 for no token."""
    token = checks.integer(NO_END, vocab_size and vocab_size - 1)
    words = f"{token.words}: a token id, or -1 for no end token"
    return checks.optional(checks.sequence(dataclasses.replace(token, words=words), "(1,)"))
