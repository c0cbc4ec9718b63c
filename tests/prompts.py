"""Prompts and targets of tests, from arrays of token ids."""

import dataclasses

import numpy as np

from dera_jax.models.language_model import Padded, Prompts
from dera_jax.models.t5_lm import T5


def whole(tokens, lam=None) -> Prompts:
    """Prompts of tokens[B, S], all of which count; λ [B, G], or one number for all."""
    tokens = np.asarray(tokens, np.int32)
    if np.ndim(lam) == 0 and lam is not None:
        lam = np.full((len(tokens), 1), lam, np.float32)
    return Prompts(tokens, np.full(len(tokens), tokens.shape[1], np.int32), lam)


def zero_padded(tokens, lam=None) -> Prompts:
    """Prompts of tokens[B, S] that T5X or a test padded with 0 on the right."""
    padded = zero_padded_targets(tokens)
    return Prompts(padded.tokens, padded.lengths, lam)


def zero_padded_targets(tokens) -> Padded:
    """Sequences of tokens[..., T], padded with 0 on the right."""
    tokens = np.asarray(tokens, np.int32)
    return Padded(tokens, np.sum(tokens > 0, axis=-1, dtype=np.int32))


# --- what has to give the same numbers

FIRST, OTHER = -1, 7


def repadded(sequences, padding: int):
    """The same prompts or sequences with another id behind them; FIRST: that of their first token."""
    tokens, mask = np.asarray(sequences.tokens), np.asarray(sequences.mask)
    behind = tokens[..., :1] if padding == FIRST else padding
    return sequences.replace(tokens=np.where(mask, tokens, behind))


def renamed(tokens) -> np.ndarray:
    """Ids in a vocabulary in which 0 and OTHER have changed places."""
    tokens = np.asarray(tokens)
    return np.select([tokens == 0, tokens == OTHER], [OTHER, 0], tokens)


def renamed_t5(model: T5, params):
    """The T5 of that vocabulary, with one table of embeddings: it computes what `model` computes."""
    table = np.asarray(params["token_embedder"]["embedding"])
    params = params | {"token_embedder": {"embedding": table[renamed(np.arange(len(table)))]}}
    start_token = int(renamed(model.config.start_token))
    return T5(dataclasses.replace(model.config, start_token=start_token)), params
