"""Tiny random models."""

import functools

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.llama_config import LlamaConfig

# 9 query heads over 3 key and value heads, wider in all than emb_dim.
LLAMA = LlamaConfig(
    vocab_size=64,
    emb_dim=36,
    num_heads=9,
    num_kv_heads=3,
    num_layers=2,
    head_dim=8,
    mlp_dim=56,
    rope_base=100.0,
    norm_epsilon=1e-3,
)


@functools.cache
def params(model: TrainableModel, seed: int = 13) -> PyTree:
    """Random parameters, whose norms are not 1.

    Drawn by NumPy, since compiling JAX's draws takes seconds. Under seed 13 some greedy sequences of
    test_llama.py, not all, contain id 0.
    """
    rng = np.random.default_rng(seed)
    std = 1.5 / np.sqrt(model.emb_dim)
    draw = lambda shape: (
        rng.uniform(0.2, 2, shape) if len(shape) == 1 else std * rng.normal(size=shape)
    )
    flat = {name: jnp.asarray(draw(shape), jnp.float32) for name, shape in model.param_shapes()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")
