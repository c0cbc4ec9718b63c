"""Masks and truncates next-token logits before sampling: end-token mask, top-k, top-p.

`sampling.sampling_logits` applies these transforms and the temperature after λ has combined the
models' logits.

Axes: ... any leading axes, V vocabulary, E tokens.
"""

import jax
import jax.numpy as jnp
from jax import Array

NEVER = jnp.finfo(jnp.float32).min  # finite: softmax of fully masked logits is uniform, not NaN


def forbid(logits: Array, tokens: Array, where: Array) -> Array:
    """Masks tokens[E] in logits[..., V] wherever `where`[...] is True."""
    is_masked = jnp.any(jnp.arange(logits.shape[-1])[:, None] == tokens, axis=-1)
    return jnp.where(where[..., None] & is_masked, NEVER, logits)


def _ordered_bits(x: Array) -> Array:
    """Maps float32 to uint32 such that the order is preserved."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _keep_heaviest(logits: Array, weights: Array, target: Array) -> Array:
    """Keeps the largest logits[..., V], as few as have weights that sum to at least target[...].

    The threshold is found bit by bit with 32 sums over V, so no sort is needed and `target` can
    be traced. All logits that equal the threshold are kept.
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
    """Keeps the k[...] largest of logits[..., V]; ties with the k-th largest are kept too."""
    return _keep_heaviest(logits, jnp.ones_like(logits), k)


def top_p(logits: Array, p: Array) -> Array:
    """Keeps the smallest nucleus of probability at least p[...] (Holtzman et al. 2020).

    p = 1 keeps every token, including those whose probability is lost in float32 rounding.
    """
    return _keep_heaviest(logits, jax.nn.softmax(logits), jnp.where(p < 1, p, jnp.inf))
