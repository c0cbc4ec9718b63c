"""A pair of golden models: T5X's own, and the same with every parameter moved at random."""

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax.models.t5 import T5Config
from tests import golden


def moved(params):
    """Parameters times 1 + 0.3 normal noise."""
    rng = np.random.default_rng(0)
    noisy = lambda x: (x * (1 + 0.3 * rng.standard_normal(x.shape))).astype(np.float32)
    return jax.tree.map(noisy, params)


def pair(version: str = "v1_1") -> tuple[T5Config, dict, dict]:
    """(sizes, {"reference": ..., "aligned": ...}, T5X's inputs and outputs of the reference)."""
    model, params, g = golden.load(version)
    two = {"reference": params, "aligned": moved(params)}
    return model.config, jax.tree.map(jnp.asarray, two), g
