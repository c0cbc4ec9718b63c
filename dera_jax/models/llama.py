"""Decoder-only networks: RoPE, grouped-query attention, RMSNorm, SwiGLU (Llama's architecture).

Plain functions over a nested dict of float32 parameters. One function, `decode`, runs all passes: a
prompt (its keys and values are kept, once for all K hypotheses), a step from a cache, and teacher
forcing without one. A query attends to the prompt's keys and to those of its own hypothesis under
one softmax; only the scores of the two are concatenated, never the keys.

Axes: B prompts, K hypotheses, S prompt length, N new tokens, L slots of a hypothesis, E emb_dim,
H query heads, G key and value heads, R = H/G queries of one key, D head_dim, V vocab_size.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from dera_jax import checks
from dera_jax.models.layers import MASKED, einsum, rematerialised
from dera_jax.partitioning import constrain

KeysValues = tuple[Array, Array]
CACHE_AXES = "batch", None, "kv_heads", None, None
Params = Mapping[str, "Params | Array"]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama, named as in `T5Config`.

    Attributes:
        num_heads: of the queries; a multiple of num_kv_heads.
        num_kv_heads: of keys and values.
        head_dim: even, need not be emb_dim / num_heads.
        rope_base: of RoPE's wavelengths (`rope_theta` in transformers).
        norm_epsilon: of RMSNorm.
        logits_via_embedding: whether the output table is the embedding (tied) or its own.
        dtype: of activations and operands of matrix products, 'float32' or 'bfloat16'. Softmax, norms,
            rotations and logits are float32; parameters are what they are given as.
        end_ids: the tokens that end a sequence; empty where nothing has said them yet.

    Raises:
        ValueError: naming an invalid field, and what is accepted.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    num_kv_heads: int
    num_layers: int
    head_dim: int
    mlp_dim: int
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5
    logits_via_embedding: bool = False
    dtype: str = "float32"
    end_ids: tuple[int, ...] = ()

    def __post_init__(self):
        size = checks.whole(1, 2**31 - 1)
        sizes = ("vocab_size", "emb_dim", "num_heads", "num_kv_heads", "num_layers", "mlp_dim")
        checks.check_fields(self, **dict.fromkeys(sizes, size))
        even = checks.Check(
            "an even integer of at least 2", lambda x: size.allows(x) and x % 2 == 0
        )
        dtype = checks.Check("'float32' or 'bfloat16'", lambda x: x in ("float32", "bfloat16"))
        checks.check_fields(
            self,
            head_dim=even,
            rope_base=checks.number(above=0),
            norm_epsilon=checks.number(above=0),
            logits_via_embedding=checks.FLAG,
            dtype=dtype,
            end_ids=checks.several(checks.whole(0, self.vocab_size - 1), "(1,)", least=0),
        )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"LlamaConfig.num_heads must be a multiple of num_kv_heads, {self.num_kv_heads}; "
                f"found {self.num_heads}."
            )


def param_axes(config: LlamaConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name (path joined by '/') and logical axes of each parameter."""
    yield "token_embedder/embedding", ("vocab", "embed")
    for i in range(config.num_layers):
        for name, axes in (
            ("pre_attention_norm/scale", ("embed",)),
            ("attention/query/kernel", ("embed", "heads", "kv")),
            ("attention/key/kernel", ("embed", "kv_heads", "kv")),
            ("attention/value/kernel", ("embed", "kv_heads", "kv")),
            ("attention/out/kernel", ("heads", "kv", "embed")),
            ("pre_mlp_norm/scale", ("embed",)),
            ("mlp/gate/kernel", ("embed", "mlp")),
            ("mlp/up/kernel", ("embed", "mlp")),
            ("mlp/down/kernel", ("mlp", "embed")),
        ):
            yield f"layers_{i}/{name}", axes
    yield "final_norm/scale", ("embed",)
    if not config.logits_via_embedding:
        yield "logits/kernel", ("embed", "vocab")


