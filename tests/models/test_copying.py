"""Untrained copying heads continue random text; without them nothing does."""

import jax
import numpy as np
import pytest

from dera_jax.models.copying import with_copying_heads
from dera_jax.models.language_model import Prompts, next_token_logits
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5

CONFIG = T5Config(
    vocab_size=500, emb_dim=128, num_heads=4, num_encoder_layers=2, num_decoder_layers=2, head_dim=32,
    mlp_dim=64, logits_via_embedding=True,
)  # fmt: skip


def accuracy(params):
    """How often the decoder, given a random text and how it begins, is right about what follows."""
    text = np.random.default_rng(0).permuted(np.tile(np.arange(2, 500), (8, 1)), axis=1)[:, :60]
    continuation = text[:, 20:30]
    prompts = Prompts(text, np.full(len(text), text.shape[1]))
    logits_of = jax.jit(next_token_logits, static_argnums=0)
    logits = logits_of(T5(CONFIG), params, prompts, continuation[:, None])[:, 0]
    return float(np.mean(logits.argmax(-1)[:, 1:] == continuation[:, 1:]))


def test_copying_heads_copy():
    params = T5(CONFIG).init(jax.random.key(0))
    assert accuracy(params) < 0.05
    assert accuracy(with_copying_heads(params, CONFIG, jax.random.key(1))) > 0.5


def test_sizes_without_room_are_refused():
    config = T5Config(vocab_size=8, emb_dim=64, head_dim=32, num_heads=2, logits_via_embedding=True)
    with pytest.raises(ValueError, match="emb_dim >= 4"):
        with_copying_heads({}, config, jax.random.key(0))
