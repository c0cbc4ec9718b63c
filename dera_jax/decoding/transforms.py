"""What turns logits into the distribution that is sampled: end masks, temperature, truncation.

All of it comes after λ has combined the models. Axes: ... rows, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jax import Array

NEVER = jnp.finfo(jnp.float32).min  # finite: a row with nothing left is uniform, not NaN


def forbid(logits: Array, tokens: Array, where: Array) -> Array:
    """Rules tokens[E] out in the rows of logits[..., V] where `where`[...] holds."""
    is_one = jnp.any(jnp.arange(logits.shape[-1])[:, None] == tokens, axis=-1)
    return jnp.where(where[..., None] & is_one, NEVER, logits)


def _ordered_bits(x: Array) -> Array:
    """uint32 that compare as the float32 `x` do."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _keep_heaviest(logits: Array, weights: Array, target: Array) -> Array:
    """Keeps the fewest largest logits[..., V] whose weights sum to at least target[...].

    The threshold is found bit by bit: 32 sums over V, no sort, and `target` can be traced. Logits
    that equal the threshold are all kept.
    """
    ordered = _ordered_bits(logits)

    def set_bit(i, threshold):
        candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        mass = jnp.sum(jnp.where(ordered >= candidate[..., None], weights, 0.0), axis=-1)
        return jnp.where(mass >= target, candidate, threshold)

    lowest = jnp.zeros(logits.shape[:-1], jnp.uint32)
    threshold = jax.lax.fori_loop(0, 32, set_bit, lowest)
    return jnp.where(ordered >= threshold[..., None], logits, NEVER)


def top_k(logits: Array, k: Array) -> Array:
    """Keeps the k[...] largest logits of each row (ties with the k-th are kept too)."""
    return _keep_heaviest(logits, jnp.ones_like(logits), k)


def top_p(logits: Array, p: Array) -> Array:
    """Keeps the smallest nucleus of probability at least p[...] (Holtzman et al. 2020).

    p = 1 keeps every token, also those whose probability is lost in float32's rounding.
    """
    return _keep_heaviest(logits, jax.nn.softmax(logits), jnp.where(p < 1, p, jnp.inf))