def param_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each parameter, one by one and without tracing."""
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.emb_dim,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "kv": config.head_dim,
        "mlp": config.mlp_dim,
    }
    for name, axes in param_axes(config):
        yield name, tuple(sizes[axis] for axis in axes)


def init(config: LlamaConfig, key: Array) -> Params:
    """Random parameters: norms 1, all else normal with standard deviation 1/√E."""
    params = {}
    for i, (name, shape) in enumerate(param_shapes(config)):
        normal = lambda: jax.random.normal(jax.random.fold_in(key, i), shape)  # noqa: B023
        is_norm = name.endswith("scale")
        params[name] = jnp.ones(shape) if is_norm else normal() / math.sqrt(config.emb_dim)
    return flax.traverse_util.unflatten_dict(params, sep="/")


@struct.dataclass
class Context:
    """What all layers of one pass share.

    Attributes:
        slots: int32 [N], of the new tokens among the L of their hypothesis.
        rotation: cosines and sines of RoPE, float32 [B, 1, 1, N, D/2].
        mask: bool [B, N, S + L], which of the keys of prompt and hypothesis a token attends to.
    """

    slots: Array
    rotation: tuple[Array, Array]
    mask: Array


def context(
    config: LlamaConfig, slots: Array, num_slots: int, before: Array, prompt_size: int
) -> Context:
    """The context of new tokens.

    Args:
        config: of the network.
        slots: int32 [N], see `Context`.
        num_slots: L.
        before: int32 [B], the prompt's tokens before slot 0: those are attended to, and the position
            of slot t is before + t.
        prompt_size: S, 0 for a pass over the prompt itself.
    """
    positions = before[:, None] + slots
    of_prompt = jnp.arange(prompt_size) < before[:, None, None]  # [B, 1, S]
    own = jnp.arange(num_slots) <= slots[:, None]  # [N, L]
    batch, new = len(before), len(slots)
    of_prompt = jnp.broadcast_to(of_prompt, (batch, new, prompt_size))
    mask = jnp.concatenate([of_prompt, jnp.broadcast_to(own, (batch, new, num_slots))], axis=-1)
    return Context(slots, _rotation(config, positions), mask)


def _rotation(config: LlamaConfig, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines [B, 1, 1, N, D/2] of positions[B, N], in float32 whatever the dtype."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angles = positions[..., None].astype(jnp.float32) * config.rope_base**-exponents
    return jnp.cos(angles)[:, None, None], jnp.sin(angles)[:, None, None]


def decode(
    config: LlamaConfig,
    params: Params,
    tokens: Array,
    context: Context,
    prompt: Sequence[KeysValues] | None = None,
    cache: Sequence[KeysValues] | None = None,
    remat: str | None = None,
) -> tuple[Array, tuple[KeysValues, ...]]:
    """Runs the network over new tokens.

    Args:
        config, params: of the network.
        tokens: int32 [B, K, N].
        context: of these tokens.
        prompt: keys and values [B, G, S, D] of each layer; None for a pass over the prompt itself.
        cache: of each layer, keys and values [B, K, G, L, D] of each hypothesis, with room at the slots
            of the new tokens; None without a cache: then L = N, and slots are 0 to N - 1.
        remat: see `language_model.TrainableModel`.

    Returns:
        Hidden states [B, K, N, E] after the final norm; for each layer keys and values [B, K, G, L, D].
    """
    x = params["token_embedder"]["embedding"][tokens].astype(config.dtype)
    x = constrain(x, "batch", None, None, None)
    layer = rematerialised(functools.partial(_layer, config), remat)
    updated = []
    for i in range(config.num_layers):
        blocks = prompt and prompt[i], cache and cache[i]
        x, own = layer(params[f"layers_{i}"], x, context, *blocks)
        updated.append(own)
    return _norm(config, params["final_norm"], x), tuple(updated)


def logits(config: LlamaConfig, params: Params, hidden: Array) -> Array:
    """hidden[..., E] -> float32 logits[..., V]."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    if config.logits_via_embedding:
        found = einsum("ne,ve->nv", rows, params["token_embedder"]["embedding"], config.dtype)
    else:
        found = einsum("ne,ev->nv", rows, params["logits"]["kernel"], config.dtype)
    return found.reshape(*hidden.shape[:-1], -1)


def _layer(
    config: LlamaConfig,
    params: Params,
    x: Array,
    context: Context,
    prompt: KeysValues | None,
    cache: KeysValues | None,
) -> tuple[Array, KeysValues]:
    """x[B, K, N, E] -> [B, K, N, E], and keys and values as of `_attention`."""
    y = _norm(config, params["pre_attention_norm"], x)
    y, own = _attention(config, params["attention"], y, context, prompt, cache)
    x = x + y
    return x + _mlp(config, params["mlp"], _norm(config, params["pre_mlp_norm"], x)), own


def _norm(config: LlamaConfig, params: Params, x: Array) -> Array:
    """RMSNorm of x[..., E] in float32; the scale is applied after rounding, as in transformers."""
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    y = x * lax.rsqrt(mean_square + config.norm_epsilon)
    return y.astype(config.dtype) * params["scale"].astype(config.dtype)


