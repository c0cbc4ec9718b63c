"""The layers of T5, with T5X's parameter names and logical axes.

Axes: G groups of queries that share keys (B, or B·K), N query tokens, L key slots, H heads,
D head_dim, E emb_dim, M mlp_dim.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import partitioning
from jax import Array

from dera_jax.partitioning import LORA_A, LORA_B, constrain

NUM_BUCKETS = 32
MAX_DISTANCE = 128
MASKED = -1e10  # T5X's value: finite, so a fully masked query attends uniformly instead of to NaN.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _low_precision_einsum(spec: str, x: Array, y: Array) -> Array:
    """Computes einsum of bfloat16 x and y, accumulated and returned in float32."""
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _einsum_forward(spec, x, y):
    return _low_precision_einsum(spec, x, y), (x, y)


def _einsum_backward(spec, operands, g):
    # The automatic transpose would multiply a float32 cotangent with a bfloat16 operand, which
    # no matrix unit supports. So the cotangent is rounded, as T5X's bfloat16 activations are.
    x, y = operands
    left, right, out = spec.replace("->", ",").split(",")
    g = g.astype(x.dtype)
    dx = jnp.einsum(f"{out},{right}->{left}", g, y, preferred_element_type=jnp.float32)
    dy = jnp.einsum(f"{left},{out}->{right}", x, g, preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dy.astype(y.dtype)


_low_precision_einsum.defvjp(_einsum_forward, _einsum_backward)


def einsum(spec: str, x: Array, y: Array, dtype: str) -> Array:
    """Computes jnp.einsum of operands rounded to `dtype`, accumulated and returned in float32.

    With `dtype` 'float32' nothing is rounded. Every index must occur in at least two of the three
    terms, so no sum is over one operand alone.
    """
    if dtype == "float32":
        return jnp.einsum(spec, x, y)
    return _low_precision_einsum(spec, x.astype(dtype), y.astype(dtype))


def low_rank(params: Mapping[str, Array], x: Array, dtype: str) -> Array | float:
    """Returns the term that the LoRA adapters of C component models add to a projection.

    Args:
        params: parameters of the projection; with adapters they have factors `lora_a` [C, inputs, r]
            and `lora_b` [C, r, outputs] (see `lora.attach`).
        x: [..., C, N, inputs], the inputs of each component.
        dtype: see `einsum`.

    Returns:
        float32 [..., C, N, outputs], or 0 without adapters.
    """
    if LORA_A not in params:
        return 0.0
    a, b = params[LORA_A], params[LORA_B]

    def term(
        c: int,
    ) -> Array:  # products of two matrices, since XLA on CPUs is slow at batched ones
        rows = x[..., c, :, :]
        down = einsum("ni,ir->nr", rows.reshape(-1, rows.shape[-1]), a[c], dtype)
        return einsum("nr,ro->no", down, b[c], dtype).reshape(*rows.shape[:-1], -1)

    return jnp.stack([term(c) for c in range(len(a))], axis=-3)


def write_cache(cache: Array, new: Array, slots: Array) -> Array:
    """Writes new[B, K, heads, N, D] into cache[B, K, heads, L, D] at the adjacent slots[N].

    If they do not all exist, NaN is written, which makes the logits NaN: XLA would move the block back
    over the keys and values of earlier tokens.
    """
    new = jnp.where(slots[-1] < cache.shape[3], new.astype(cache.dtype), jnp.nan)
    return jax.lax.dynamic_update_slice_in_dim(cache, new, slots[0], axis=3)


def rematerialised(layer: Callable, remat: str | None) -> Callable:
    """Wraps a layer in `jax.checkpoint` with the policy named `remat`; None: does not wrap it."""
    if remat is None:
        return layer
    return jax.checkpoint(layer, policy=getattr(jax.checkpoint_policies, remat))


class Dense(nn.Module):
    """A linear layer without bias: x[..., inputs] @ kernel[inputs, features].

    With the adapters of C component models x is [..., N, inputs], whose leading axes are a multiple of C
    with the components innermost.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(self.init_scale, "fan_in", "truncated_normal")
        shape = (x.shape[-1], self.features)
        kernel = partitioning.param_with_axes("kernel", init, shape, jnp.float32, axes=self.axes)
        rows = x.reshape(-1, x.shape[-1])
        out = einsum("ni,io->no", rows, kernel, self.dtype)
        if self.has_variable("params", LORA_A):
            factors = {name: self.get_variable("params", name) for name in (LORA_A, LORA_B)}
            by_component = x.reshape(-1, len(factors[LORA_A]), *x.shape[-2:])
            out = out + low_rank(factors, by_component, self.dtype).reshape(out.shape)
        return out.reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """T5's root-mean-square norm, without mean subtraction and bias."""

    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.ones
        scale = partitioning.param_with_axes(
            "scale", init, (x.shape[-1],), jnp.float32, axes=("embed",)
        )
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return y.astype(self.dtype) * scale.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head attention without the factor 1/√D, which T5 puts into the initial query kernel."""

    num_heads: int
    head_dim: int
    emb_dim: int
    dropout_rate: float
    dtype: str

    def setup(self):
        inner = self.num_heads * self.head_dim
        project = functools.partial(Dense, inner, ("embed", "joined_kv"), self.dtype)
        self.query = project(init_scale=1.0 / self.head_dim)
        self.key = project()
        self.value = project()
        self.out = Dense(self.emb_dim, ("joined_kv", "embed"), self.dtype)
        self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

    def _split_heads(self, x: Array) -> Array:
        """Reshapes [..., L, H·D] to [..., H, L, D]."""
        x = x.astype(self.dtype).reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        x = jnp.swapaxes(x, -3, -2)
        return constrain(x, "batch", *[None] * (x.ndim - 4), "heads", None, None)

    def keys_values(self, x: Array) -> tuple[Array, Array]:
        """Projects x[..., L, E] to keys and values [..., H, L, D]."""
        return self._split_heads(self.key(x)), self._split_heads(self.value(x))

    def attend(self, x: Array, keys: Array, values: Array, bias: Array, train: bool) -> Array:
        """Attends from x[G, N, E] to keys and values [G, H, L, D], and returns [G, N, E].

        `bias`[G or 1, H or 1, N or 1, L] is the sum of the relative position bias and the mask.
        """
        queries = self._split_heads(self.query(x))
        logits = einsum("ghnd,ghld->ghnl", queries, keys, self.dtype) + bias
        weights = jax.nn.softmax(logits, axis=-1)
        weights = self.dropout(weights, deterministic=not train)
        out = einsum("ghnl,ghld->ghnd", weights, values, self.dtype)
        joined = jnp.swapaxes(out, -3, -2).reshape(*x.shape[:-1], -1)
        return self.out(joined).astype(self.dtype)


class Mlp(nn.Module):
    """The feed-forward layer wo(act_0(wi_0(x)) · act_1(wi_1(x))), or wo(act(wi(x)))."""

    mlp_dim: int
    activations: tuple[str, ...]
    dropout_rate: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        gated = len(self.activations) > 1
        hidden = 1.0
        for i, activation in enumerate(self.activations):
            name = f"wi_{i}" if gated else "wi"
            y = Dense(self.mlp_dim, ("embed", "mlp"), self.dtype, name=name)(x)
            y = y.astype(self.dtype)
            hidden = hidden * (y if activation == "linear" else getattr(nn, activation)(y))
        hidden = constrain(hidden, "batch", *[None] * (x.ndim - 2), "mlp")
        dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))
        hidden = dropout(hidden, deterministic=not train)
        out = Dense(x.shape[-1], ("mlp", "embed"), self.dtype, name="wo")(hidden)
        return out.astype(self.dtype)


def relative_position_bucket(distance: np.ndarray, bidirectional: bool) -> np.ndarray:
    """Returns T5's bucket of each distance, the query's position minus the key's.

    It is computed by NumPy at trace time, because the log of an accelerator may be rounded to
    the other side of a bucket's boundary.
    """
    buckets = NUM_BUCKETS // 2 if bidirectional else NUM_BUCKETS
    offset = np.where(distance < 0, buckets, 0) if bidirectional else 0
    distance = np.abs(distance) if bidirectional else np.maximum(distance, 0)
    exact = buckets // 2
    ratio = distance.astype(np.float32) / exact + np.finfo(np.float32).eps
    log_bucket = np.log(ratio) / np.log(MAX_DISTANCE / exact) * (buckets - exact)
    far = np.minimum(exact + log_bucket.astype(np.int32), buckets - 1)
    return offset + np.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """The relative position biases [H, buckets], which all layers of a stack share."""

    num_heads: int
    bidirectional: bool

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        shape = (self.num_heads, NUM_BUCKETS)
        self.rel_embedding = partitioning.param_with_axes(
            "rel_embedding", init, shape, jnp.float32, axes=("heads", "relpos_buckets")
        )

    def between(self, length: int) -> Array:
        """Returns the bias [H, L, L] between all pairs of `length` tokens."""
        position = np.arange(length)
        distance = position[:, None] - position[None, :]
        buckets = relative_position_bucket(distance, self.bidirectional)
        return self.rel_embedding[:, buckets]

    def at(self, positions: Array, length: int) -> Array:
        """Returns bias [G, H, N, L] of queries at positions[G, N] to slots 0 to L - 1, unmasked."""
        buckets = relative_position_bucket(np.arange(length), self.bidirectional)
        by_distance = self.rel_embedding[:, buckets]
        distance = jnp.clip(positions[..., None] - jnp.arange(length), 0, length - 1)
        return jnp.moveaxis(by_distance[:, distance], 0, 1)
