"""Prompts and targets of tests, from arrays of token ids."""

import numpy as np

from dera_jax.models.language_model import Padded, Prompts


def whole(tokens, lam=None) -> Prompts:
    """Prompts of tokens[B, S], all of which count."""
    tokens = np.asarray(tokens, np.int32)
    return Prompts(tokens, np.full(len(tokens), tokens.shape[1], np.int32), lam)


def zero_padded(tokens, lam=None) -> Prompts:
    """Prompts of tokens[B, S] that T5X or a test padded with 0 on the right."""
    padded = zero_padded_targets(tokens)
    return Prompts(padded.tokens, padded.lengths, lam)


def zero_padded_targets(tokens) -> Padded:
    """Sequences of tokens[..., T], padded with 0 on the right."""
    tokens = np.asarray(tokens, np.int32)
    return Padded(tokens, np.sum(tokens > 0, axis=-1, dtype=np.int32))