def _mlp(config: LlamaConfig, params: Params, x: Array) -> Array:
    """SwiGLU of x[B, K, N, E]: down(silu(gate(x))·up(x))."""
    gate, up = (_project(config, params[name], x) for name in ("gate", "up"))
    hidden = constrain(jax.nn.silu(gate) * up, "batch", None, None, "mlp")
    return _project(config, params["down"], hidden)


def _attention(
    config: LlamaConfig,
    params: Params,
    x: Array,
    context: Context,
    prompt: KeysValues | None,
    cache: KeysValues | None,
) -> tuple[Array, KeysValues]:
    """x[B, K, N, E] -> [B, K, N, E], and keys and values [B, K, G, L, D] of its hypotheses."""
    queries, keys, values = (
        jnp.moveaxis(_project(config, params[name], x), 3, 2) for name in ("query", "key", "value")
    )
    queries = constrain(_rotate(queries, context.rotation), "batch", None, "heads", None, None)
    keys, values = (constrain(y, *CACHE_AXES) for y in (_rotate(keys, context.rotation), values))
    own = _remember(cache, (keys, values), context.slots)
    blocks = [own] if prompt is None else [prompt, own]
    grouped = queries.reshape(*x.shape[:2], config.num_kv_heads, -1, config.head_dim)
    attended = _attend(config, grouped, blocks, context.mask).reshape(queries.shape)
    return _project(config, params["out"], jnp.moveaxis(attended, 2, 3), num_axes=2), own


def _attend(
    config: LlamaConfig, queries: Array, blocks: Sequence[KeysValues], mask: Array
) -> Array:
    """Attends to several blocks of keys under one softmax.

    Args:
        config: of the network.
        queries: [B, K, G, R·N, D], all that attend to one key head.
        blocks: keys and values, [B, G, S, D] of prompts or [B, K, G, L, D] of hypotheses.
        mask: bool [B, N, all keys], which of the keys of all blocks a token attends to.

    Returns:
        [B, K, G, R·N, D].
    """
    scores = [_product(config, "...qd,...ld->...ql", queries, keys) for keys, _ in blocks]
    scores = jnp.concatenate(scores, axis=-1) / math.sqrt(config.head_dim)
    mask = jnp.tile(mask, (1, queries.shape[3] // mask.shape[1], 1))[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED))
    seams = np.cumsum([keys.shape[-2] for keys, _ in blocks])[:-1]
    parts = zip(jnp.split(weights, seams, axis=-1), blocks, strict=True)
    attended = [_product(config, "...ql,...ld->...qd", part, values) for part, (_, values) in parts]
    return sum(attended).astype(config.dtype)


def _product(config: LlamaConfig, spec: str, rows: Array, block: Array) -> Array:
    """einsum of rows[B, K, G, Q, ·] with a block of `_attend`; float32.

    A prompt's block meets the rows of all hypotheses as one matrix, and is not repeated for each.
    """
    if block.ndim == rows.ndim:
        return einsum(spec, rows, block, config.dtype)
    batch, hypotheses, heads, queries, _ = rows.shape
    merged = jnp.moveaxis(rows, 1, 2).reshape(batch, heads, hypotheses * queries, -1)
    out = einsum(spec, merged, block, config.dtype)
    return jnp.moveaxis(out.reshape(batch, heads, hypotheses, queries, -1), 2, 1)


def _remember(cache: KeysValues | None, new: KeysValues, slots: Array) -> KeysValues:
    """Writes new keys and values [B, K, G, N, D] into the cache; without one they are all there is."""
    if cache is None:
        return new
    write = lambda old, x: lax.dynamic_update_slice_in_dim(old, x, slots[0], axis=3)
    return tuple(map(write, cache, new))


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """RoPE of x[B, K, heads, N, D], whose pairs are (i, i + D/2) as in transformers."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _project(config: LlamaConfig, params: Params, x: Array, num_axes: int = 1) -> Array:
    """Contracts the last axes of x[..., inputs] with the first of the kernel[inputs, outputs].

    As a product of two matrices: else XLA on CPUs writes a transposed kernel at every step.
    """
    kernel = params["kernel"]
    inputs = math.prod(kernel.shape[:num_axes])
    out = einsum("ni,io->no", x.reshape(-1, inputs), kernel.reshape(inputs, -1), config.dtype)
    shape = *x.shape[: x.ndim - num_axes], *kernel.shape[num_axes:]
    return out.reshape(shape).astype(config.dtype)
